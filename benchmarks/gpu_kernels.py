"""Check and time the fused move on a CUDA GPU.

    python benchmarks/gpu_kernels.py --out records/gpu/kernels.json

First the kernel and its plain-torch twin are compared with float64, on random inputs drawn anew in every
run; if the kernel is wrong the program ends there, with status 1. Then both are timed: "eager" as Python
calls them, "graph" captured in a CUDA graph and replayed, which is the device's time alone. The twin moves
the whole list with torch's foreach operations, as the optimizer does without the kernel. A time is the median
of `triton.testing.do_bench`, which empties the cache before each repetition; everything is timed twice. Rates
come from graph times, and shares are of what this machine reached on a large copy.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amuse_lab import environment
from amuse_optim.averaging import StepNumbers, advance_
from amuse_optim.kernels import available
from amuse_optim.schedule import DecayAt

MOVE = {"lr": 0.01, "weight_decay": 0.1, "beta": 0.75, "c": 0.001, "beta_next": 0.75}
SCALE = 2.0
VECTORS = 300

UPDATES = (torch.bfloat16, torch.float32)
MOVE_LIMIT = 1e-6  # relative error in the Frobenius norm that rounding explains


@dataclass(frozen=True)
class Shape:
    """A stack of equally shaped matrices."""

    matrices: int
    rows: int
    cols: int

    def __str__(self) -> str:
        stack = f"{self.matrices} x " if self.matrices > 1 else ""
        return f"{stack}{self.rows}x{self.cols}"

    @property
    def entries(self) -> int:
        """How many numbers it has."""
        return self.matrices * self.rows * self.cols


SHAPES = (
    Shape(1, 768, 768),
    Shape(1, 768, 2304),
    Shape(1, 2048, 2048),
    Shape(1, 2048, 5632),
    Shape(64, 256, 256),
)


@dataclass(frozen=True)
class Check:
    """The kernel's and its twin's relative error against float64, in the Frobenius norm."""

    of: str
    error: float
    plain_error: float
    limit: float

    @property
    def passed(self) -> bool:
        """NaN does not pass."""
        return self.error <= self.limit


@dataclass(frozen=True)
class Times:
    """Medians in milliseconds, one for each time it was measured."""

    eager: list[float]
    graph: list[float]

    @property
    def milliseconds(self) -> float:
        """The device's time."""
        return statistics.mean(self.graph)


Timer = Callable[[Callable[[], object]], Times]


@dataclass(frozen=True)
class Rates:
    """The best this machine does."""

    copy_bytes_per_second: float
    flops_per_second: float


@dataclass(frozen=True)
class Row:
    """The move of one list, by the kernel and by its twin.

    Args:
        of: What is moved.
        bytes: What the kernel reads and writes, by which the rate is counted.
        ceiling: The rate of a copy, in bytes per second.
        times: The kernel's.
        plain: The twin's.
    """

    of: str
    bytes: int
    ceiling: float
    times: Times
    plain: Times

    @property
    def rate(self) -> float:
        """The kernel's, in bytes per second."""
        return self.bytes / self.times.milliseconds * 1e3


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float(torch.linalg.vector_norm(found.double() - exact) / torch.linalg.vector_norm(exact))


def checks(sizes: Sequence[int], device: torch.device) -> Iterable[Check]:
    """Compare the fused move with float64, for every kind of update and decay."""
    from amuse_optim.kernels import fused

    places: tuple[DecayAt, DecayAt] = ("z", "y")
    for dtype in UPDATES:
        for at in places:
            numbers = StepNumbers(decay_at=at, **MOVE)
            y, z, d = ([torch.randn(size, device=device) for size in sizes] for _ in range(3))
            d = [each.to(dtype) for each in d]
            versions = [
                [[each.to(kind, copy=True) for each in tensors] for tensors in (y, z)]
                for kind in (torch.float64, torch.float32)
            ]
            for moved_y, moved_z in versions:
                advance_(moved_y, moved_z, d, SCALE, numbers)
            fused.advance_(y, z, d, SCALE, numbers)
            exact, twin, found = (torch.cat([*ys, *zs]) for ys, zs in (*versions, (y, z)))
            errors = relative_error(found, exact), relative_error(twin, exact)
            yield Check(f"{len(sizes)} tensors, d {_name(dtype)}, decay at {at}", *errors, MOVE_LIMIT)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measured_rates(device: torch.device, timer: Timer, *, copied: int, side: int) -> Rates:
    """Measure a copy of so many bytes, and a bfloat16 product of two random square matrices."""
    source = torch.randint(0, 255, (copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = timer(lambda: target.copy_(source))
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = timer(lambda: torch.mm(left, right))
    return Rates(2 * copied / copy.milliseconds * 1e3, 2 * side**3 / product.milliseconds * 1e3)


def move_row(
    name: str, sizes: Sequence[int], dtype: torch.dtype, device: torch.device, timer: Timer, rates: Rates
) -> Row:
    """Time the move of a list of parameters with updates in `dtype`."""
    from amuse_optim.kernels import fused

    y, z = ([torch.randn(size, device=device) for size in sizes] for _ in range(2))
    d = [torch.randn(size, device=device).to(dtype) for size in sizes]
    numbers = StepNumbers(decay_at="z", **MOVE)
    return Row(
        f"{name}, d {_name(dtype)}",
        sum(sizes) * (4 * 4 + dtype.itemsize),
        rates.copy_bytes_per_second,
        timer(lambda: fused.advance_(y, z, d, SCALE, numbers)),
        timer(lambda: advance_(y, z, d, SCALE, numbers)),
    )


def move_lists(shapes: Sequence[Shape], entries: int) -> dict[str, list[int]]:
    """Lists of sizes: each shape as often as `entries` hold it, and a list of many vectors."""
    lists = {}
    for shape in shapes:
        count = max(1, entries // shape.entries)
        lists[f"{count} of {shape}"] = [shape.entries] * count
    return lists | {f"{VECTORS} of 768": [768] * VECTORS}


def on_gpu(function: Callable[[], object]) -> Times:
    """Time a function on the current CUDA device."""
    from triton.testing import do_bench

    function()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return Times(
        *([do_bench(each, return_mode="median") for _ in range(2)] for each in (function, graph.replay))
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out columns, the first to the left and the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def table_of_checks(checks: Iterable[Check]) -> str:
    rows = []
    for check in checks:
        errors = [f"{value:.1e}" for value in (check.error, check.plain_error, check.limit)]
        rows.append([check.of, *errors, "" if check.passed else "WRONG"])
    return table(["move of", "error", "torch's", "limit", ""], rows)


def table_of_rows(rows: Iterable[Row]) -> str:
    header = ["move of", "graph ms", "eager ms", "GB/s", "of best", "torch ms", "eager", "speedup"]
    return table(
        header,
        [
            [
                row.of,
                f"{row.times.milliseconds:.4f}",
                f"{statistics.mean(row.times.eager):.4f}",
                f"{row.rate / 1e9:.1f}",
                f"{row.rate / row.ceiling:.0%}",
                f"{row.plain.milliseconds:.4f}",
                f"{statistics.mean(row.plain.eager):.4f}",
                f"{row.plain.milliseconds / row.times.milliseconds:.2f}",
            ]
            for row in rows
        ],
    )


def largest_spread(rows: Iterable[Row]) -> float:
    """The largest ratio of two measurements of one thing, less 1."""
    times = [times for row in rows for times in (row.times, row.plain)]
    return max(max(each.graph) / min(each.graph) for each in times) - 1.0


def machine(device: torch.device) -> dict[str, Any]:
    """Describe where this ran."""
    described = environment.describe(device=device, seed=torch.initial_seed())
    if device.type == "cuda":
        import triton

        properties = torch.cuda.get_device_properties(device)
        described["gpu"] = {
            "capability": torch.cuda.get_device_capability(device),
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "triton": triton.__version__,
        }
    return described


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(record, indent=2) + "\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def run(
    device: torch.device,
    timer: Timer,
    out: Path | None,
    *,
    shapes: Sequence[Shape] = SHAPES,
    entries: int = 2**26,
    copied: int = 2**31,
    side: int = 8192,
) -> int:
    """Check, time, print, and write the record.

    Args:
        device: Where the kernel runs.
        timer: How it is timed.
        out: Where the record goes, if anywhere.
        shapes: Of the parameters.
        entries: About how many of their entries are moved.
        copied: Bytes of the copy that stands for the best bandwidth.
        side: Rows of the product that stands for the best arithmetic.

    Returns:
        The exit status: 0, or 1 if the kernel is wrong.
    """
    record: dict[str, Any] = {"machine": machine(device)}
    sizes = [1, 0, 1023, 1024, 1025, *(shape.entries for shape in shapes)]
    found = list(checks(sizes, device))
    record["checks"] = [asdict(check) | {"passed": check.passed} for check in found]
    print(table_of_checks(found))
    wrong = [check for check in found if not check.passed]
    if not wrong:
        rates = measured_rates(device, timer, copied=copied, side=side)
        rows = [
            move_row(name, sizes, dtype, device, timer, rates)
            for name, sizes in move_lists(shapes, entries).items()
            for dtype in UPDATES
        ]
        record |= {"rates": asdict(rates), "moves": [asdict(row) for row in rows]}
        print(f"\ncopy: {rates.copy_bytes_per_second / 1e9:.1f} GB/s\n")
        print(table_of_rows(rows))
        print(f"\nTwo measurements of one thing differ by at most {largest_spread(rows):.0%}.")
    if out is not None:
        write(out, record)
    if wrong:
        print(f"\n{len(wrong)} of {len(found)} checks failed; nothing was timed", file=sys.stderr)
    return 1 if wrong else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the record goes, as JSON")
    given = parser.parse_args(arguments)
    device = torch.device("cuda")
    if not torch.cuda.is_available() or not available(device):
        print("gpu_kernels: needs a CUDA GPU and triton, and finds none here", file=sys.stderr)
        return 2
    if given.out is not None:
        if given.out.is_dir():
            parser.error(f"argument --out: must be a file, got the folder {given.out}")
        given.out.parent.mkdir(parents=True, exist_ok=True)
    return run(torch.device("cuda", torch.cuda.current_device()), on_gpu, given.out)


if __name__ == "__main__":
    sys.exit(main())
