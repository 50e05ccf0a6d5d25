"""The page of one run's landscape, from its record."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from amuse_lab.landscape import figures
from amuse_lab.landscape.charts import NAMES, charts
from amuse_lab.landscape.claims import by_chance
from amuse_lab.landscape.measuring import Measurement
from amuse_lab.landscape.recorded import Recorded, mean
from amuse_lab.landscape.river import River
from amuse_lab.studies import drawing
from amuse_lab.studies.page import frame, sections
from amuse_lab.studies.statistics import Interval

NOTATION = (
    "x is the average that is shipped, y the point where gradients are taken, z what each step moves; "
    "without averaging they are one. The dominant subspace is that of the eigenvectors of the k largest "
    "eigenvalues of the Hessian, the bulk is what is orthogonal to it; the dominant share of a vector, "
    "r_dom, is the norm of its part in the dominant subspace over its norm."
)

CAPTIONS = {
    "valley": "The training loss on the straight line from z through x and beyond. Where the loss rises "
    "on both sides of x, the line crosses a valley; whether dominant directions are its walls, the planes "
    "show.",
    "gradients": "Norm of the gradient's part in the dominant subspace over its norm: 1 points at the walls, "
    "0 along the river. Gradients of single batches, each in the dominant subspace at its own point.",
    "along": "The same on the way from z to x, now all in the dominant subspace at x.",
    "updates": "The share of the momentum and of the update z(t+1) - z(t) of the hidden matrices, in the "
    "dominant subspace of their block of the Hessian. The line is the share of a random direction.",
    "oscillation": "Near 1 an update goes on where the one before went, below 0 it goes back. Update of the "
    "hidden matrices, split into its dominant and its bulk part.",
    "singular": "Of the largest hidden matrix at the last measured step. Orthogonalization makes them alike.",
    "sharpness": "The largest eigenvalue of the Hessian of the training loss.",
    "spectrum": "The leading eigenvalues of the Hessian at x.",
    "river": "Validation loss at x minus that after a short decay of the learning rate from x, from y and "
    "from z, on the same batches; bars: 95 % intervals over the batches. Above 0 a decay gains something.",
}


def page(run: Recorded, environment: Mapping[str, Any]) -> str:
    """Return the page of a run as HTML; the same text for the same record.

    Args:
        run: Record of the run: its measurements, its river tests and what ended it early, if anything did.
        environment: Versions, machine and device it was measured on, from `studies.measuring.surroundings`.
    """
    drawn = charts(run)
    with drawing.defaults():
        planes = figures.planes(run)
        pictures = [_plane(step, figures.as_svg(figure)) for step, figure in planes]
    places = "\n".join(frame.figure(chart, CAPTIONS[chart["id"]]) for chart in drawn)
    last = run.measurements[-1] if run.measurements else None
    failed = f"<p><strong>It failed</strong>: {escape(run.failure)}</p>" if run.failure else ""
    title = f"The river and the valley: {run.name} on {run.setting}"
    content = "\n".join(
        (
            f"<h1>{escape(title)}</h1>",
            f'<p class="note">Seed {run.seed}; measured after '
            f"{', '.join(f'{at.step:,}' for at in run.measurements) or 'no'} steps.</p>{failed}",
            f'<p class="note">{NOTATION}</p>',
            "<h2>Answer</h2>",
            f'<div class="answer">{_answer(last, run.rivers)}</div>',
            "<h2>Pictures</h2>",
            places or "<p>There is nothing to draw.</p>",
            *pictures,
            "<h2>The river test in numbers</h2>",
            *map(_river, run.rivers),
            "<h2>Numbers</h2>",
            *map(_numbers, run.measurements),
            "<h2>What ran</h2>",
            sections.details("Model, data, optimizer", sections.as_json(run.config)),
            sections.details("How much was measured", sections.as_json(run.settings)),
            sections.details("Environment", sections.as_json(environment)),
        )
    )
    return frame.document(title, content, drawn)


def _answer(at: Measurement | None, rivers: Sequence[River]) -> str:
    """What the last measured step says, in sentences."""
    lines = []
    if at is not None and at.segment is not None:
        losses = dict(zip(at.segment["positions"], at.segment["losses"], strict=True))
        walls = losses[1.0] < min(losses[0.0], losses[2.0])
        lines.append(
            f"After {at.step:,} steps the loss at x is {losses[1.0]:.4g}, at z {losses[0.0]:.4g}, and as far "
            f"beyond x {losses[2.0]:.4g}: it {'rises' if walls else 'does not rise'} on both sides of x."
        )
    if at is not None and at.gradients:
        shares = ", ".join(f"{share:.2f} at {point}" for point, share in sorted(at.gradients.items()))
        lines.append(f"Dominant share of the gradient: {shares}.")
    if at is not None and at.watched is not None:
        watched = at.watched
        before = f"{mean(watched.momentum):.2g} of the momentum, " if watched.momentum else ""
        lines.append(
            f"Dominant share: {before}{mean(watched.update):.2g} of the update, "
            f"{by_chance(at):.2g} of a random direction."
        )
        dominant, bulk = (mean(watched.cosines[part]) for part in ("dominant", "bulk"))
        lines.append(
            f"Cosine of consecutive updates: {dominant:.2f} in the dominant subspace, {bulk:.2f} in the bulk."
        )
    lines += [
        f"A short decay of the learning rate from x, after {river.step:,} steps, gains "
        f"{shown(river.gain('x'))} of validation loss: {_above(river.gain('x'))}."
        for river in rivers
    ]
    return f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>" if lines else "<p>Nothing.</p>"


def _above(gain: Interval) -> str:
    """What the gain of a decay from x means."""
    if gain.low > 0:
        return "so far above the river's floor x still is"
    return "x's height above the river's floor cannot be told from none"


def shown(found: Interval) -> str:
    """Return a mean with half of its interval."""
    return f"{found.mean:.4f} ± {found.half:.4f}" if found.n > 1 else f"{found.mean:.4f}"


def _plane(step: int, picture: str) -> str:
    return (
        f"<section><h3>The plane after {step:,} steps</h3>\n{picture}\n"
        '<p class="note">The loss around x: lighter is lower. Upwards along a dominant, sideways along a '
        "bulk direction, those of z - x (without an average: of the first update). The steps that follow are "
        "drawn into it, from the large mark on.</p></section>"
    )


def _river(river: River) -> str:
    rates = list(river.branches[0].losses["x"])
    head = ("from", "loss before", *(f"after, from {rate}" for rate in rates), "gain over x")
    rows = [
        (
            escape(NAMES.get(start, start)),
            f"{before:.4f}",
            *(f"{mean([branch.losses[start][rate] for branch in river.branches]):.4f}" for rate in rates),
            shown(river.gain(start)),
        )
        for start, before in river.before.items()
    ]
    return (
        f'<p class="note">After {river.step:,} steps the learning rate was let down in a line to 0, by plain '
        f"Muon without averages, on {len(river.branches)} sequences of batches, the same from each point. "
        "Validation loss; the gain is x's loss before minus that after the better decay, with half of the "
        f"95 % interval over the batches.</p>{sections.table(head, rows, kind='results')}"
    )


def _numbers(at: Measurement) -> str:
    """What was measured at a step, as tables."""
    head = ("Hessian", "size", "largest eigenvalue", "k", "error bound", "products")
    rows = [
        (
            "hidden matrices, at x" if name == "matrices" else f"at {name}",
            f"{each.size:,}",
            f"{each.values[0]:.5g}",
            "no gap" if each.k is None else f"{each.k}",
            "" if each.bound is None else f"{each.bound:.2g}",
            f"{each.products}",
        )
        for name, each in at.spectra.items()
    ]
    more = [(f"training loss at {point}", f"{value:.5g}") for point, value in at.loss.items()]
    if at.inner is not None:
        more.append(("cosine of g(y) and z - x", f"{at.inner['cosine']:.3g}"))
        more += [
            ("share of hidden matrices in which it is positive", f"{at.inner['positive']:.2f}")
            for _ in range("positive" in at.inner)
        ]
    if at.watched is not None:
        parts = at.watched.persistence
        more += [
            ("persistence of the dominant parts", f"{parts['dominant']:.3g}"),
            ("persistence of the bulk parts", f"{parts['bulk']:.3g}"),
            *(
                (f"effective rank of the {name}", f"{of:.2f}")
                for name, of in sorted(at.watched.ranks.items())
            ),
        ]
    return sections.details(
        f"After {at.step:,} steps",
        sections.table(head, rows, kind="results") + sections.table(("", ""), more, kind="results"),
    )
