"""Makes the runs whose landscapes are recorded, live or from the checkpoints of a run folder."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from amuse_lab import checkpoint, resume
from amuse_lab.config import RunConfig, to_json
from amuse_lab.errors import RecordError, TrainingError, require
from amuse_lab.landscape.measuring import Measurement, Settings, measure
from amuse_lab.landscape.points import copied, trained
from amuse_lab.landscape.recorded import Recorded
from amuse_lab.landscape.river import River, RiverSettings, river_test
from amuse_lab.parallel import ALONE, usable
from amuse_lab.studies.measuring import surroundings
from amuse_lab.studies.readouts import PowerAverages
from amuse_lab.studies.records import environment_hash
from amuse_lab.trainer import Trainer

Say = Callable[[str], None]


def live(
    config: RunConfig,
    steps: Sequence[int],
    settings: Settings,
    river: RiverSettings,
    *,
    name: str,
    setting: str,
    say: Say = lambda _: None,
) -> Recorded:
    """Train a run, measure it at these steps, and let the learning rate down at the last one.

    Args:
        config: The run, made on one process.
        steps: Steps at which it is measured, ascending, each at least a window after the one before.
        settings: How much is measured at each of these steps.
        river: Length, learning rates and number of the decays of the river test.
        name: What tables and figures call the run.
        setting: What they call what it is trained on.
        say: Called with a line now and then.

    Raises:
        RequestError: If the data is missing or the device cannot be used.
    """
    started = time.perf_counter()
    trainer = _alone(config)
    measurements: list[Measurement] = []
    rivers: list[River] = []
    failure = None
    parameters = trained(trainer.model)
    averages = PowerAverages(list(parameters.values()), river.powers)

    def average() -> None:
        averages.update(trainer.optimizer.fast(list(parameters.values())))

    try:
        for step in steps:
            while trainer.step < step:
                trainer.advance(look=False)
                average()
            if step == steps[-1]:  # before the window, in which the run goes on
                powers = {f"power {k:g}": copied(parameters, each) for k, each in averages.averages.items()}
                rivers.append(river_test(trainer, river, powers))
            measurements.append(_measured(trainer, settings, average))
            say(f"{name}, {setting}, seed {config.seed}: measured after {step:,} steps")
    except TrainingError as error:
        failure = str(error)
    return _recorded(
        config, settings, measurements, rivers, started, name=name, setting=setting, failure=failure
    )


def config_of(folder: Path) -> RunConfig:
    """Return the config of a run folder, for one process.

    Raises:
        RequestError: If it is not a run folder of this version's.
    """
    return dataclasses.replace(resume.saved_config(folder), parallel="ddp", compile=False)


def of_folder(
    folder: Path, most: int, settings: Settings, river: RiverSettings, say: Say = lambda _: None
) -> Recorded:
    """Measure the checkpoints of a run folder, the last one and some of those before it.

    Args:
        folder: The run folder, which is only read.
        most: Measured checkpoints at most, evenly spread.
        settings: How much is measured at each checkpoint.
        river: Length, learning rates and number of the decays of the river test.
        say: Called with a line now and then.

    Raises:
        RequestError: If it is not a run folder, has no checkpoint that can be used, or its data is missing.
    """
    started = time.perf_counter()
    config = config_of(folder)
    require(not river.powers, "powers", "none where checkpoints are measured", river.powers)
    paths = list(checkpoint.intact(folder / checkpoint.FOLDER, say))[::-1]
    if not paths:
        raise RecordError(
            f"{folder} has no checkpoint that can be used: go on with its run, --resume {folder}"
        )
    kept = sorted({round((len(paths) - 1) * (1 - n / most)) for n in range(most)})
    measurements: list[Measurement] = []
    rivers: list[River] = []
    for path in [paths[n] for n in kept]:
        trainer = _alone(config)
        try:
            state = checkpoint.load(path, ALONE, device=trainer.device)
            changed = resume.changed_since(folder, config, checkpoint.step_of(path))
            trainer.load_state_dict(state["trainer"], changed=changed)
        except Exception as error:  # whatever a file brings about that somebody else has made
            raise RecordError(
                f"checkpoint {path} cannot be loaded: {checkpoint.why_not_loaded(error)}"
            ) from error
        if path == paths[-1]:
            rivers.append(river_test(trainer, river))
        measurements.append(_measured(trainer, settings))
        say(f"measured after {measurements[-1].step:,} steps")
    return _recorded(
        config,
        settings,
        measurements,
        rivers,
        started,
        name=config.optimizer.name,
        setting=config.task.data,
    )


def _measured(
    trainer: Trainer, settings: Settings, after_step: Callable[[], None] = lambda: None
) -> Measurement:
    """Measure; a loss without a finite gradient, or one that differs from call to call, ends the run."""
    try:
        return measure(trainer, settings, after_step)
    except ValueError as error:
        raise TrainingError(f"step {trainer.step}: {error}") from error


def _alone(config: RunConfig) -> Trainer:
    """A trainer on one process, with the run's threads."""
    config.task.check(config.steps)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return Trainer.build(config, ALONE, usable(config.device))


def _recorded(
    config: RunConfig,
    settings: Settings,
    measurements: list[Measurement],
    rivers: list[River],
    started: float,
    *,
    name: str,
    setting: str,
    failure: str | None = None,
) -> Recorded:
    return Recorded(
        name=name,
        setting=setting,
        seed=config.seed,
        config=json.loads(json.dumps(to_json(config))),  # with lists for tuples, as it is read
        settings=dataclasses.asdict(settings),
        measurements=measurements,
        rivers=rivers,
        seconds=round(time.perf_counter() - started, 1),
        environment=environment_hash(surroundings(config)),
        failure=failure,
    )
