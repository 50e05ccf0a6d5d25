"""State dicts of older and newer versions."""

import copy
import math
from typing import Any

import pytest
import torch

from tests.amuse_optim.training import bits, build, same, train

SCHEDULES: list[dict[str, Any]] = [
    {},
    {"r": 1.5, "weight_lr_power": 1.0},
    {"r": 33.7, "weight_lr_power": 0.5},
    {"r": 2.0, "c_warmup_steps": 3, "t0_steps": 6},
    {"r": 1.5, "parity": "published"},
    {"weight_lr_power": 0.0},
]


def in_format_1(state_dict: dict[str, Any], weight_sum: float) -> dict[str, Any]:
    """As the first version wrote it: the plain sum of the weights, and no number of the format."""
    older = copy.deepcopy(state_dict)
    for group in older["param_groups"]:
        del group["relative_weight_sum"], group["format"], group["lr_rest"], group["row_beta2"]
        group["weight_sum"] = weight_sum
    return older


@pytest.mark.parametrize("options", SCHEDULES)
@pytest.mark.parametrize("steps", [0, 2, 40])
def test_format_1_continues_with_the_weights_it_had(options: dict[str, Any], steps: int) -> None:
    model, optimizer = build(**options)
    weights: list[float] = []

    def step(number: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.02 if number < 20 else 0.05 if number < 30 else 0.01
        train(model, optimizer, 1, start=number)
        group, t = optimizer.param_groups[0], number + 1
        weighing = group["lr_t"] if group["parity"] == "published" else group["lr_max"]
        if t > group["c_warmup_steps"]:
            weights.append(t ** group["r"] * weighing ** group["weight_lr_power"])

    for number in range(steps):
        step(number)
    older = in_format_1(optimizer.state_dict(), math.fsum(weights))
    other_model, other = build(seed=1, **options)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(older)
    step(steps)
    for group in other.param_groups:
        group["lr"] = optimizer.param_groups[0]["lr"]
    train(other_model, other, 1, start=steps)
    expected = weights[-1] / math.fsum(weights) if weights else 1.0
    for group in other.param_groups:
        assert group["c_t"] == pytest.approx(expected, rel=1e-14)
    for ours, theirs in zip(other_model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert [group["format"] for group in other.state_dict()["param_groups"]] == [2, 2]
    assert all("weight_sum" not in group for group in other.param_groups)
    assert all("weight_sum" in group for group in older["param_groups"])  # left as it was


@pytest.mark.parametrize("number", [3, 17, "2.1", None])
def test_newer_formats_are_refused_in_words(number: Any) -> None:
    model, optimizer = build()
    train(model, optimizer, 3)
    before = bits(model, optimizer)
    newer = copy.deepcopy(optimizer.state_dict())
    newer["param_groups"][1]["format"] = number
    message = f"state_dict has format {number!r}, this version of amuse-optim reads 1 to 2: load it with"
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(newer)
    assert same(before, bits(model, optimizer))


def test_a_format_1_dict_without_its_sum_was_not_made_by_amuse() -> None:
    _, optimizer = build()
    older = in_format_1(optimizer.state_dict(), 0.0)
    del older["param_groups"][0]["weight_sum"]
    with pytest.raises(ValueError, match="not made by AMUSE: its groups lack weight_sum"):
        optimizer.load_state_dict(older)
