"""AMUSE as one file knows every option of the package: it does the same, or is listed as left out."""

import inspect
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE
from amuse_optim.options import OPTIONS
from amuse_optim.single_file import LEFT_OUT, single_file

RANKS = ("process_group", "shard_state")  # of the optimizer, not of its groups
# Another value of every option that the file carries, and what has to stand beside it; None: it has no other.
OTHER: dict[str, dict[str, Any] | None] = {
    "lr": {"lr": 0.03},
    "warmup_steps": {"warmup_steps": 4},
    "lr_decay": {"lr_decay": 0.5, "lr_decay_from": 4},
    "lr_decay_from": {"lr_decay": 0.5, "lr_decay_from": 4},
    "t0_steps": {"t0_steps": 5},
    "c_warmup_steps": {"c_warmup_steps": 1},
    "beta1": {"beta1": 0.3},
    "rho": {"rho": 2.0},
    "beta_clock": {"beta_clock": "steps"},
    "r": {"r": 2.0},
    "weight_lr_power": {"weight_lr_power": 0.0},
    "parity": {"parity": "published"},
    "averages": {"averages": (10.0,)},
    "weight_decay": {"weight_decay": 0.1},
    "weight_decay_at": {"weight_decay": 0.1, "weight_decay_at": "y"},
    "direction": {"direction": "sgd"},
    "momentum": {"momentum": 0.5},
    "nesterov": {"nesterov": False},
    "orthogonalize": None,
    "orthogonalize_steps": {"orthogonalize_steps": 3},
    "orthogonalize_dtype": {"orthogonalize_dtype": torch.float32},
    "split_rows": {"split_rows": (1, 3)},
    "num_heads": {"num_heads": 2},
    "conv_groups": {"conv_groups": 2},
    "stacked": {"stacked": True},
    "transposed": {"transposed": True, "scale": "spectral"},
    "scale": {"scale": "spectral"},
    "beta2": {"beta2": 0.5},
    "eps": {"eps": 0.1},
    "auxiliary_momentum": {"auxiliary_momentum": 0.9},
}


@pytest.fixture(scope="session")
def module() -> ModuleType:
    made = ModuleType("amuse")
    exec(single_file(), made.__dict__)
    return made


def test_has_every_option_or_says_that_it_has_not(module: ModuleType) -> None:
    assert module.DEFAULTS.keys() | set(LEFT_OUT) == OPTIONS.keys()
    assert inspect.signature(AMUSE).parameters.keys() - {"params", "more", *RANKS} <= OPTIONS.keys()
    assert all(OPTIONS[name].default == value for name, value in module.DEFAULTS.items())
    assert module.__doc__ is not None
    assert all(f"`{name}`" in module.__doc__ for name in (*LEFT_OUT, *RANKS))
    assert OTHER.keys() == module.DEFAULTS.keys(), "say a value of the new option, or list it in LEFT_OUT"


def after_some_steps(kind: Callable[..., Any], **options: Any) -> tuple[Tensor, ...]:
    """Two parameters and what averages are kept of them, with muon and adamw unless a direction is given."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    kernel, vector = nn.Parameter(draw(4, 6, 2)), nn.Parameter(draw(3))
    direction = options.pop("direction", "muon")
    groups = [{"params": [kernel], "direction": direction}, {"params": [vector], "direction": "adamw"}]
    optimizer = kind(groups, **{"lr": 0.05, "warmup_steps": 3} | options)
    for _ in range(9):
        for p in (kernel, vector):
            p.grad = draw(p.shape)
        optimizer.step()
    states = [optimizer.state[p] for p in (kernel, vector)]
    averages = [state[key] for state in states for key in sorted(state) if key.startswith("average_")]
    return kernel.detach(), vector.detach(), *averages


@pytest.mark.parametrize("name", OTHER)
def test_every_option_that_it_has_does_what_it_does_in_the_package(module: ModuleType, name: str) -> None:
    options = OTHER[name]
    if options is None:
        with pytest.raises(ValueError, match=f"{name} must be"):
            after_some_steps(module.AMUSE, **{name: "another"})
        return
    ours = after_some_steps(AMUSE, **options)
    tolerance = 1e-5 if name == "orthogonalize_dtype" else 1e-12  # in float32, or in float64
    theirs = after_some_steps(module.AMUSE, **options)
    torch.testing.assert_close(theirs, ours, rtol=tolerance, atol=tolerance)
    without = after_some_steps(AMUSE, **{key: value for key, value in options.items() if key != name})
    assert len(without) != len(ours) or not all(
        torch.allclose(a, b, rtol=0, atol=1e-9) for a, b in zip(without, ours, strict=True)
    )
