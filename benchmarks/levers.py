"""What each part of the fast step gives: the step with that part switched off, over the step as it is.

    python benchmarks/levers.py [--sizes 1m 7m 30m] [--rounds 9] [--out records/levers/DATE.json]

One thread; all variants of a size are interleaved round by round, each on parameters of its own, so that
every step finds the caches cold. Medians of the rounds' ratios.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from amuse_lab import environment
from amuse_lab.bench.sizes import SIZES, gradients
from amuse_optim import AMUSE, param_groups

BUCKETS, ORTHOGONALIZE = (sys.modules[f"amuse_optim.{name}"] for name in ("buckets", "orthogonalize"))

# Name: options of the optimizer, and constants of a module with other values.
VARIANTS: dict[str, tuple[dict[str, Any], dict[tuple[Any, str], Any]]] = {
    "as it is": ({}, {}),
    "one parameter at a time (foreach=False)": ({"foreach": False}, {}),
    "no chunks": ({}, {(BUCKETS, "CHUNK_ENTRIES_ON_CPU"): 2**40}),
    "chunks of 2^14": ({}, {(BUCKETS, "CHUNK_ENTRIES_ON_CPU"): 2**14}),
    "chunks of 2^18": ({}, {(BUCKETS, "CHUNK_ENTRIES_ON_CPU"): 2**18}),
    "one matrix at a time": ({}, {(ORTHOGONALIZE, "BATCH_ENTRIES_ON_CPU"): 1}),
    "batches of 2^17": ({}, {(ORTHOGONALIZE, "BATCH_ENTRIES_ON_CPU"): 2**17}),
    "batches of 2^21": ({}, {(ORTHOGONALIZE, "BATCH_ENTRIES_ON_CPU"): 2**21}),
    "no Gram form": ({}, {(ORTHOGONALIZE, "GRAM_RATIO"): 1e9}),
    "float32 products": ({"orthogonalize_dtype": torch.float32}, {}),
    "gradients not checked": ({"nonfinite": "ignore"}, {}),
    "polar_express": ({"orthogonalize": "polar_express"}, {}),
    "state in bfloat16 (lean)": ({"state_precision": "lean"}, {}),
}


@contextmanager
def constants(values: dict[tuple[Any, str], Any]) -> Iterator[None]:
    before = {(module, name): getattr(module, name) for module, name in values}
    for (module, name), value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)


def stepper(size: str, options: dict[str, Any]) -> Callable[[], None]:
    torch.manual_seed(0)
    model = SIZES[size].build()
    parameters = list(model.parameters())
    for parameter, gradient in zip(parameters, gradients(parameters, 0), strict=True):
        parameter.grad = gradient
    return AMUSE(param_groups(model), lr=1e-3, weight_decay=0.1, warmup_steps=2, **options).step


def measure(size: str, rounds: int) -> dict[str, list[float]]:
    steps = {name: stepper(size, options) for name, (options, _) in VARIANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for counted in [False] * 2 + [True] * rounds:
        for name, step in steps.items():
            with constants(VARIANTS[name][1]):
                started = time.perf_counter()
                step()
                elapsed = time.perf_counter() - started
            if counted:
                seconds[name].append(elapsed)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["1m", "7m", "30m"], choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = {size: measure(size, asked.rounds) for size in asked.sizes}
    print("| variant | " + " | ".join(found) + " |\n|---|" + "--:|" * len(found))
    for name in VARIANTS:
        ratios = (
            statistics.median(a / b for a, b in zip(times[name], times["as it is"], strict=True))
            for times in found.values()
        )
        print(f"| {name} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    if asked.out is not None:
        described = environment.describe(device=torch.device("cpu"), seed=0)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps({"environment": described, "seconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
