"""What every part has: its arguments, its deadline, and its record, written anew after every result."""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from amuse_lab import environment
from benchmarks.gpu.runner import write


@dataclass
class Part:
    """One part under way.

    Attributes:
        device: What is measured.
        tiny: Whether everything is as small as it can be, to see that it works at all.
        seconds: How long it may take.
        out: The file of its record; None keeps none.
        started: When it began, of the monotonic clock.
        content: What the file holds.
    """

    device: torch.device
    tiny: bool
    seconds: float
    out: Path | None
    started: float = field(default_factory=time.monotonic)
    content: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.content = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "tiny": self.tiny,
            "environment": environment.describe(device=self.device, seed=0),
            "results": [],
        }

    @property
    def left(self) -> float:
        """Seconds left of its time."""
        return self.seconds - (time.monotonic() - self.started)

    def tell(self, **values: Any) -> None:
        """Add values that are no results to the record."""
        self.content |= values
        self._write()

    def add(self, what: str, **values: Any) -> None:
        """Add a result to the record, and print it.

        Args:
            what: What it is of.
            values: What was found.
        """
        self.content["results"].append({"what": what} | values)
        self._write()
        numbers = (f"{name} {_short(value)}" for name, value in values.items() if _is_small(value))
        print(f"  {what}: {', '.join(numbers)}", flush=True)

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Record what is raised inside in place of a result, and go on; then free what was used."""
        try:
            yield
        except Exception as error:
            self.add(what, failure=f"{type(error).__name__}: {error}".split("\n")[0][:500])
        finally:
            free(self.device)

    def _write(self) -> None:
        if self.out is not None:
            write(self.out, self.content)


def _is_small(value: Any) -> bool:
    return isinstance(value, str | int | float) or value is None


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def free(device: torch.device) -> None:
    """Give back the memory of a GPU that nothing uses any more, and measure its peak anew."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def main(measure: Callable[[Part], None]) -> int:
    """Run a part as a program of its own.

    Args:
        measure: What it does.

    Returns:
        The exit status: 1 if it had no result but failures.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.device == "cpu":
        torch.set_num_threads(1)  # other programs may want the cores
    part = Part(torch.device(given.device), given.tiny, given.seconds, given.out)
    measure(part)
    part.tell(complete=True)
    results = part.content["results"]
    if not any("failure" not in result for result in results):
        reasons = [result["failure"] for result in results]
        print(reasons[0] if reasons else "nothing was measured", file=sys.stderr)
        return 1
    return 0
