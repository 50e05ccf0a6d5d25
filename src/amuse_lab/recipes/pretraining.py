"""The published pre-training runs: Llamas of three sizes on FineWeb, 22 recipes named llama-SIZE-METHOD.

Every setting is that of the paper's (arXiv 2605.22432) released scripts, one of which stands behind each
recipe; docs/reproduce.md has the commands, what they cost and where they differ.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from amuse_lab.config import OptimizerConfig, RunConfig
from amuse_lab.errors import ConfigError
from amuse_lab.optimizers import (
    AdamW,
    AdEMAMix,
    Adopt,
    Amuse,
    DMuon,
    Lion,
    Mars,
    Muon,
    Prodigy,
    ScheduleFreeAdamW,
    Signum,
    Soap,
    Sophia,
)
from amuse_lab.tasks.lm.model import ModelConfig
from amuse_lab.tasks.lm.task import LanguageModelConfig
from amuse_lab.tasks.lm.text import FINEWEB

CONTEXT = 512
EVALUATION_SEQUENCES = 64 * 64
"""Sequences of an evaluation during training: 64 batches of 64 in the released scripts."""

VOCABULARY = 50_304
"""GPT-2's 50,257 tokens, padded to a multiple of 64."""


@dataclass(frozen=True)
class Size:
    """What all published runs of one size share.

    Attributes:
        model: Size and shape of the decoder.
        batch: Sequences of one training step.
        steps: Training steps in all.
        clip: Largest global norm of the gradient.
        eval_every: Training steps from one evaluation to the next.
        micro_batch: Sequences of one forward pass; ours, by estimate what an 80 GB GPU holds.
        methods: The optimizers by the names of their scripts.
    """

    model: ModelConfig
    batch: int
    steps: int
    clip: float
    eval_every: int
    micro_batch: int
    methods: Mapping[str, OptimizerConfig]


SIZES: Mapping[str, Size] = {
    "124m": Size(
        ModelConfig(n_embd=768, n_head=12, n_layer=12, context=CONTEXT, vocabulary=VOCABULARY),
        batch=256,
        steps=16_000,
        clip=0.5,
        eval_every=115,
        micro_batch=32,
        methods={
            "amuse": Amuse(lr=0.01, warmup_steps=6000, weight_decay=0.05, beta1=0.6, beta2=0.999, rho=0.8),
            "adamw": AdamW(lr=1e-3, warmup_steps=2000, weight_decay=0.1, beta1=0.8, beta2=0.999),
            "adamw-wsd": AdamW(
                lr=5e-4, warmup_steps=2000, weight_decay=0.1, beta1=0.8, beta2=0.999, schedule="wsd"
            ),
            "ademamix": AdEMAMix(
                lr=1e-3,
                warmup_steps=2000,
                weight_decay=0.1,
                beta1=0.9,
                beta2=0.999,
                beta3=0.999,
                alpha=8.0,
                slow_warmup_steps=16_000,
            ),
            "adopt": Adopt(lr=1e-3, warmup_steps=2000, weight_decay=0.1, beta1=0.9, beta2=0.999, eps=1e-6),
            "d-muon": DMuon(lr=2e-3, warmup_steps=2000, weight_decay=0.1, beta1=0.8, beta2=0.999),
            "lion": Lion(lr=1e-3, warmup_steps=2000, weight_decay=0.1, beta1=0.9, beta2=0.99),
            "mars": Mars(
                lr=3e-3,
                lr_rest=1e-3,
                warmup_steps=2000,
                weight_decay=0.1,
                beta1=0.95,
                beta2=0.99,
                beta1_rest=0.8,
                beta2_rest=0.999,
                gamma=0.025,
            ),
            "muon": Muon(lr=0.01, lr_rest=1e-3, warmup_steps=2000, weight_decay=0.1, beta1=0.8, beta2=0.999),
            "prodigy": Prodigy(lr=1.0, warmup_steps=2000, weight_decay=0.1, beta1=0.9, beta2=0.999),
            "sf-adamw": ScheduleFreeAdamW(
                lr=2e-3, warmup_steps=2000, weight_decay=0.1, beta1=0.9, beta2=0.9999
            ),
            "signum": Signum(lr=1e-3, warmup_steps=2000, weight_decay=0.1, momentum=0.95),
            "soap": Soap(
                lr=1e-3,
                warmup_steps=2000,
                weight_decay=0.1,
                beta1=0.9,
                beta2=0.999,
                precondition_every=10,
                max_precondition_dim=10_000,
            ),
            "sophia": Sophia(
                lr=1e-3,
                warmup_steps=2000,
                weight_decay=0.1,
                beta1=0.9,
                beta2=0.999,
                rho=0.04,
                curvature_batch=480 * CONTEXT,
                curvature_every=10,
            ),
        },
    ),
    "720m": Size(
        ModelConfig(n_embd=2048, n_head=16, n_layer=12, context=CONTEXT, vocabulary=VOCABULARY),
        batch=1984,
        steps=16_000,
        clip=0.1,
        eval_every=200,
        micro_batch=31,
        methods={
            "amuse": Amuse(lr=0.01, warmup_steps=2000, weight_decay=0.1, beta1=0.4, beta2=0.999, rho=0.8),
            "adamw": AdamW(lr=1e-3, warmup_steps=2000, weight_decay=0.1, beta1=0.9, beta2=0.999),
            "d-muon": DMuon(lr=1e-3, warmup_steps=2000, weight_decay=0.1, beta1=0.9, beta2=0.99),
            "sf-adamw": ScheduleFreeAdamW(
                lr=1e-3, warmup_steps=8000, weight_decay=0.1, beta1=0.9, beta2=0.9999
            ),
        },
    ),
    "1.3b": Size(
        ModelConfig(n_embd=2048, n_head=32, n_layer=24, context=CONTEXT, vocabulary=VOCABULARY),
        batch=2048,
        steps=24_800,
        clip=0.1,
        eval_every=200,
        micro_batch=16,
        methods={
            "amuse": Amuse(lr=0.01, warmup_steps=2000, weight_decay=0.1, beta1=0.4, beta2=0.999, rho=0.8),
            "adamw": AdamW(lr=1e-3, warmup_steps=2000, weight_decay=0.1, beta1=0.9, beta2=0.999),
            "d-muon": DMuon(lr=2e-3, warmup_steps=2000, weight_decay=0.1, beta1=0.9, beta2=0.99),
            "sf-adamw": ScheduleFreeAdamW(
                lr=2e-3, warmup_steps=8000, weight_decay=0.1, beta1=0.9, beta2=0.9999
            ),
        },
    ),
}
"""The published sizes by their names."""


def _recipe(size: str, method: str) -> Callable[..., RunConfig]:
    """The recipe of one published run."""
    shared = SIZES[size]
    published = shared.methods[method]
    name = f"llama-{size}-{method}"

    def recipe(optimizer: str = published.name) -> RunConfig:
        if optimizer != published.name:
            others = ", ".join(f"llama-{size}-{other}" for other in shared.methods)
            raise ConfigError(
                f"{name} is a run of {published.name}, not of {optimizer}; of this size there are {others}"
            )
        return RunConfig(
            recipe=name,
            task=LanguageModelConfig(
                model=shared.model,
                data=FINEWEB,
                batch=shared.batch,
                eval_windows=EVALUATION_SEQUENCES,
                prompt="The",
            ),
            optimizer=published,
            steps=shared.steps,
            eval_every=shared.eval_every,
            clip=shared.clip,
            micro_batch=shared.micro_batch,
            precision="amp-bf16",
            device="cuda",
        )

    recipe.__doc__ = f"The published run of {method} at {size.upper()} parameters on FineWeb, for GPUs."
    return recipe


RECIPES: Mapping[str, Callable[..., RunConfig]] = {
    f"llama-{size}-{method}": _recipe(size, method)
    for size, shared in SIZES.items()
    for method in shared.methods
}
"""All 22 recipes by name."""
