"""The tests that want a GPU, in groups: the optimizer on the device, then the Triton kernel.

With `--device cpu` these are their twins, and the kernel runs in Triton's interpreter.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.part import Part, main
from benchmarks.gpu.plan import ROOT
from benchmarks.gpu.reporting import FILE

GPU_TESTS = (
    "tests/amuse_optim/test_devices.py",
    "tests/amuse_optim/test_clock.py",
    "tests/amuse_lab/test_trainer.py",
)
KERNELS = "tests/amuse_optim/kernels"
RESERVE = 15.0  # seconds that the groups leave for their record


@dataclass(frozen=True)
class Group:
    """Tests that one pytest runs.

    Attributes:
        name: What the record calls it.
        arguments: Of pytest.
        variables: Of its environment.
    """

    name: str
    arguments: tuple[str, ...]
    variables: Mapping[str, str]


def groups(device: str, *, tiny: bool) -> list[Group]:
    """Return what is run on a device, in order."""
    if device == "cuda":
        on_gpu = {"TRITON_INTERPRET": "0"}
        cases = ("capture", "step", "fused", "benchmark")
        kernels = [Group(f"kernel: {case}", (f"{KERNELS}/cases_{case}.py",), on_gpu) for case in cases]
        return [Group("optimizer", ("-m", "gpu", *GPU_TESTS), on_gpu), *kernels]
    interpreted = {"TRITON_INTERPRET": "1"}
    cases = ("step",) if tiny else ("step", "fused", "benchmark")
    kernels = [Group(f"kernel: {case}", (f"{KERNELS}/cases_{case}.py",), interpreted) for case in cases]
    return [Group("optimizer", ("-m", "not gpu", GPU_TESTS[0]), {}), *kernels]


def run(group: Group, seconds: float) -> dict[str, Any]:
    """Run a group and return its counts, what did not pass and why, and whether it ended in time."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.jsonl"
        # Warnings are errors in the gate, whose versions are pinned; here they are whatever there is.
        options = ["-q", "-p", "no:cacheprovider", "-p", "benchmarks.gpu.reporting", "-W", "default"]
        command = [sys.executable, "-m", "pytest", *options, "--continue-on-collection-errors"]
        variables = {"TRITON_CACHE_DIR": folder, "OMP_NUM_THREADS": "1"} | dict(group.variables)
        try:
            done = subprocess.run(
                [*command, *group.arguments],
                cwd=ROOT,
                env=os.environ | variables | {FILE: str(report)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=seconds,
                check=False,
            )
            ended, output = True, done.stdout.strip().splitlines()
        except subprocess.TimeoutExpired:
            ended, output = False, []
        lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
    counts = Counter(line["outcome"] for line in lines)
    if not lines:
        raise RuntimeError(output[-1] if output else f"no test ended within {seconds:.0f} s")
    return {
        "passed": counts["passed"],
        "failed": counts["failed"],
        "skipped": counts["skipped"],
        "ended": ended,
        "not_passed": {line["test"]: line["reason"] for line in lines if line["outcome"] != "passed"},
        "slowest": max(lines, key=lambda line: line["seconds"]),
    }


def measure(part: Part) -> None:
    """Run the groups, as far as the time goes."""
    for group in groups(part.device.type, tiny=part.tiny):
        with part.trying(group.name):
            if part.left < 2 * RESERVE:
                raise TimeoutError("no time was left")
            part.add(group.name, **run(group, part.left - RESERVE))


if __name__ == "__main__":
    sys.exit(main(measure))
