"""Tiny runs whose landscapes are small enough for dense linear algebra, and invented records."""

from dataclasses import replace

import torch
from torch import Tensor

from amuse_lab.config import OptimizerConfig
from amuse_lab.landscape.measuring import Measurement, Settings, Spectrum
from amuse_lab.landscape.recorded import Recorded
from amuse_lab.landscape.river import Branch, River
from amuse_lab.landscape.watching import Watched
from amuse_lab.optimizers import Amuse
from amuse_lab.parallel import ALONE
from amuse_lab.recipes.lm import shakespeare
from amuse_lab.tasks.lm.model import ModelConfig
from amuse_lab.tasks.lm.task import LanguageModelConfig
from amuse_lab.trainer import Trainer

BETA = 0.7
AMUSE = Amuse(lr=0.05, warmup_steps=2, beta1=BETA, rho=0.0, auxiliary_momentum=0.9)
SETTINGS = Settings(k=3, batches=2, window=4)
MODEL = ModelConfig(n_embd=4, n_head=1, n_layer=1, context=8, mlp_multiple=4)


def trainer(optimizer: OptimizerConfig = AMUSE, *, steps: int = 0, seed: int = 0) -> Trainer:
    """A decoder of 1,200 parameters on the plays, after some steps of thirty."""
    task = LanguageModelConfig(model=MODEL, data="shakespeare", batch=2, eval_windows=4)
    config = replace(shakespeare(), task=task, optimizer=optimizer, steps=30, seed=seed)
    made = Trainer.build(config, ALONE, torch.device("cpu"))
    for _ in range(steps):
        made.advance(look=False)
    return made


def flat(tensors: dict[str, Tensor], names: list[str] | None = None) -> Tensor:
    """Named tensors as one vector."""
    return torch.cat([tensors[name].flatten() for name in (names or list(tensors))])


def measurement(step: int, *, update: float = 0.1, undone: float = 0.5, averages: bool = True) -> Measurement:
    """An invented measurement in which all claims hold, as far as they can be measured."""
    spectrum = Spectrum(size=1000, values=[4.0, 3.0, 1.0], residuals=[0.0] * 3, products=9, k=2, bound=0.01)
    places = [n / 8 for n in range(-4, 21)]
    watched = Watched(
        momentum=[0.5, 0.5],
        update=[update, update],
        cosines={"dominant": [-0.5], "bulk": [0.5]},
        persistence={"dominant": undone, "bulk": 1.5},
        ranks={"momentum": 0.5, "update": 0.9},
        singular={"momentum": [1.0, 0.1], "update": [1.0, 0.9]},
    )
    plane = {
        "dominant": [-1.0, 0.0, 1.0],
        "bulk": [-2.0, 0.0, 2.0],
        "losses": [[3.0, 2.5, 3.0], [2.5, 2.0, 2.5], [3.0, 2.5, 3.0]],
        "paths": {name: [[0.0, 0.0], [0.5, 1.0]] for name in "xyz"},
    }
    points = "xyz" if averages else "x"
    return Measurement(
        step=step,
        loss=dict.fromkeys("xyz", 2.0),
        spectra={**dict.fromkeys(points, spectrum), "matrices": spectrum},
        gradients={"x": 0.2, "y": 0.4, "z": 0.6} if averages else {"x": 0.2},
        along={"positions": [0.0, 1.0], "shares": [0.6, 0.2]} if averages else None,
        watched=watched,
        inner={"cosine": 0.1, "positive": 1.0} if averages else None,
        segment={"positions": places, "losses": [2 + (1 - t) ** 2 for t in places]} if averages else None,
        plane=plane,
    )


def recorded(
    name: str = "amuse",
    setting: str = "text",
    seed: int = 1,
    *,
    update: float = 0.1,
    failure: str | None = None,
) -> Recorded:
    """An invented run, measured twice."""
    averages = name in ("amuse", "sf-muon", "sf-adamw")
    losses = {start: {"0.01": 1.9 + 0.01 * seed} for start in ("xyz" if averages else "x")}
    return Recorded(
        name=name,
        setting=setting,
        seed=seed,
        config={"optimizer": name},
        settings={"k": 2},
        measurements=[
            measurement(step, update=update + 0.001 * seed, undone=0.5 + 0.01 * seed, averages=averages)
            for step in (10, 20)
        ],
        rivers=[River(20, dict.fromkeys(losses, 2.0), [Branch(0, losses)])],
        seconds=1.5,
        environment="invented",
        failure=failure,
    )
