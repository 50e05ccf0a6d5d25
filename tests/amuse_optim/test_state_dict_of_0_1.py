"""State dicts of format 1, written by version 0.1.0, go on as they would have gone on there.

`data/format_1.pt` holds, for each case, what 0.1.0 saved after 12 steps, and its y, z, x, c and beta after 12
more with the gradients of `gradient` below.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE

SAVED: dict[str, Any] = torch.load(Path(__file__).parent / "data" / "format_1.pt", weights_only=True)
TOLERANCE = {"torch.float64": 1e-14, "torch.float32": 1e-6, "torch.bfloat16": 1e-6}
PRODUCTS = {"torch.float64": 1e-12, "torch.float32": 1e-5}  # of matrices, which differ between processors


def gradient(shape: torch.Size, step: int, index: int, exact: bool) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + index)
    if exact:
        return torch.randint(-8, 9, shape, generator=generator).double() / 4
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def resumed(case: dict[str, Any]) -> tuple[list[nn.Parameter], AMUSE]:
    """Parameters and optimizer after the 12 steps that 0.1.0 did not take before it saved."""
    parameters = [nn.Parameter(value.clone()) for value in case["saved"]["model"]]
    groups = [
        {"params": [(f"p{i}", parameters[i]) for i in saved["params"]], "direction": saved["direction"]}
        for saved in case["saved"]["optimizer"]["param_groups"]
    ]
    optimizer = AMUSE(groups, **case["options"])
    optimizer.load_state_dict(case["saved"]["optimizer"])
    for step in range(12, 24):
        for i, parameter in enumerate(parameters):
            absent = step % 5 == 2 and i == 0
            parameter.grad = (
                None if absent else gradient(parameter.shape, step, i, case["exact"]).to(parameter)
            )
        optimizer.step()
    return parameters, optimizer


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest entry."""
    return float((ours.detach().double() - theirs.double()).abs().max() / theirs.double().abs().max())


@pytest.mark.parametrize("name", sorted(SAVED))
@pytest.mark.requirement("B1")
def test_goes_on_as_it_would_have(name: str) -> None:
    case = SAVED[name]
    parameters, optimizer = resumed(case)
    z = [optimizer.state[parameter]["z"].clone() for parameter in parameters]
    y = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()
    directions = [group["direction"] for group in optimizer.param_groups for _ in group["params"]]
    for i, (parameter, direction) in enumerate(zip(parameters, directions, strict=True)):
        allowed = (PRODUCTS if direction == "muon" else TOLERANCE)[case["dtype"]]
        assert distance(z[i], case["z"][i]) <= allowed, ("z", i)
        # One unit in the last place of bfloat16, where an equal value may be rounded the other way.
        rounded = 2**-8 if case["dtype"] == "torch.bfloat16" else allowed
        assert distance(y[i], case["y"][i]) <= rounded, ("y", i)
        assert distance(parameter, case["x"][i]) <= rounded, ("x", i)
    for group, c, beta in zip(optimizer.param_groups, case["c"], case["beta"], strict=True):
        assert group["c_t"] == pytest.approx(c, rel=1e-14)
        assert group["beta_t"] == pytest.approx(beta, rel=1e-14)


def test_exact_values_go_on_to_the_same_bits() -> None:
    """Multiples of powers of two and the direction "sgd"."""
    case = SAVED["exact"]
    parameters, optimizer = resumed(case)
    for i, parameter in enumerate(parameters):
        assert torch.equal(optimizer.state[parameter]["z"], case["z"][i])
        assert torch.equal(parameter, case["y"][i])
    optimizer.eval()
    for i, parameter in enumerate(parameters):
        assert torch.equal(parameter, case["x"][i])
