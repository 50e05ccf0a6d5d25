"""Language models."""

from amuse_lab.config import RunConfig
from amuse_lab.errors import unknown
from amuse_lab.optimizers import AdamW, Amuse, Anytime, Muon, ScheduleFreeAdamW
from amuse_lab.tasks.lm.model import ModelConfig
from amuse_lab.tasks.lm.task import LanguageModelConfig

_SHAKESPEARE_OPTIMIZERS = {
    config.name: config
    for config in (
        Amuse(lr=0.005, warmup_steps=160, t0_steps=640, auxiliary_momentum=0.9),
        Anytime(lr=0.005, warmup_steps=60, weight_decay=0.13),
        ScheduleFreeAdamW(lr=0.01, warmup_steps=160, beta1=0.9),
        Muon(lr=0.01, lr_rest=0.008, warmup_steps=160),
        AdamW(lr=0.002, warmup_steps=160, weight_decay=0.1),
    )
}


def shakespeare(optimizer: str = "amuse") -> RunConfig:
    """A byte-level Llama of 0.4 M parameters on Shakespeare's plays, about 90 seconds on two cores.

    Settings: the best of six trials for each optimizer, `records/shakespeare`. AMUSE keeps a first moment for
    embedding, head and norms, which the paper does not.

    Args:
        optimizer: One of the five it has settings for.

    Raises:
        ConfigError: If there are none for this optimizer.
    """
    if optimizer not in _SHAKESPEARE_OPTIMIZERS:
        raise unknown("optimizer", optimizer, _SHAKESPEARE_OPTIMIZERS)
    return RunConfig(
        recipe="shakespeare",
        task=LanguageModelConfig(
            model=ModelConfig(n_embd=96, n_head=3, n_layer=3, context=128, mlp_multiple=32, tied=False),
            data="shakespeare",
            batch=16,
        ),
        optimizer=_SHAKESPEARE_OPTIMIZERS[optimizer],
        steps=1600,
    )
