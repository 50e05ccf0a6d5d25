"""Check and time the Triton kernels on a CUDA GPU.

    python benchmarks/gpu_kernels.py --out records/gpu/kernels.json

First every kernel and its plain-torch twin are compared with float64, on random inputs drawn anew in every
run; if a kernel is wrong the program ends there, with status 1. Then both are timed: "eager" as Python calls
them, "graph" captured in a CUDA graph and replayed, which is the device's time alone. A time is the median of
`triton.testing.do_bench`, which empties the cache before each repetition; everything is timed twice. Rates
come from graph times, and shares are of what this machine reached on a large copy and on a large product. The
work of a symmetric product is counted in full, so a kernel that computes half of it can pass 100 %.
"""

import argparse
import json
import math
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
from amuse_optim.kernels import available, plain
from amuse_optim.orthogonalize import coefficients
from amuse_optim.schedule import DecayAt

STEPS = 5
MOVE = {"lr": 0.01, "weight_decay": 0.1, "beta": 0.75, "c": 0.001, "beta_next": 0.75}
SCALE = 2.0
VECTORS = 300

# Relative errors in the Frobenius norm that rounding explains: of the result to bfloat16 (the interpreter
# cuts, which is up to twice as much), of sums in float32.
LIMITS = {torch.bfloat16: 2.0**-7, torch.float32: 1e-5}
MOVE_LIMIT = 1e-6


@dataclass(frozen=True)
class Shape:
    """A stack of equally shaped matrices, no taller than wide."""

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

    @property
    def flops(self) -> dict[str, int]:
        """Multiplications and additions of each operation, symmetric products in full."""
        square = 2 * self.matrices * self.rows**2
        gram, polynomial = square * self.cols, square * self.rows
        return {"gram": gram, "polynomial": polynomial, "five steps": STEPS * (2 * gram + polynomial)}


SHAPES = (
    Shape(1, 768, 768),
    Shape(1, 768, 2304),
    Shape(1, 2048, 2048),
    Shape(1, 2048, 5632),
    Shape(64, 256, 256),
)


@dataclass(frozen=True)
class Check:
    """A kernel's and its twin's relative error against float64, in the Frobenius norm."""

    kernel: str
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
    """One operation on one input, by a kernel and by its twin.

    Args:
        kernel: What is computed.
        of: On what.
        amount: Bytes moved or operations, by which the rate is counted.
        ceiling: The best rate, in amount per second.
        times: The kernel's.
        plain: The twin's.
        tilings: Other tilings' times by name, where there are any.
    """

    kernel: str
    of: str
    amount: int
    ceiling: float
    times: Times
    plain: Times
    tilings: dict[str, Times]

    @property
    def rate(self) -> float:
        """The kernel's, in amount per second."""
        return self.amount / self.times.milliseconds * 1e3

    def best_tiling(self) -> str:
        """The fastest tiling, with its time over that of the one the library chose."""
        if not self.tilings:
            return ""
        name = min(self.tilings, key=lambda name: self.tilings[name].milliseconds)
        return f"{name} ({self.tilings[name].milliseconds / self.times.milliseconds:.2f})"


def five_steps(products: Any, x: Tensor) -> Tensor:
    """Five steps X <- (a I + b G + c G G) X of the quintic with `gram` and `polynomial` of `products`."""
    for a, b, c in coefficients("quintic", STEPS):
        x = torch.bmm(products.polynomial(products.gram(x), a=a, b=b, c=c), x)
    return x


def normalized(shape: Shape, device: torch.device) -> Tensor:
    """Random matrices of norm 1, in float32."""
    x = torch.randn(shape.matrices, shape.rows, shape.cols, device=device)
    return x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float(torch.linalg.vector_norm(found.double() - exact) / torch.linalg.vector_norm(exact))


def product_checks(shape: Shape, device: torch.device) -> Iterable[Check]:
    """Compare the symmetric products with float64, in both precisions."""
    from amuse_optim.kernels import symmetric

    (a, b, c), *_ = coefficients("quintic", 1)
    for dtype, limit in LIMITS.items():
        x = normalized(shape, device).to(dtype)
        g = plain.gram(x)
        operations: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
            "gram": lambda products, x, _: products.gram(x),
            "gram, tall": lambda products, x, _: products.gram(x.mT.contiguous().mT),
            "polynomial": lambda products, _, g: products.polynomial(g, a=a, b=b, c=c),
            "commuting product": lambda products, _, g: products.commuting_product(g, g),
        }
        for name, operation in operations.items():
            exact = operation(plain, x.double(), g.double())
            torch.full_like(g, math.nan)  # freed at once: what the kernel writes into is NaN before
            found = operation(symmetric, x, g)
            errors = relative_error(found, exact), relative_error(operation(plain, x, g), exact)
            yield Check(name, f"{shape}, {_name(dtype)}", *errors, limit)


def move_checks(sizes: Sequence[int], device: torch.device) -> Iterable[Check]:
    """Compare the fused move with float64, for every kind of direction and decay."""
    from amuse_optim.kernels.averaging import AveragingPlan

    plan = AveragingPlan(sizes, device)
    for dtype in LIMITS:
        places: tuple[DecayAt, DecayAt] = ("z", "y")
        for at in places:
            y, z, d = ([torch.randn(size, device=device) for size in sizes] for _ in range(3))
            d = [each.to(dtype) for each in d]
            versions = [
                [[each.to(kind, copy=True) for each in tensors] for tensors in (y, z)]
                for kind in (torch.float64, torch.float32)
            ]
            for moved_y, moved_z in versions:
                advance_(moved_y, moved_z, d, SCALE, StepNumbers(decay_at=at, **MOVE))
            plan.advance_(y, z, d, _move_coefficients(device), at=at)
            exact, twin, found = (torch.cat([*ys, *zs]) for ys, zs in (*versions, (y, z)))
            errors = relative_error(found, exact), relative_error(twin, exact)
            yield Check("move", f"{len(sizes)} tensors, d {_name(dtype)}, decay at {at}", *errors, MOVE_LIMIT)


def _move_coefficients(device: torch.device) -> Tensor:
    from amuse_optim.kernels.averaging import MoveCoefficients

    lr, decay = MOVE["lr"], MOVE["lr"] * MOVE["weight_decay"]
    rest = {name: MOVE[name] for name in ("beta", "c", "beta_next")}
    return MoveCoefficients(rate=lr * SCALE, decay=decay, **rest).on(device)


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


def product_rows(shape: Shape, device: torch.device, timer: Timer, rates: Rates) -> Iterable[Row]:
    """Time the products in bfloat16; the first two in every tiling."""
    from amuse_optim.kernels import symmetric

    x = normalized(shape, device).bfloat16()
    g = plain.gram(x)
    (a, b, c), *_ = coefficients("quintic", 1)
    operations: dict[str, Callable[..., Tensor]] = {
        "gram": lambda products, **options: products.gram(x, **options),
        "polynomial": lambda products, **options: products.polynomial(g, a=a, b=b, c=c, **options),
        "five steps": lambda products: five_steps(products, x),
    }
    for name, operation in operations.items():
        tilings = symmetric.TILINGS if name != "five steps" else ()
        yield Row(
            name,
            str(shape),
            shape.flops[name],
            rates.flops_per_second,
            timer(lambda operation=operation: operation(symmetric)),
            timer(lambda operation=operation: operation(plain)),
            {
                f"{t.side}/{t.depth} w{t.warps} s{t.stages}": timer(
                    lambda operation=operation, t=t: operation(symmetric, tiling=t)
                )
                for t in tilings
            },
        )


def move_row(
    name: str, sizes: Sequence[int], dtype: torch.dtype, device: torch.device, timer: Timer, rates: Rates
) -> Row:
    """Time the fused move of a list of parameters with directions in `dtype`."""
    from amuse_optim.kernels.averaging import AveragingPlan

    y, z = ([torch.randn(size, device=device) for size in sizes] for _ in range(2))
    d = [torch.randn(size, device=device).to(dtype) for size in sizes]
    plan = AveragingPlan(sizes, device)
    coefficients = _move_coefficients(device)

    def one_by_one() -> None:
        for each in zip(y, z, d, strict=True):
            advance_(*([tensor] for tensor in each), SCALE, StepNumbers(decay_at="z", **MOVE))

    return Row(
        "move",
        f"{name}, d {_name(dtype)}",
        sum(sizes) * (4 * 4 + dtype.itemsize),
        rates.copy_bytes_per_second,
        timer(lambda: plan.advance_(y, z, d, coefficients, at="z")),
        timer(one_by_one),
        {},
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
    """Lay out columns, the first two to the left and the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def table_of_checks(checks: Iterable[Check]) -> str:
    rows = []
    for check in checks:
        errors = [f"{value:.1e}" for value in (check.error, check.plain_error, check.limit)]
        rows.append([check.kernel, check.of, *errors, "" if check.passed else "WRONG"])
    return table(["kernel", "of", "error", "torch's", "limit", ""], rows)


def table_of_rows(rows: Iterable[Row], unit: str, size: float) -> str:
    """Lay out timings; rates in `unit`, which is `size` per second."""
    return table(
        [
            "kernel",
            "of",
            "graph ms",
            "eager ms",
            unit,
            "of best",
            "torch ms",
            "eager",
            "speedup",
            "best tiling",
        ],
        [
            [
                row.kernel,
                row.of,
                f"{row.times.milliseconds:.4f}",
                f"{statistics.mean(row.times.eager):.4f}",
                f"{row.rate / size:.1f}",
                f"{row.rate / row.ceiling:.0%}",
                f"{row.plain.milliseconds:.4f}",
                f"{statistics.mean(row.plain.eager):.4f}",
                f"{row.plain.milliseconds / row.times.milliseconds:.2f}",
                row.best_tiling(),
            ]
            for row in rows
        ],
    )


def largest_spread(rows: Iterable[Row]) -> float:
    """The largest ratio of two measurements of one thing, less 1."""
    times = [times for row in rows for times in (row.times, row.plain, *row.tilings.values())]
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
        device: Where the kernels run.
        timer: How they are timed.
        out: Where the record goes, if anywhere.
        shapes: Of the products.
        entries: About how many parameters are moved.
        copied: Bytes of the copy that stands for the best bandwidth.
        side: Rows of the product that stands for the best arithmetic.

    Returns:
        The exit status: 0, or 1 if a kernel is wrong.
    """
    record: dict[str, Any] = {"machine": machine(device)}
    sizes = [1, 0, 1023, 1024, 1025, *(shape.entries for shape in shapes)]
    checks = [check for shape in shapes for check in product_checks(shape, device)]
    checks += move_checks(sizes, device)
    record["checks"] = [asdict(check) | {"passed": check.passed} for check in checks]
    print(table_of_checks(checks))
    wrong = [check for check in checks if not check.passed]
    if not wrong:
        rates = measured_rates(device, timer, copied=copied, side=side)
        lists = move_lists(shapes, entries)
        moves = [
            move_row(name, sizes, dtype, device, timer, rates)
            for name, sizes in lists.items()
            for dtype in LIMITS
        ]
        products = [row for shape in shapes for row in product_rows(shape, device, timer, rates)]
        record |= {
            "rates": asdict(rates),
            "moves": [asdict(row) for row in moves],
            "products": [asdict(row) for row in products],
        }
        print(f"\ncopy: {rates.copy_bytes_per_second / 1e9:.1f} GB/s", end=", ")
        print(f"bfloat16 product: {rates.flops_per_second / 1e12:.1f} TFLOP/s\n")
        print(table_of_rows(moves, "GB/s", 1e9), end="\n\n")
        print(table_of_rows(products, "TFLOP/s", 1e12))
        print(f"\nTwo measurements of one thing differ by at most {largest_spread([*moves, *products]):.0%}.")
    if out is not None:
        write(out, record)
    if wrong:
        print(f"\n{len(wrong)} of {len(checks)} checks failed; nothing was timed", file=sys.stderr)
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
