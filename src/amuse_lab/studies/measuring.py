"""One run of a study: train, evaluate at the readouts, and keep what is worth keeping."""

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from amuse_lab import checkpoint
from amuse_lab.config import RunConfig
from amuse_lab.environment import describe
from amuse_lab.errors import TrainingError
from amuse_lab.interrupts import Interrupt
from amuse_lab.parallel import ALONE, usable
from amuse_lab.studies.readouts import Readouts
from amuse_lab.studies.study import Record, Request, Study
from amuse_lab.trainer import Trainer

_TRAINING_POINTS = 60  # means of the training loss that are kept of a run
_DIGITS = 6  # of what is measured


def surroundings(run: RunConfig) -> dict[str, Any]:
    """Describe what a run like this one runs on here: the environment that records name by its hash."""
    described = describe(device=usable(run.device), seed=0)
    del described["seed"], described["command"]  # another one's for each run
    return described | {"threads": run.threads or torch.get_num_threads()}


def _alone(config: RunConfig) -> Trainer:
    """Build a trainer on one process."""
    return Trainer.build(config, ALONE, usable(config.device))


def measure(
    study: Study,
    request: Request,
    folder: Path,
    *,
    environment: str = "",
    alive: Callable[[], None] = lambda: None,
    build: Callable[[RunConfig], Trainer] = _alone,
) -> Record:
    """Make a run.

    Args:
        study: Study that the run is of; it says what is trained, and when it is evaluated.
        request: The run to make: optimizer, settings, seed, number of steps and readouts.
        folder: Where the run is saved when Ctrl-C or SIGTERM interrupts it, and goes on from the next time.
        environment: Hash of the environment, for the record.
        alive: Called after each training step, to tell other workers that this one still runs.
        build: Makes the trainer, at its beginning, on one process. Who makes many runs of one model can so
            compile it once.

    Returns:
        The record; of a run whose loss was not finite up to there.

    Raises:
        RequestError: If the data is missing or the device cannot be used.
        KeyboardInterrupt: After a Ctrl-C or SIGTERM, once the step under way is done and the run is saved.
    """
    config = request.config(study)
    config.task.check(config.steps)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    trainer = build(config)
    readouts = Readouts(trainer, request.readouts, study.kept)
    root = folder / request.key(study)
    run = _Run(trainer, readouts)
    failure = None
    points = request.wanted_at(study)
    run.restore(root, points)
    with Interrupt(patient=True) as interrupt:
        try:
            while trainer.step < request.steps:
                run.advance()
                if trainer.step in points:
                    run.evaluate()
                alive()
                if interrupt.signal:
                    run.save(root)
                    break
        except TrainingError as error:
            failure = str(error)
    if interrupt.signal:
        raise KeyboardInterrupt
    shutil.rmtree(root, ignore_errors=True)
    return Record(
        key=request.key(study),
        entry=request.entry,
        point=dict(request.point),
        seed=request.seed,
        steps=trainer.step,
        scheduled=study.entry(request.entry).scheduled,
        readings=run.readings,
        training=_thinned(run.losses),
        seconds=round(run.seconds, 2),
        environment=environment,
        failure=failure,
    )


class _Run:
    """A run under way: its trainer, its readouts, and what was found so far."""

    def __init__(self, trainer: Trainer, readouts: Readouts) -> None:
        self.trainer = trainer
        self.readouts = readouts
        self.readings: dict[int, dict[str, dict[str, float]]] = {}
        self.losses: list[float] = []
        self.seconds = 0.0

    def advance(self) -> None:
        started = time.perf_counter()
        self.trainer.advance(look=False)
        self.seconds += time.perf_counter() - started
        self._take_losses()
        self.readouts.update()

    def _take_losses(self) -> None:
        self.losses += self.trainer.losses
        self.trainer.losses.clear()

    def evaluate(self) -> None:
        started = time.perf_counter()
        self.trainer.look_at_losses()  # those of the steps since the last evaluation, on a GPU
        self._take_losses()
        self.readings[self.trainer.step] = {
            readout: {
                name: float(f"{value:.{_DIGITS}g}") for name, value in values.items() if math.isfinite(value)
            }
            for readout, values in self.readouts.evaluate().items()
        }
        self.seconds += time.perf_counter() - started

    def save(self, root: Path) -> None:
        readings = [[step, values] for step, values in self.readings.items()]
        state = {
            "trainer": self.trainer.state_dict(),
            "readouts": self.readouts.state_dict(),
            "run": {"readings": readings, "losses": self.losses, "seconds": self.seconds},
        }
        checkpoint.save(root, self.trainer.step, state, ALONE)
        checkpoint.prune(root, keep_last=1, keep_every=None)

    def restore(self, root: Path, points: Collection[int]) -> None:
        """Go on from the newest intact checkpoint, if there is one with the averages and readings wanted."""
        with contextlib.suppress(StopIteration):
            path = next(checkpoint.intact(root, lambda _: None))
            state: Mapping[str, Any] = checkpoint.load(path, ALONE, device=self.trainer.device)
            readings = dict(state["run"]["readings"])
            due = {point for point in points if point <= state["trainer"]["step"]}
            if not self.readouts.fits(state["readouts"], readings, due):
                return
            self.trainer.load_state_dict(state["trainer"])
            self.readouts.load_state_dict(state["readouts"])
            self.readings = readings
            self.losses = list(state["run"]["losses"])
            self.seconds = state["run"]["seconds"]


def _thinned(losses: list[float]) -> tuple[tuple[int, float], ...]:
    """Means of the training loss over stretches that grow with the step, each with its last step."""
    edges = sorted({round(len(losses) ** (n / _TRAINING_POINTS)) for n in range(_TRAINING_POINTS + 1)})
    found = []
    for start, end in zip((0, *edges), edges, strict=False):
        stretch = losses[start:end]
        if stretch:
            found.append((end, float(f"{sum(stretch) / len(stretch):.5g}")))
    return tuple(found)
