"""How near to the polar factor orthogonalization schemes come, and which forms of the iteration are safe.

    python benchmarks/orthogonalization_quality.py --out records/quality/2026-11-22-cpu

Three tables and a JSON file. Schemes: what `amuse_optim.orthogonalize` returns, on random matrices of chosen
spectra and on the momentum of two small Llamas, whose training (minutes, once) is kept below --cache. The
same, spectrum by spectrum. And forms: variants of the iteration, those that fail included. Everything also
faces a search: hill climbing over singular values, in bases of four kinds, for the matrix that ends with the
largest singular value. The same seeds give the same matrices.
"""

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from quality_forms import BF16, F32, FORMS, Form
from quality_matrices import SEED, Training, spectra
from quality_measures import (
    POWERS_OF_TEN,
    POWERS_OF_TWO,
    Measured,
    Reference,
    Stacked,
    change_with_scale,
    momentum,
    search,
    summary,
)
from torch import Tensor

from amuse_lab import environment
from amuse_lab.files import replacing
from amuse_optim import orthogonalize

RECORD, TABLES = "quality.json", "quality.md"

ENOUGH = 100.0  # singular value at which a search ends
LARGEST_ALLOWED = 1.25  # singular value, on every spectrum and after the search
ERROR_ALLOWED = 1.1  # over that of the plain form in its dtype: of as many steps, or of five of the quintic


@dataclass(frozen=True)
class Scheme:
    """A scheme of the public API."""

    method: str
    steps: int
    dtype: torch.dtype

    def __call__(self, stack: Tensor) -> Tensor:
        """Orthogonalize a stack (n, rows, cols); the result has its dtype."""
        return orthogonalize(stack, method=self.method, steps=self.steps, dtype=self.dtype)

    @property
    def beginnings(self) -> list[Form]:
        """Its first steps, in pairs, which are the least favourable way to take them."""
        return [
            Form(self.method, steps, tuple(range(2, steps, 2)), dtype=self.dtype)
            for steps in range(2, self.steps, 2)
        ]


SCHEMES = (
    *(
        Scheme(method, steps, dtype)
        for dtype in (BF16, F32)
        for method in ("quintic", "polar_express")
        for steps in (5, 6, 8)
    ),
    Scheme("exact", 1, F32),
)


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    Attributes:
        shapes: Of the random matrices the schemes get; the twin of the second is tall.
        form_shapes: Of those the forms get.
        trainings: Whose momentum everybody gets.
        searches: Rows, columns, number of matrices and moves of each search.
    """

    shapes: tuple[tuple[int, int], ...]
    form_shapes: tuple[tuple[int, int], ...]
    trainings: tuple[Training, ...]
    searches: tuple[tuple[int, int, int, int], ...]


FULL = Extent(
    shapes=((128, 128), (128, 384), (256, 256), (256, 1024), (512, 1536)),
    form_shapes=((16, 48), (64, 160), (128, 128), (128, 384)),
    trainings=(
        Training(width=96, heads=3, layers=3, steps=(1, 30, 300)),
        Training(width=256, heads=4, layers=2, steps=(1, 30, 300)),
    ),
    searches=((16, 40, 256, 600), (64, 128, 64, 100)),
)
QUICK = Extent(
    shapes=((64, 64), (64, 160)),
    form_shapes=((16, 48), (64, 160)),
    trainings=(Training(width=96, heads=3, layers=3, steps=(1, 30)),),
    searches=((16, 40, 48, 20),),
)


def searched(function: Stacked, beginnings: Sequence[Stacked], extent: Extent) -> float:
    """The worst that the search finds, guided by the end and by the ends of the beginnings."""
    worst = 0.0
    for size in extent.searches:
        for guide in (function, *beginnings):
            if worst <= ENOUGH:
                worst = max(worst, search(function, guide, *size))
    return worst


def references(
    shapes: Sequence[tuple[int, int]], trainings: Sequence[Training], cache: Path
) -> dict[str, list[Reference]]:
    """Matrices by kind: the random ones in every shape, and all momenta of a training at a step."""
    found: dict[str, list[Reference]] = {}
    for i, shape in enumerate(shapes):
        for kind, matrices in spectra(*shape).items():
            group = found.setdefault(kind, [])
            group += [Reference(matrix) for matrix in matrices]
            if i == 1:
                group += [Reference(matrix.T.contiguous()) for matrix in matrices]
    for training in trainings:
        for kind, matrices in training.momenta(cache).items():
            found[kind] = [Reference(matrix) for matrix in matrices]
    return found


def measure_all(function: Stacked, matrices: dict[str, list[Reference]]) -> dict[str, Measured]:
    """Measure what a function makes of every matrix, and sum it up by kind."""
    return {kind: summary([each.measure(function) for each in group]) for kind, group in matrices.items()}


def scheme_row(scheme: Scheme, matrices: dict[str, list[Reference]], extent: Extent) -> dict[str, Any]:
    """Everything about a scheme, in JSON's types."""
    return {
        "method": scheme.method,
        "steps": scheme.steps,
        "dtype": _name(scheme.dtype),
        "after_search": None if scheme.method == "exact" else searched(scheme, scheme.beginnings, extent),
        "change_with_powers_of_two": change_with_scale(scheme, POWERS_OF_TWO),
        "change_with_powers_of_ten": change_with_scale(scheme, POWERS_OF_TEN),
        "spectra": measure_all(scheme, matrices),
    }


def form_rows(matrices: dict[str, list[Reference]], extent: Extent) -> Iterable[dict[str, Any]]:
    """Everything about every form, in JSON's types."""

    @cache
    def plain(method: str, steps: int, dtype: torch.dtype) -> dict[str, Measured]:
        return measure_all(Form(method, steps, dtype=dtype, folded=False), matrices)

    for form in FORMS:
        kinds = measure_all(form, matrices)
        same, quintic = plain(form.method, form.steps, form.dtype), plain("quintic", 5, form.dtype)
        over_plain = max(
            found["error"] / max(same[kind]["error"], quintic[kind]["error"]) for kind, found in kinds.items()
        )
        worst = max(kinds, key=lambda kind: kinds[kind]["largest"])
        after_search = searched(form, form.beginnings, extent)
        largest = max(kinds[worst]["largest"], after_search)
        yield {
            "method": form.method,
            "steps": form.steps,
            "form": form.description,
            "dtype": _name(form.dtype),
            "operations": form.operations,
            "largest": kinds[worst]["largest"],
            "largest_on": worst,
            "after_search": after_search,
            "error_over_plain": over_plain,
            "momentum": momentum(kinds, late=True),
            "safe": largest <= LARGEST_ALLOWED and over_plain <= ERROR_ALLOWED,
        }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0e}" if math.isfinite(value) else "not finite"


def _nearness(measured: Measured) -> str:
    return f"{measured['cosine']:.3f} / {_number(measured['norm'])} / {_number(measured['error'])}"


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"### {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""])


def schemes_table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out the schemes, one a line."""
    lines = []
    for row in rows:
        kinds = row["spectra"]
        whole = summary(list(kinds.values()))
        lines.append(
            (
                f"{row['method']} {row['steps']}" if row["method"] != "exact" else "exact",
                row["dtype"],
                *(f"[{whole[f'low_{power}']:.2f}, {whole[f'high_{power}']:.2f}]" for power in (2, 3)),
                _number(whole["largest"]),
                "" if row["after_search"] is None else _number(row["after_search"]),
                _nearness(kinds["Gaussian"]),
                _nearness(momentum(kinds, late=True)),
                _nearness(momentum(kinds, late=False)),
                f"{row['change_with_powers_of_two']:.0e}",
                f"{row['change_with_powers_of_ten']:.0e}",
            )
        )
    columns = ["scheme", "dtype", "sigma >= 1e-2", "sigma >= 1e-3", "largest", "after search", "Gaussian"]
    columns += ["momentum, last step", "momentum before", "change x 2^k", "change x 10^k"]
    return _table("Schemes of the public API (cosine / norm / error)", columns, lines)


def spectra_table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out three of the schemes in bfloat16, one kind of matrix a line."""
    shown = [
        row
        for row in rows
        if (row["method"], row["steps"]) in (("quintic", 5), ("polar_express", 5), ("polar_express", 8))
        and row["dtype"] == "bfloat16"
    ]
    lines = [
        (
            kind,
            *(
                f"{_number(row['spectra'][kind]['largest'])}; {_nearness(row['spectra'][kind])}"
                for row in shown
            ),
        )
        for kind in shown[0]["spectra"]
    ]
    columns = ["matrices", *(f"{row['method']} {row['steps']}" for row in shown)]
    return _table("By spectrum, bfloat16 (largest; cosine / norm / error)", columns, lines)


def forms_table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out the forms, one a line."""
    lines = [
        (
            f"{row['method']} {row['steps']}",
            row["form"],
            row["dtype"],
            row["operations"],
            f"{_number(row['largest'])} ({row['largest_on']})",
            _number(row["after_search"]),
            _number(row["error_over_plain"]),
            _nearness(row["momentum"]),
            "yes" if row["safe"] else "**no**",
        )
        for row in rows
    ]
    columns = [
        "scheme",
        "form",
        "dtype",
        "operations / rows^3",
        "largest",
        "after search",
        "error over plain",
    ]
    return _table("Forms examined", [*columns, "momentum, last step", "safe"], lines)


def write(folder: Path, content: dict[str, Any], tables: Sequence[str]) -> None:
    """Write record and tables, each whole or not at all; numbers that are not finite become null."""
    rounded = json.loads(
        json.dumps(content),
        parse_float=lambda text: float(f"{float(text):.4g}"),
        parse_constant=lambda _: None,
    )
    record = json.dumps(rounded, indent=1, allow_nan=False) + "\n"
    for name, text in ((RECORD, record), (TABLES, "\n".join(tables))):
        with replacing(folder / name) as partial_file:
            partial_file.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help=f"folder for {RECORD} and {TABLES}")
    parser.add_argument("--quick", action="store_true", help="few small matrices and a short search")
    parser.add_argument("--cache", type=Path, default=Path("runs/momentum"), help="where momentum is kept")
    arguments = parser.parse_args()
    if arguments.out is not None:
        if any((arguments.out / name).exists() for name in (RECORD, TABLES)):
            parser.error(f"{arguments.out} holds a record already; choose another place with --out")
        arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    extent = QUICK if arguments.quick else FULL

    matrices = references(extent.shapes, extent.trainings, arguments.cache)
    schemes = [scheme_row(scheme, matrices, extent) for scheme in SCHEMES]
    tables = [schemes_table(schemes), spectra_table(schemes)]
    print(*tables, sep="\n", flush=True)
    matrices = references(extent.form_shapes, extent.trainings, arguments.cache)
    forms = list(form_rows(matrices, extent))
    tables.append(forms_table(forms))
    print(tables[-1])
    if arguments.out is not None:
        content = {
            "environment": environment.describe(device=torch.device("cpu"), seed=SEED),
            "capabilities": environment.cpu_capabilities(),
            "quick": arguments.quick,
            "schemes": schemes,
            "forms": forms,
        }
        write(arguments.out, content, tables)


if __name__ == "__main__":
    main()
