"""A try of any recipe in a minute: small, short, on the CPU and on what packages carry."""

from dataclasses import fields, replace

from amuse_lab.config import OptimizerConfig, RunConfig

STEPS = 20
_WARMUP_STEPS = 5


def reduced(config: RunConfig) -> RunConfig:
    """Return a run that shows whether a recipe works here, and nothing about its results.

    Args:
        config: Config of the recipe in its full size.

    Returns:
        The same optimizer with warm-ups of at most 5 steps on a small model, 20 steps, with runs in the
        folder `smoke` beside those of the recipe.
    """
    return replace(
        config,
        task=config.task.reduced(),
        optimizer=_with_short_warmup(config.optimizer),
        steps=STEPS,
        eval_every=STEPS // 2,
        log_every=STEPS // 4,
        micro_batch=None,
        precision="fp32",
        device="cpu",
        runs=config.runs / "smoke",
    )


def _with_short_warmup(optimizer: OptimizerConfig) -> OptimizerConfig:
    """The same optimizer, with every warm-up, and t0_steps, of at most 5 steps."""
    lengths = {
        field.name: min(getattr(optimizer, field.name), _WARMUP_STEPS)
        for field in fields(optimizer)
        if field.name.endswith(("warmup_steps", "t0_steps")) and getattr(optimizer, field.name) is not None
    }
    return replace(optimizer, **lengths)
