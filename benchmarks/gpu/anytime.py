"""The study `gpu-anytime`: a Llama of 30 M on generated tokens at several horizons, in several sittings.

What is tried, reported and decided, and in which order, is what `amuse-lab compare` does with its studies;
this part makes the runs that records/gpu/anytime lacks, the most urgent first, each if it can be expected to
end in time. The next sitting goes on from there: `python -m benchmarks.gpu --parts anytime --minutes 6`. All
runs of a sitting are made on one model, which is compiled once.
"""

import signal
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from amuse_lab.config import RunConfig
from amuse_lab.optimizers import AdamW, Amuse, Anytime, DMuon, NorMuon
from amuse_lab.studies import measuring
from amuse_lab.studies import records as files
from amuse_lab.studies.study import Entry, Record, Records, Request, Scale, Study
from amuse_lab.studies.tables import difference_table, loss_table
from amuse_lab.studies.tuning import wanted
from amuse_lab.studies.verdicts import findings
from amuse_lab.tasks.lm.model import ModelConfig
from amuse_lab.trainer import Trainer
from benchmarks.gpu.part import Part, main
from benchmarks.gpu.plan import RECORDS
from benchmarks.gpu.tokens import GeneratedConfig
from benchmarks.gpu.trainers import Bed, parameters

FOLDER = RECORDS / "anytime"
RESERVE = 15.0  # seconds that the runs leave for checkpoints and records
SLOWER = 1.2  # than the runs before, a run may be

# As the parameter set 30m of `amuse-lab bench`, with a context to train with.
MODEL = ModelConfig(n_embd=512, n_head=8, n_layer=8, context=512, vocabulary=4096)
TINY = ModelConfig(n_embd=32, n_head=2, n_layer=1, context=16, vocabulary=256)

_WARMUP = 50
_MATRICES = Scale(0.003, 0.03)
_REST = Scale(0.001, 0.02)
_MOMENTUM = Scale(0.85, 0.975, complement=True)
_POWERS = ("power 5", "power 10", "power 20")
_AVERAGED = ("x", "y", *_POWERS)
_PLAIN = ("x", *_POWERS)


def entries(warmup: int) -> tuple[Entry, ...]:
    """Return the optimizers, three settings of each tuned, with so many steps of warm-up for all."""
    rates = {"lr": _MATRICES, "lr_rest": _REST}
    amuse = Amuse(lr=0.01, warmup_steps=warmup, auxiliary_momentum=0.9, weight_decay=0.1)
    preset = Anytime(lr=0.01, warmup_steps=warmup, weight_decay=0.1)
    return (
        Entry("amuse", amuse, rates | {"t0_steps": Scale(125, 1000, whole=True)}, _AVERAGED),
        Entry(
            "muon-cosine",
            DMuon(lr=0.01, warmup_steps=warmup, beta1=0.9, weight_decay=0.1),
            rates | {"momentum": _MOMENTUM},
            _PLAIN,
            scheduled=True,
        ),
        Entry("anytime", preset, rates | {"lr_decay": Scale(0.3, 0.8)}),
        Entry(
            "normuon-cosine",
            NorMuon(lr=0.01, warmup_steps=warmup, weight_decay=0.1, split_qkv=preset.split_qkv),
            rates | {"momentum": _MOMENTUM},
            _PLAIN,
            scheduled=True,
            about="NorMuon and AdamW with a cosine, which moves and decays what anytime does",
        ),
        Entry(
            "adamw-cosine",
            AdamW(lr=0.003, warmup_steps=warmup, weight_decay=0.1),
            {"lr": Scale(0.0007, 0.007), "lr_rest": _REST, "beta2": Scale(0.95, 0.999, complement=True)},
            _PLAIN,
            scheduled=True,
        ),
    )


def gpu_anytime(device: torch.device) -> Study:
    """At which horizons is one AMUSE run of 30 M as good as Muon and AdamW that were told where to end?

    The text is generated, because no package has one that is long enough: 2,000 steps read 33 million tokens,
    Shakespeare's plays have 4.5 million bytes, and of what a model of this size reads seven times it learns
    much by heart.

    Time on a GPU is short: each optimizer gets 6 trials of 3 settings, at the longest horizon the 2 best of
    them, and 5 seeds are reported, 3 at the longest horizon. So few decide large differences only.
    """
    task = GeneratedConfig(
        model=MODEL,
        data="generated",
        batch=32,
        eval_windows=256,
        streams=4096,
        length=16_385,  # 32 whole windows of each stream for validation
    )
    chosen = entries(_WARMUP)
    return Study(
        name="gpu-anytime",
        question="Is one run of an optimizer without a horizon, wherever it is stopped, as good as a run of "
        "Muon or AdamW that was tuned for exactly that number of steps, with 30 M parameters on a GPU?",
        run=RunConfig(
            recipe="gpu-anytime",
            task=task,
            optimizer=chosen[0].optimizer,
            steps=2000,
            clip=1.0,
            precision="amp-bf16",
            compile=True,
            device=str(device),
        ),
        horizons=(250, 500, 1000, 2000),
        warmup_steps=_WARMUP,
        trials=6,
        reused=2,
        tuning_seeds=(0,),
        reporting_seeds=(1, 2, 3, 4, 5),
        seeds_at_longest=3,
        kept=(5.0, 10.0, 20.0),
        entries=chosen,
    )


def tiny(study: Study) -> Study:
    """Return the study as small as it can be, to see that all of it works."""
    task = replace(study.run.task, model=TINY, batch=4, eval_windows=8, streams=24, length=128)
    return replace(
        study,
        run=replace(study.run, task=task, compile=False),
        horizons=(4, 8),
        warmup_steps=1,
        trials=2,
        reused=1,
        reporting_seeds=(1, 2),
        seeds_at_longest=2,
        entries=entries(1),
    )


def seconds_per_step(records: Records, environment: str) -> float:
    """Return how long a step takes, evaluations included: in this environment if it has runs, else anywhere.

    Args:
        records: Of the study.
        environment: Hash of the environment.

    Returns:
        The median over runs; 0 if there are none.
    """
    known = [record for record in records.values() if record.steps]
    here = [record for record in known if record.environment == environment]
    return statistics.median(record.seconds / record.steps for record in here or known) if known else 0.0


def sitting(
    part: Part, study: Study, folder: Path, checkpoints: Path, build: Callable[[RunConfig], Trainer]
) -> dict[str, Record]:
    """Make the runs that the records lack, the most urgent first, each of them if it fits into the time left.

    Args:
        part: Whose time it is.
        study: The study.
        folder: Where its records are, and are written after each run.
        checkpoints: Where trials that may go on are kept.
        build: Makes the trainers.

    Returns:
        All records.
    """
    records, environments = files.read(folder), files.read_environments(folder)
    described = measuring.surroundings(study.run)
    environment = files.environment_hash(described)
    environments[environment] = described
    tried: set[Request] = set()

    def fits(request: Request) -> bool:
        longest = SLOWER * request.steps * seconds_per_step(records, environment)
        return longest < part.left - RESERVE and request not in tried

    while (request := next(filter(fits, wanted(study, records)), None)) is not None:
        tried.add(request)  # what cannot be run is left to another sitting
        what = _named(request)
        with part.trying(what):
            record = measuring.measure(study, request, checkpoints, environment=environment, build=build)
            records[record.key] = record
            files.write(folder, study, records, environments)
            part.add(what, **_summary(study, record))
            part.tell(**told(study, records))
    return records


def _named(request: Request) -> str:
    point = ", ".join(f"{name} {value:g}" for name, value in request.point.items())
    kind = f"seed {request.seed}" if request.reported else f"trial of {point}"
    return f"{request.entry} to {request.steps}, {kind}"


def _summary(study: Study, record: Record) -> dict[str, Any]:
    readouts = record.readings.get(record.steps, {})
    losses = {name: values[study.measure] for name, values in readouts.items() if study.measure in values}
    best = min(losses, key=lambda name: losses[name], default=None)
    return {
        "loss": None if best is None else losses[best],
        "readout": best,
        "milliseconds_per_step": 1e3 * record.seconds / max(1, record.steps),
        "ended_by": record.failure,
    }


def told(study: Study, records: Records) -> dict[str, Any]:
    """Return what the study says so far: its verdicts, and its tables in Markdown."""
    found = findings(study, records)
    names = [entry.name for entry in study.entries]
    overall = [found.overall(name) for name in names]
    return {
        "verdicts": [asdict(verdict) for name in names for verdict in found.verdicts(name).values()],
        "overall": [asdict(each) for each in overall if each is not None],
        "tables": [loss_table(found, names), difference_table(found, names)],
    }


def measure(part: Part) -> None:
    """Hold one sitting; tiny, a whole study whose records nobody keeps."""
    study = gpu_anytime(part.device)
    study = tiny(study) if part.tiny else study
    bed = Bed(study.run, part.device)
    part.tell(parameters=parameters(bed.model), tokens_per_step=bed.task.units_per_step)
    first = bed.trainer(study.run)
    first.advance(look=True)
    first.evaluate()  # all is compiled now, in the time of no run
    del first

    def build(config: RunConfig) -> Trainer:
        return bed.trainer(config, config.task.build(seed=config.seed, device=part.device))

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "records" if part.tiny else FOLDER
        records = sitting(part, study, folder, Path(temporary) / "checkpoints", build)
    part.tell(**told(study, records))
    part.add("all sittings", runs=len(records), missing_at_least=len(wanted(study, records)))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the checkpoints are removed
    sys.exit(main(measure))
