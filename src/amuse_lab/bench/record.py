"""What a benchmark leaves behind: a record with every time, and a table for people."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from amuse_lab import environment
from amuse_lab.bench.contestants import CONTESTANTS
from amuse_lab.bench.measure import SEED, WARMUP_ROUNDS, Result, ratio
from amuse_lab.bench.sizes import SIZES
from amuse_lab.errors import RecordError
from amuse_lab.files import replacing

RECORD = "bench.json"
TABLE = "bench.md"

Results = Mapping[str, Mapping[str, Result]]
"""By parameter set, then by contestant."""

_HEADER = (
    "| optimizer | median ms | p10 ms | time / {against} | state B/param | extra B/param "
    "| operations (views) | products | GFLOP | moved/param |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def to_json(
    results: Results,
    *,
    missing: Sequence[str],
    against: str,
    device: torch.device,
    dtype: torch.dtype,
    complete: bool,
) -> dict[str, Any]:
    """Return the whole record in JSON's types.

    Args:
        results: Measurements by parameter set and contestant.
        missing: Contestants that are not installed.
        against: Name of the contestant whose times the ratios divide by.
        device: Device that the steps ran on.
        dtype: Type of the parameters and their gradients; recorded by its name, such as "float32".
        complete: Whether the record holds all requested measurements.
    """
    return {
        "complete": complete,
        "environment": environment.describe(device=device, seed=SEED),
        "versions": {name: contestant.version for name, contestant in CONTESTANTS.items()},
        "capabilities": environment.cpu_capabilities(),
        "onednn": bool(torch.backends.mkldnn.enabled),
        "load_average": list(os.getloadavg()),
        "dtype": str(dtype).removeprefix("torch."),
        "warmup_rounds": WARMUP_ROUNDS,
        "against": against,
        "not_installed": list(missing),
        "sizes": {
            size: {
                "description": SIZES[size].description,
                "contestants": {
                    name: _result(result, measured[against]) for name, result in measured.items()
                },
            }
            for size, measured in results.items()
        },
    }


def _result(result: Result, reference: Result) -> dict[str, Any]:
    return {
        "median_seconds": result.median,
        "p10_seconds": result.p10,
        "ratio": ratio(result.seconds, reference.seconds),
        "footprint": asdict(result.footprint),
        "seconds": result.seconds,
    }


def table(size: str, results: Mapping[str, Result], missing: Sequence[str], against: str) -> str:
    """Lay out one parameter set in Markdown.

    Args:
        size: Name of the parameter set.
        results: Measurements by the name of the contestant.
        missing: Contestants that are not installed.
        against: Whose times the ratios refer to.
    """
    reference = results[against].seconds
    rounds = len(reference)
    lines = [
        f"### {size}: {SIZES[size].description} ({rounds} round{'s' if rounds > 1 else ''})",
        "",
        _HEADER.format(against=against),
        *(f"| {name} | {_cells(result, reference)} |" for name, result in results.items()),
        *(f"| {name} | not installed |" + " |" * 8 for name in missing),
    ]
    return "\n".join(lines) + "\n"


def _cells(result: Result, reference: Sequence[float]) -> str:
    taken = result.footprint
    return " | ".join(
        (
            f"{result.median * 1e3:.2f}",
            f"{result.p10 * 1e3:.2f}",
            f"{ratio(result.seconds, reference):.2f}",
            f"{taken.state_bytes / taken.parameters:.2f}",
            f"{taken.extra_bytes / taken.parameters:.2f}",
            f"{taken.operations} ({taken.views})",
            str(taken.products),
            f"{taken.flops / 1e9:.2f}",
            f"{taken.elements / taken.parameters:.1f}",
        )
    )


def claim(folder: Path) -> None:
    """Make the folder ready for a record, before anything is measured.

    Raises:
        RecordError: If it cannot be written, or holds a record already.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any((folder / name).exists() for name in (RECORD, TABLE)):
            raise RecordError(f"{folder} holds a record already; choose another place with --out")
        if not os.access(folder, os.W_OK):
            raise PermissionError(None, "Permission denied")
    except OSError as error:
        raise RecordError(
            f"cannot write a record in {folder}: {error.strerror}; choose another place with --out"
        ) from error


def write(folder: Path, content: Mapping[str, Any], tables: Sequence[str]) -> None:
    """Write both files, each whole or not at all; what an earlier call wrote is replaced."""
    files = {RECORD: json.dumps(content, indent=1, allow_nan=False) + "\n", TABLE: "\n".join(tables)}
    for name, text in files.items():
        with replacing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
