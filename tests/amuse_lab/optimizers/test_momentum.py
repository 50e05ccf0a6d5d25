"""What `momentum` returns: the mean gradient that the last step kept."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from amuse_lab.config import OptimizerConfig
from amuse_lab.optimizers import SGD, AdamW, Amuse, DMuon, MuonSGD, ScheduleFreeAdamW
from tests.amuse_lab.optimizers.test_fast import give
from tests.amuse_lab.small import small

STEPS = 4


@pytest.mark.parametrize(
    ("config", "kept", "added"),
    [
        (Amuse(lr=0.01, warmup_steps=2, momentum=0.8, auxiliary_momentum=0.8), 0.8, 0.2),
        (DMuon(lr=0.01, warmup_steps=2, momentum=0.8, beta1=0.8), 0.8, 0.2),
        (AdamW(lr=0.01, warmup_steps=2, beta1=0.8), 0.8, 0.2),
    ],
    ids=["amuse", "d-muon", "adamw"],
)
@pytest.mark.parametrize("ema", [None, 0.5], ids=["plain", "with an average around it"])
def test_it_is_the_mean_of_the_gradients(
    config: OptimizerConfig, kept: float, added: float, ema: float | None
) -> None:
    model = small()
    parameters = list(model.parameters())
    optimizer = replace(config, ema=ema).build(model, steps=10)
    expected: list[Tensor] = [torch.zeros_like(p) for p in parameters]
    for step in range(STEPS):
        gradients = give(model, step)
        optimizer.step()
        expected = [kept * m + added * g for m, g in zip(expected, gradients, strict=True)]
    for ours, theirs in zip(optimizer.momentum(parameters), expected, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [SGD(lr=0.01, warmup_steps=2), MuonSGD(lr=0.01, lr_rest=0.01, warmup_steps=2)],
    ids=["sgd", "muon-sgd"],
)
def test_packages_that_sum_keep_a_multiple_of_it(config: OptimizerConfig) -> None:
    """The direction is what shares and ranks depend on."""
    model = small()
    optimizer = config.build(model, steps=10)
    expected: list[Tensor] = [torch.zeros_like(p) for p in model.parameters()]
    for step in range(STEPS):
        gradients = give(model, step)
        optimizer.step()
        expected = [0.9 * m + g for m, g in zip(expected, gradients, strict=True)]
    for ours, theirs in zip(optimizer.momentum(list(model.parameters())), expected, strict=True):
        assert ours is not None
        cosine = torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
        assert cosine.item() == pytest.approx(1.0, abs=1e-5)


def test_there_is_none_before_the_first_step_and_where_none_is_kept() -> None:
    model = small()
    parameters = list(model.parameters())
    optimizer = ScheduleFreeAdamW(lr=0.01, warmup_steps=2).build(model, steps=10)
    assert optimizer.momentum(parameters) == [None] * len(parameters)
    give(model, 0)
    optimizer.step()
    assert optimizer.momentum(parameters) == [None] * len(parameters)
