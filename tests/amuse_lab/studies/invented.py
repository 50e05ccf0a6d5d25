"""A study whose runs are a formula: what planning, verdicts, figures and pages are tested with."""

import math
from dataclasses import replace

import numpy as np

from amuse_lab.optimizers import Amuse, DMuon
from amuse_lab.recipes.lm import shakespeare
from amuse_lab.studies.study import Entry, Record, Records, Request, Scale, Study
from amuse_lab.studies.tuning import wanted

ENVIRONMENT = {"versions": {"torch": "invented"}, "machine": {"processor": "none"}, "git": None}


def study() -> Study:
    """Two optimizers, one told where it ends; small numbers of everything."""
    tuned = {"lr": Scale(0.005, 0.08), "lr_rest": Scale(0.005, 0.08)}
    return Study(
        name="invented",
        question="Does the formula hold?",
        run=replace(shakespeare(), threads=1),
        horizons=(40, 80, 160, 320),
        warmup_steps=10,
        trials=5,
        reused=2,
        tuning_seeds=(0, 100),
        confirmed=2,
        reporting_seeds=(1, 2, 3, 4),
        seeds_at_longest=3,
        entries=(
            Entry("muon-cosine", DMuon(lr=0.01, warmup_steps=10), tuned, ("x", "power 10"), scheduled=True),
            Entry("amuse", Amuse(lr=0.01, warmup_steps=10), tuned, ("x", "y", "power 10")),
        ),
    )


def loss(request: Request, step: int, readout: str, *, ahead: float) -> float:
    """The formula: a power of the step, a parabola around the best learning rates, noise of the seed.

    Args:
        request: The run.
        step: After which step.
        readout: Where; "power 10" is the best by a little, and "y" the worst.
        ahead: How far "amuse" is ahead of the other, in nats.
    """
    away = sum(math.log(request.point[name] / 0.02) ** 2 for name in ("lr", "lr_rest"))
    noise = float(np.random.default_rng((request.seed, step)).normal(0, 0.004))
    own = float(np.random.default_rng((request.seed, step, len(request.entry))).normal(0, 0.001))
    ending = {"x": 0.002, "y": 0.05, "power 10": 0.0}[readout]
    lead = ahead if request.entry == "amuse" else 0.0
    return round(1.5 + 3 / step**0.4 + 0.02 * away + noise + own + ending - lead, 6)


def run(study: Study, request: Request, *, ahead: float = 0.0) -> Record:
    """The record of a run that nobody made."""
    readings = {
        step: {name: {"loss": loss(request, step, name, ahead=ahead)} for name in request.readouts}
        for step in request.wanted_at(study)
    }
    return Record(
        key=request.key(study),
        entry=request.entry,
        point=dict(request.point),
        seed=request.seed,
        steps=request.steps,
        scheduled=study.entry(request.entry).scheduled,
        readings=readings,
        training=tuple((step, round(1.6 + 3 / step**0.4, 5)) for step in range(4, request.steps + 1, 4)),
        seconds=request.steps / 10,
        environment="invented",
    )


def accurate(found: Records) -> dict[str, Record]:
    """The same records with an accuracy beside the loss."""
    return {
        key: replace(
            record,
            readings={
                step: {name: {**values, "accuracy": 0.875} for name, values in each.items()}
                for step, each in record.readings.items()
            },
        )
        for key, record in found.items()
    }


def records(study: Study, *, ahead: float = 0.0) -> dict[str, Record]:
    """All runs that the study asks for, as planning asks for them."""
    found: dict[str, Record] = {}
    while missing := wanted(study, found):
        for request in missing:
            found[request.key(study)] = run(study, request, ahead=ahead)
    return found
