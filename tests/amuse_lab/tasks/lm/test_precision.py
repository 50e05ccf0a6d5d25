"""Low precision on a small Llama over real text: 2,000 steps, and 300 of them in the gate."""

from functools import cache

import pytest
import torch

from amuse_lab.tasks.lm.model import ModelConfig
from amuse_lab.tasks.lm.task import LanguageModelConfig
from amuse_optim import AMUSE, averaged, param_groups


@cache
def validation_loss(dtype: torch.dtype, precision: str, steps: int) -> float:
    """Nats per byte at x of a byte-level Llama of 36,000 parameters trained in pure `dtype`."""
    config = LanguageModelConfig(
        model=ModelConfig(n_embd=32, n_head=2, n_layer=2, context=32, mlp_multiple=16, tied=False),
        data="shakespeare",
        batch=4,
        eval_windows=512,
    )
    task = config.build(seed=0, device=torch.device("cpu"))
    torch.manual_seed(0)
    model = config.build_model().to(dtype)
    optimizer = AMUSE(
        param_groups(model),
        lr=0.01,
        warmup_steps=steps // 10,
        t0_steps=steps * 7 // 20,
        auxiliary_momentum=0.9,
        state_precision=precision,
    )
    for step in range(steps):
        optimizer.zero_grad()
        task.loss(model, task.batch(step)).backward()
        optimizer.step()
    with averaged(optimizer):
        return task.evaluate(model, full=False)["loss"]


@pytest.mark.requirement("A9")
@pytest.mark.parametrize(("precision", "tolerance"), [("full", 0.01), ("lean", 0.03)])
@pytest.mark.parametrize(("steps", "learnt"), [(300, 2.6), pytest.param(2000, 2.15, marks=pytest.mark.slow)])
def test_a09_bfloat16_trains_the_llama_as_well_as_float32(
    precision: str, tolerance: float, steps: int, learnt: float
) -> None:
    """After 2,000 steps it has learnt what pairs of bytes do not tell, which alone give 2.53."""
    expected = validation_loss(torch.float32, "full", steps)
    assert expected < learnt
    assert validation_loss(torch.bfloat16, precision, steps) == pytest.approx(expected, rel=tolerance)
