"""The reference is an optimizer like any other, and `AMUSE` is equal to it where parameters are cut."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from amuse_optim import AMUSE, AMUSEReference, OptimizerModeError
from tests.amuse_optim.training import bits, same, take_steps

SHAPES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((8, 2, 3, 3), {"conv_groups": 4}),
    ((8, 3, 5), {"conv_groups": 2}),
    ((12, 4), {"num_heads": 3}),
    ((4, 12), {"num_heads": 2}),
    ((14, 6), {"split_rows": (8, 2, 4)}),
    ((12, 4), {"split_rows": (8, 4), "num_heads": 2}),
    ((3, 5, 4), {"stacked": True}),
    ((2, 3, 4, 6), {"stacked": True}),
    ((8, 3, 3, 3), {}),
]


def groups_of(shapes: list[tuple[tuple[int, ...], dict[str, Any]]]) -> list[dict[str, Any]]:
    groups = []
    for index, (shape, options) in enumerate(shapes):
        value = torch.randn(shape, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
        groups.append({"params": [nn.Parameter(value)], "direction": "muon", **options})
    return groups


@pytest.mark.parametrize(
    "options", [{}, {"scale": "spectral", "nesterov": False}, {"orthogonalize": "exact"}]
)
@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.requirement("C3", "C4")
def test_parameters_of_several_matrices(options: dict[str, Any], foreach: bool | None) -> None:
    settings: dict[str, Any] = {"lr": 0.05, "warmup_steps": 3, "weight_decay": 0.1, **options}
    ours, theirs = groups_of(SHAPES), groups_of(SHAPES)
    optimizer = AMUSE(ours, foreach=foreach, **settings)
    reference = AMUSEReference(theirs, **settings)
    for each in (optimizer, reference):
        take_steps(each, range(8), without=2)
    for mode in ("train", "eval"):
        for each in (optimizer, reference):
            getattr(each, mode)()
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine["params"][0], other["params"][0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("options", [{}, {"r": 2.0, "beta_clock": "steps"}, {"parity": "published"}])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_it_reads_its_own_state_dict(mode: str, options: dict[str, Any]) -> None:
    """By torch's own loading."""

    def build() -> tuple[nn.ParameterList, AMUSEReference]:
        members = nn.ParameterList([group["params"][0] for group in groups_of(SHAPES[:2])])
        members.append(nn.Parameter(torch.ones(3, dtype=torch.float64)))
        groups = [
            {"params": [members[0], members[1]], "direction": "muon"},
            {"params": [members[2]], "direction": "adamw", "auxiliary_momentum": 0.9},
        ]
        return members, AMUSEReference(groups, lr=0.05, warmup_steps=3, **options)

    model, reference = build()
    take_steps(reference, range(7))
    getattr(reference, mode)()
    saved = copy.deepcopy((model.state_dict(), reference.state_dict()))
    reference.train()
    take_steps(reference, range(7, 12))

    other, resumed = build()
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert resumed.mode == mode
    resumed.train()
    take_steps(resumed, range(7, 12))
    assert same(bits(model, reference), bits(other, resumed))
    assert [group["t"] for group in resumed.param_groups] == [12, 12]
    assert [group["beta_t"] for group in resumed.param_groups] == [
        group["beta_t"] for group in reference.param_groups
    ]


def test_it_refuses_what_amuse_refuses() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"direction must be one of muon, adamw, sgd for AMUSEReference"):
        AMUSEReference([weight], direction="normuon", warmup_steps=2)
    with pytest.raises(TypeError, match="unknown option 'momentun'; did you mean 'momentum'"):
        AMUSEReference([weight], direction="sgd", warmup_steps=2, momentun=0.9)
    reference = AMUSEReference([weight], direction="sgd", warmup_steps=2)
    take_steps(reference, range(2))
    before = weight.detach().clone()
    weight.grad = torch.full((2, 2), float("nan"))
    with pytest.raises(FloatingPointError):
        reference.step()
    assert torch.equal(weight, before)
    reference.eval()
    with pytest.raises(OptimizerModeError):
        reference.step()


def test_a_matrix_without_rows_takes_part() -> None:
    for kind in (AMUSE, AMUSEReference):
        weights = [nn.Parameter(torch.ones(0, 5)), nn.Parameter(torch.ones(2, 5))]
        optimizer = kind(weights, direction="muon", warmup_steps=2)
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        assert weights[0].shape == (0, 5)
        assert bool((weights[1] < 1).all())
