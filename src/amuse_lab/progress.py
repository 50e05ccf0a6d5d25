"""What a person sees while a run goes on, and at its end."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from amuse_lab.recipes.reference import Reference


@dataclass(frozen=True)
class Status:
    """Where a run stands.

    Attributes:
        step: How many training steps have been taken, counted from the run's beginning.
        steps: Training steps in all.
        rate: Units per second of training time, since the previous logged line of training.
        unit: What `rate` counts, such as "tokens".
        seconds_left: Estimated time to the end, evaluations included, in seconds.
        at_x: Values of the latest evaluation at x by name; empty before the first one.
        at_y: Values of the latest evaluation at y by name.
        telemetry: Telemetry of the optimizer, with "lr".
        evaluated: Whether this step was evaluated.
    """

    step: int
    steps: int
    rate: float
    unit: str
    seconds_left: float
    at_x: Mapping[str, float]
    at_y: Mapping[str, float]
    telemetry: Mapping[str, float]
    evaluated: bool

    def readings(self) -> Iterator[str]:
        """Yield what was measured, each as a short text."""
        if self.at_x:
            loss, *others = self.at_x.items()
            yield f"loss at x {loss[1]:.4f}"
            yield from (f"{value:.4f} {name.replace('_', ' ')}" for name, value in others)
        yield f"{self.rate:,.0f} {self.unit}/s"
        yield from (f"{name} {self.telemetry[name]:.3g}" for name in ("lr", "beta") if name in self.telemetry)

    def position(self) -> str:
        """The step, of how many."""
        return f"step {self.step}/{self.steps}"

    def time_left(self) -> str:
        """The estimate in hours, minutes and seconds."""
        return f"{timedelta(seconds=round(self.seconds_left))} left"


class Progress(Protocol):
    """Shows a run while it goes on."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, status: Status) -> None:
        """Show where the run stands."""

    def note(self, text: str) -> None:
        """Say something, in one line."""


class Silence:
    """Shows nothing: for all processes but the leading one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def show(self, status: Status) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


class PlainProgress(Silence):
    """One line per evaluation, for logs and pipes."""

    def show(self, status: Status) -> None:
        """Print a line if the step was evaluated."""
        if status.evaluated:
            print(status.position(), *status.readings(), status.time_left(), sep="  ", flush=True)

    def note(self, text: str) -> None:
        """Print it where errors go."""
        print(f"amuse-lab: {text}", file=sys.stderr, flush=True)


class LiveProgress:
    """A bar and the latest readings, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, status: Status) -> None:
        """Draw the bar and the readings again."""
        row = Table.grid(padding=(0, 1))
        bar = ProgressBar(status.steps, status.step, width=40)
        row.add_row(status.position(), bar, status.time_left())
        self._live.update(Group(row, Text(" · ".join(status.readings()))), refresh=True)

    def note(self, text: str) -> None:
        """Print it above the bar."""
        self._live.console.print(f"amuse-lab: {text}", markup=False, highlight=False, soft_wrap=True)


def progress_on(console: Console) -> Progress:
    """What suits the console: live on a terminal, plain lines elsewhere."""
    return LiveProgress(console) if console.is_terminal else PlainProgress()


def print_summary(
    console: Console,
    summary: Mapping[str, Any],
    *,
    measure: str,
    unit: str,
    lr: float,
    reference: Reference | None,
) -> None:
    """Print a finished run, beside the recorded results of its recipe.

    Args:
        console: Terminal or file to print to.
        summary: Content of the run's summary.json.
        measure: Which value of the summary the task is judged by, such as "bits_per_byte".
        unit: What the task counts, such as "tokens".
        lr: Peak learning rate of the run.
        reference: The recorded results, where the recipe has some.
    """
    table = Table()
    table.add_column(f"{measure.removeprefix('val_').replace('_', ' ')}, all validation data")
    for name in ("lr", "at x", "at y"):
        table.add_column(name, justify="right")
    at_x, at_y = (f"{summary[key]:.4f}" for key in (measure, f"{measure}_y"))
    table.add_row(f"{summary['optimizer']}, this run", f"{lr:g}", at_x, at_y, style="bold")
    if reference is not None:
        for result in reference.results:
            recorded = f"{result.optimizer}, recorded, {len(result.seeds)} seeds"
            table.add_row(recorded, f"{result.lr:g}", f"{result.mean:.4f} ± {result.spread:.4f}", "")
        table.caption = f"recorded with {reference.steps} steps: {reference.machine}"
    console.print(table)
    tested = [
        f"{name.removeprefix('test_')} {value:.4f}"
        for name, value in summary.items()
        if name.startswith("test_")
    ]
    if tested:
        console.print(f"test set, at x: {', '.join(tested)}", highlight=False)
    rate = summary[f"{unit}_per_second"]
    console.print(
        f"{summary['steps']:,} steps, {summary[unit]:,} {unit} in {summary['seconds']:.1f} s of training "
        f"({rate:,.0f} {unit}/s), {summary['evaluation_seconds']:.1f} s of evaluation",
        highlight=False,
        soft_wrap=True,
    )
