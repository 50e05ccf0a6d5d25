"""What moves together, and what a step that fails leaves behind."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE, AMUSEReference


def test_two_that_rest_at_different_steps_move_by_their_own_beta() -> None:
    """They have taken as many steps and have different coefficients, so they cannot move together."""

    def run(kind: type[AMUSE] | type[AMUSEReference]) -> Tensor:
        parameters = [nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2)]
        optimizer = kind(parameters, direction="sgd", warmup_steps=2, lr=0.1)
        for step in range(1, 12):
            for number, parameter in enumerate(parameters):
                rests = (step, number) in ((5, 0), (6, 1))
                parameter.grad = (
                    None if rests else torch.full((3,), float(step + number), dtype=torch.float64)
                )
            optimizer.step()
        return torch.stack([parameter.detach() for parameter in parameters])

    torch.testing.assert_close(run(AMUSE), run(AMUSEReference), rtol=1e-13, atol=1e-13)


def test_a_captured_group_is_on_one_device() -> None:
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, device="meta"))]
    optimizer = AMUSE(
        parameters, direction="sgd", lr=0.1, warmup_steps=2, capturable=True, nonfinite="ignore"
    )
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(ValueError, match="a group must be on one device, not on cpu, meta"):
        optimizer.step()


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (None, TypeError, "must return a tensor, got NoneType"),
        (torch.full((1, 2, 3), float("nan")), FloatingPointError, "not finite"),
    ],
)
def test_what_a_function_returns_is_checked(result: Any, error: type[Exception], message: str) -> None:
    parameter = nn.Parameter(torch.zeros(2, 3))
    optimizer = AMUSE([parameter], direction="muon", warmup_steps=2, orthogonalize=lambda _: result)
    parameter.grad = torch.ones(2, 3)
    with pytest.raises(error, match=message):
        optimizer.step()
    assert optimizer.state[parameter]["step"] == 0
    assert not bool(optimizer.state[parameter]["momentum_buffer"].any())


def test_a_captured_step_that_is_refused_changes_nothing() -> None:
    """The step counts and the clock stay Python's numbers, so the state still follows the weights."""
    dense = nn.Parameter(torch.ones(4, 3))
    weight = nn.Parameter(torch.ones(4, 6)[:, ::2])  # not dense in memory
    groups = [{"params": [dense]}, {"params": [weight]}]
    optimizer = AMUSE(groups, direction="adamw", warmup_steps=2, capturable=True, nonfinite="ignore")
    for parameter in (dense, weight):
        parameter.grad = torch.ones(4, 3)
    with pytest.raises(ValueError, match="cannot take part with capturable=True"):
        optimizer.step()
    for group in optimizer.param_groups:
        assert not any(
            isinstance(group[name], torch.Tensor) for name in ("t", "lr_max", "relative_weight_sum")
        )
    assert [optimizer.state[parameter]["step"] for parameter in (dense, weight)] == [0, 0]
    for parameter in (dense, weight):
        parameter.data = torch.full((4, 3), 2.0)
    optimizer.step()
    for parameter in (dense, weight):
        z = optimizer.state[parameter]["z"]
        assert bool((z < 2.0).all() & (z > 1.9).all())
