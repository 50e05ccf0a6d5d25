"""The parts, in their order, and how long each may take."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "records" / "gpu"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Part:
    """A program of its own, so that nothing that happens to it reaches the others.

    Attributes:
        name: Of its record, and for `--parts`.
        title: What it does.
        module: What `python -m` runs.
        share: Of the whole time; the last part takes what is left.
    """

    name: str
    title: str
    module: str
    share: float


PARTS = (
    Part("checks", "tests that want a GPU", "benchmarks.gpu.checks", 0.2),
    Part("steps", "the optimizer step against the others", "benchmarks.gpu.steps", 0.26),
    Part("pretraining", "llama-124m, compiled, in bfloat16", "benchmarks.gpu.pretraining", 0.2),
    Part("images", "WRN-16-8 and ResNet-50", "benchmarks.gpu.images", 0.1),
    Part("anytime", "a 30 M Llama at several horizons", "benchmarks.gpu.anytime", 0.24),
)


def limit(parts: Sequence[Part], index: int, *, whole: float, left: float) -> float:
    """Return how many seconds a part may take.

    Args:
        parts: Those that run.
        index: Which of them it is; the last one takes what is left.
        whole: Seconds that all of them may take.
        left: Seconds that are left of these.
    """
    if index == len(parts) - 1:
        return left
    return min(left, whole * parts[index].share / sum(part.share for part in parts))
