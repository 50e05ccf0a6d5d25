"""A study of seconds: a decoder of a few hundred parameters, real runs."""

from dataclasses import replace

from amuse_lab.optimizers import Amuse, DMuon
from amuse_lab.recipes.lm import shakespeare
from amuse_lab.studies.study import Entry, Scale, Study
from amuse_lab.tasks.lm.model import ModelConfig
from amuse_lab.tasks.lm.task import LanguageModelConfig

MODEL = ModelConfig(n_embd=8, n_head=1, n_layer=1, context=16, mlp_multiple=8, tied=False)


def study() -> Study:
    """Two optimizers, 24 runs."""
    task = LanguageModelConfig(model=MODEL, data="shakespeare", batch=2, eval_windows=4)
    tuned = {"lr": Scale(0.005, 0.08)}
    return Study(
        name="small",
        question="Does it run?",
        run=replace(shakespeare(), task=task, threads=1),
        horizons=(4, 8, 16),
        warmup_steps=2,
        trials=2,
        reused=1,
        tuning_seeds=(0, 100),
        confirmed=1,
        reporting_seeds=(1, 2),
        seeds_at_longest=1,
        entries=(
            Entry("muon-cosine", DMuon(lr=0.01, warmup_steps=2), tuned, ("x", "power 10"), scheduled=True),
            Entry("amuse", Amuse(lr=0.01, warmup_steps=2), tuned, ("x", "power 5", "power 10")),
        ),
    )


def endless() -> Study:
    """The same with a horizon that no test gets to."""
    return replace(study(), name="endless", horizons=(4, 8, 100_000))
