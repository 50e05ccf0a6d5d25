"""The paper's claims about river and valley, as experiments: what is run, and the rule of the verdicts.

The claims are those of arXiv 2605.22432, section 3. All of this was fixed before the runs.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from amuse_lab.config import OptimizerConfig, RunConfig
from amuse_lab.landscape.measuring import Measurement, Settings
from amuse_lab.landscape.recorded import Recorded, mean
from amuse_lab.landscape.river import RiverSettings
from amuse_lab.optimizers import SGD, AdamW, Amuse, DMuon, MuonSGD, ScheduleFreeAdamW
from amuse_lab.recipes.image import mnist_resnet8
from amuse_lab.recipes.lm import shakespeare
from amuse_lab.studies.statistics import Interval, interval
from amuse_lab.tasks.image.task import ImageConfig
from amuse_lab.tasks.lm.task import LanguageModelConfig

STEPS = 400
MEASURED_AT = (150, 400)
SEEDS = (1, 2, 3)
SETTINGS = Settings(k=10, batches=1, window=30)
RIVER = RiverSettings(branches=1)

_WARMUP = 40
_T0 = 130
_TEXT: Mapping[str, OptimizerConfig] = {
    "sgd": SGD(lr=0.3, warmup_steps=_WARMUP, schedule="constant"),
    "adamw": AdamW(lr=0.005, warmup_steps=_WARMUP, schedule="constant"),
    "muon": DMuon(lr=0.01, warmup_steps=_WARMUP, beta1=0.9, schedule="constant"),
    "sf-adamw": ScheduleFreeAdamW(lr=0.01, warmup_steps=_WARMUP),
    "sf-muon": Amuse(lr=0.02, warmup_steps=_WARMUP, beta1=0.8, rho=0.0),
    "amuse": Amuse(lr=0.02, warmup_steps=_WARMUP, t0_steps=_T0),
}
_IMAGES: Mapping[str, OptimizerConfig] = {
    "sgd": SGD(lr=0.1, warmup_steps=_WARMUP, schedule="constant"),
    "adamw": AdamW(lr=0.01, warmup_steps=_WARMUP, schedule="constant"),
    "muon": MuonSGD(lr=0.05, lr_rest=0.02, warmup_steps=_WARMUP, schedule="constant"),
    "sf-adamw": ScheduleFreeAdamW(lr=0.01, warmup_steps=_WARMUP),
    "sf-muon": Amuse(lr=0.1, auxiliary="sgd", warmup_steps=_WARMUP, beta1=0.8, rho=0.0),
    "amuse": Amuse(lr=0.1, auxiliary="sgd", warmup_steps=_WARMUP, t0_steps=_T0),
}
ORTHOGONALIZING = ("muon", "sf-muon", "amuse")
AVERAGING = ("sf-adamw", "sf-muon", "amuse")


def runs() -> dict[tuple[str, str], RunConfig]:
    """Return the configs of the runs by setting and optimizer, without their seeds."""
    text = shakespeare()
    assert isinstance(text.task, LanguageModelConfig)
    model = replace(text.task.model, n_embd=48, n_head=2, n_layer=2, context=64)
    text = replace(text, task=replace(text.task, model=model))
    images = mnist_resnet8()
    assert isinstance(images.task, ImageConfig)
    task = replace(images.task, model=images.task.model.reduced(), batch=32, refresh_batches=10)
    images = replace(images, task=task)
    return {
        (setting, name): replace(run, optimizer=optimizer, steps=STEPS, threads=1)
        for setting, run, optimizers in (("text", text, _TEXT), ("images", images, _IMAGES))
        for name, optimizer in optimizers.items()
    }


Effect = Callable[[Measurement], float | None]


@dataclass(frozen=True)
class Claim:
    """A claim, and the effects that are positive if it holds.

    Attributes:
        text: The claim in one sentence, as its page and claims.json give it.
        optimizers: Names of the optimizers that it is about, as in `runs`.
        effects: Numbers at a measured step, by what they are; None where it cannot be measured.
    """

    text: str
    optimizers: tuple[str, ...]
    effects: Mapping[str, Effect]


def bulk(dominant: float) -> float:
    """Return r_bulk from r_dom."""
    return math.sqrt(max(0.0, 1 - dominant**2))


def _purified(at: Measurement) -> float | None:
    if at.watched is None or at.watched.momentum is None:
        return None
    return mean([*map(bulk, at.watched.update)]) - mean([*map(bulk, at.watched.momentum)])


def by_chance(at: Measurement) -> float:
    """Return the root mean square of r_dom of a random direction, sqrt(k / size), in the hidden matrices."""
    spectrum = at.spectra["matrices"]
    return math.sqrt((spectrum.k or 0) / spectrum.size)


def _left(at: Measurement) -> float | None:
    return None if at.watched is None else mean(at.watched.update) - by_chance(at)


def _undone(at: Measurement) -> float | None:
    return None if at.watched is None else -math.log(at.watched.persistence["dominant"])


def _calmer(at: Measurement) -> float | None:
    if not {"x", "z"} <= at.gradients.keys():
        return None
    return at.gradients["z"] - at.gradients["x"]


def _walled(at: Measurement) -> float | None:
    if at.segment is None:
        return None
    losses = dict(zip(at.segment["positions"], at.segment["losses"], strict=True))
    return min(losses[0.0], losses[2.0]) - losses[1.0]


CLAIMS = (
    Claim(
        "Orthogonalization raises the bulk share of the update.",
        ORTHOGONALIZING,
        {"r_bulk of the update minus r_bulk of the momentum": _purified},
    ),
    Claim(
        "It also leaves dominant components that oscillate.",
        ORTHOGONALIZING,
        {
            "r_dom of the update minus that of a random direction": _left,
            "minus the logarithm of the persistence of the dominant parts": _undone,
        },
    ),
    Claim(
        "Gradients taken nearer x have a smaller dominant share.",
        AVERAGING,
        {"r_dom of gradients at z minus that at x": _calmer},
    ),
    Claim(
        "The segment from z to x crosses the valley: the loss at x is below both walls.",
        AVERAGING,
        {"the smaller of the losses at z and as far beyond x, minus that at x": _walled},
    ),
)

RULE = (
    f"Each claim has one or two effects, numbers that are positive if it holds. An effect is measured after "
    f"{MEASURED_AT[0]} and {MEASURED_AT[1]} steps, and the mean of the two is the run's. For a setting (text "
    f"or images) and an optimizer that the claim is about, an effect is supported if the 95 % t-interval of "
    f"its mean over seeds {', '.join(map(str, SEEDS))} lies above zero, not supported if it lies below zero, "
    f"and unclear otherwise. A claim is supported if all of its effects are, with every such optimizer in "
    f"both settings; not supported if any is not supported; unclear otherwise. Momentum and update are those "
    f"of the hidden matrices over {SETTINGS.window} steps, in the dominant subspace of their block of the "
    f"Hessian at x; the persistence is ||sum of updates||^2 over the sum of ||update||^2 within it, 1 for "
    f"independent steps. Gradients are those of single batches, each in the dominant subspace at its "
    f"own point. k = {SETTINGS.k}; subspaces with an error bound above 0.1 are not used."
)
"""How the runs decide. It was written when the measurements had been tried with seed 0 and other lengths."""


@dataclass(frozen=True)
class Cell:
    """One effect of a claim, with one optimizer in one setting.

    Attributes:
        setting: What was trained on: "text" or "images", as in `runs`.
        optimizer: Name of the optimizer, one of those that the claim is about.
        effect: What the number is, in words: a key of the claim's `effects`.
        found: Mean of the effect over the seeds with its 95 % t-interval; not a number if a run failed or
            could not be measured.
    """

    setting: str
    optimizer: str
    effect: str
    found: Interval

    @property
    def word(self) -> str:
        """The verdict of the rule."""
        if not math.isfinite(self.found.half):
            return "unclear"
        return "supported" if self.found.low > 0 else "not supported" if self.found.high < 0 else "unclear"


def cells(claim: Claim, records: Sequence[Recorded]) -> Iterator[Cell]:
    """Yield the effects of a claim, as far as there are runs; a run that failed leaves its cell unclear."""
    for setting in dict.fromkeys(record.setting for record in records):
        for optimizer in claim.optimizers:
            own = [each for each in records if (each.setting, each.name) == (setting, optimizer)]
            for name, effect in claim.effects.items():
                values = [_of_run(each, effect) for each in own]
                if values:
                    yield Cell(setting, optimizer, name, interval(values))


def _of_run(record: Recorded, effect: Effect) -> float:
    values = [value for at in record.measurements if (value := effect(at)) is not None]
    return mean(values) if values and record.failure is None else math.nan


def verdict(claim: Claim, records: Sequence[Recorded]) -> str:
    """Return the word that the rule has for a claim."""
    words = [cell.word for cell in cells(claim, records)]
    asked = len({setting for setting, _ in runs()}) * len(claim.optimizers) * len(claim.effects)
    if "not supported" in words:
        return "not supported"
    return "supported" if words.count("supported") == asked else "unclear"
