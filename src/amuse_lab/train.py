"""One loop for every task and every optimizer."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amuse_lab import environment, sinks
from amuse_lab.config import RunConfig
from amuse_lab.errors import ConfigError, DataError, MissingError, RecordError
from amuse_lab.files import locked
from amuse_lab.interrupts import Interrupt
from amuse_lab.parallel import SHARDED_OPTIMIZERS, check_threads, init_distributed
from amuse_lab.progress import Progress, Silence
from amuse_lab.records import RunFolder
from amuse_lab.resume import newest_unfinished
from amuse_lab.run import Run
from amuse_lab.trainer import Trainer


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        folder: Path of the run folder.
        summary: What its summary.json holds.
        measure: Which value of the summary the task is judged by; `<measure>_y` is the same at y.
        unit: Which value of the summary says how much data was seen.
        signal: The number of the signal that interrupted it; 0 if none did.
    """

    folder: Path
    summary: dict[str, Any]
    measure: str
    unit: str
    signal: int


def train(
    config: RunConfig, progress: Progress, *, resume: Path | None = None, newest: bool = False
) -> Outcome:
    """Run a config from its beginning, or from where a run folder stands, to its end.

    Ctrl-C and SIGTERM finish the current step and save; the outcome's status is then "interrupted". Under
    torchrun every process calls this, and all of them stop at the same step.

    Args:
        config: Settings of the run.
        progress: Where the leading process shows it.
        resume: The run folder to go on with, from its newest checkpoint that is intact.
        newest: Go on with the newest unfinished run of this config, if there is one. Of several processes
            that ask for the same at once, one runs.

    Raises:
        RequestError: If the request cannot be met; nothing was created then.
        TrainingError: If a loss or gradient is not finite; the run folder says "failed" then.
    """
    sinks.check_installed(config.sinks)
    sharded = config.parallel == "fsdp"
    if sharded and config.optimizer.name not in SHARDED_OPTIMIZERS:
        raise ConfigError(
            f"parallel must be ddp for {config.optimizer.name}, got 'fsdp': of its sharded parameters only "
            f"{', '.join(SHARDED_OPTIMIZERS)} are known to take the same steps"
        )
    try:
        config.task.check(config.steps)
    except DataError as error:
        raise MissingError(str(error)) from error
    if config.threads is not None:
        check_threads(config.threads)
        torch.set_num_threads(config.threads)
    with init_distributed(config.device, sharded=sharded) as (processes, device):
        trainer = Trainer.build(config, processes, device)
        described = environment.describe(device=device, seed=config.seed, world_size=processes.world_size)
        with Interrupt(patient=processes.world_size > 1) as interrupt:
            folder = None
            if processes.is_main:
                resume, folder = _opened(config, described, resume, newest=newest)
            try:
                resume, path = processes.broadcast((resume, folder.path if folder else None))
                assert path is not None, "the leading process has a folder"
                run = Run(
                    config,
                    trainer,
                    folder or RunFolder(path),
                    processes,
                    interrupt,
                    progress if processes.is_main else Silence(),
                )
                if resume is not None:
                    run.restore(described)
                note = trainer.task.note(config.steps)
                if note is not None:
                    run.progress.note(note)
                run.complete()
            finally:
                if folder:
                    folder.close()
    return Outcome(path, run.summary, trainer.task.summarized_as, trainer.task.unit, run.signal)


def _opened(
    config: RunConfig, described: dict[str, Any], resume: Path | None, *, newest: bool
) -> tuple[Path | None, RunFolder]:
    """The folder of the run to go on with, if it is one, and the run folder, open."""
    place = config.runs / config.recipe
    try:
        with locked(place) if newest else nullcontext():
            resume = newest_unfinished(config) if newest else resume
            return resume, RunFolder.create(config, described) if resume is None else RunFolder.open(resume)
    except OSError as error:
        raise RecordError(f"cannot write {place}: {error.strerror}; --runs takes another place") from error
