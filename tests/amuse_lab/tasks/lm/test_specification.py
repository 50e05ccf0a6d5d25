"""AMUSE and its specification held together on the small Llama itself, over real text."""

import pytest
import torch

from amuse_lab.recipes.lm import shakespeare
from amuse_optim import AMUSE, AMUSEReference, averaged, param_groups

# Rounding of 1e-16 grows along two trajectories, most where a rare byte's gradient is near eps.
TOLERANCE = 1e-6


@pytest.mark.parametrize("parity", ["exact", "published"])
@pytest.mark.parametrize(("steps", "learnt"), [(60, 4.5), pytest.param(300, 3.5, marks=pytest.mark.slow)])
def test_amuse_follows_its_specification_on_the_llama(parity: str, steps: int, learnt: float) -> None:
    """In float64, each optimizer on its own model: the same losses, y, z and x, past warm-up and T0."""
    torch.manual_seed(0)
    config = shakespeare()
    task = config.task.build(seed=0, device=torch.device("cpu"))
    models = [config.task.build_model().double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [
        kind(
            param_groups(model),
            lr=0.02,
            warmup_steps=steps // 6,
            t0_steps=steps // 3,
            weight_decay=0.1,
            auxiliary_momentum=0.9,
            eps=1e-8,
            parity=parity,
        )
        for kind, model in zip((AMUSE, AMUSEReference), models, strict=True)
    ]
    for step in range(steps):
        inputs, targets = (part[:2, :32] for part in task.batch(step))
        losses = []
        for model, optimizer in zip(models, optimizers, strict=True):
            loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-7), step

    (fast, slow), (optimizer, reference) = models, optimizers
    for ours, theirs in zip(fast.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(
            optimizer.state[ours]["z"], reference.state[theirs]["z"], rtol=0, atol=TOLERANCE
        )
    with averaged(optimizer):
        for ours, theirs in zip(fast.parameters(), slow.parameters(), strict=True):
            torch.testing.assert_close(ours, reference.state[theirs]["x"], rtol=0, atol=TOLERANCE)
    assert losses[0] < learnt  # it learnt something: the start is log(256) = 5.5
