"""State of the authors' released optimizer, taken over and continued."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from amuse_optim import AMUSE, from_published
from tests.amuse_optim.taking_over import (
    AFTER,
    BEFORE,
    SHAPES,
    TOLERANCE,
    assert_equal,
    edited,
    gradients,
    set_weights,
    snapshot,
    start,
)
from tests.oracle.published import PublishedOracle

RELEASED: dict[str, dict[str, Any]] = {
    "within the warm-up": {"warmup_steps": 40},
    "after it": {"warmup_steps": 12, "weight_decay": 0.1, "rho": 1.2, "r": 1.0},
    "with SGD": {"warmup_steps": 12, "scale": "spectral", "weight_lr_power": 1.0, "beta1": 0.8},
}


def a_released_run(auxiliary: str, **options: Any) -> tuple[list[PublishedOracle], dict[str, Any]]:
    """Oracles of the two groups after 30 steps, and that state laid out as the released optimizer lays it.

    Of a Muon group it sorts the parameters by shape, largest first. Its groups hold the last learning rate,
    c and beta, c at the end of the warm-up, and the plain sum of weights; of the run's settings they hold
    neither the mode nor beta1, rho, r and weight_lr_power.
    """
    members = list(range(len(SHAPES)))
    oracles, saved_groups, state = [], [], {}
    for kind, places in (("muon", [0, 1, 3, 5]), (auxiliary, [2, 4])):
        oracle = PublishedOracle([start()[i] for i in places], direction=kind, lr=0.02, **options)
        group: dict[str, Any] = {"base_lr": 0.02, "use_muon": kind == "muon", "update_type": kind, "r_t": 0.1}
        for step in range(BEFORE):
            oracle.step([gradients(step)[i] for i in places])
            if step + 1 == options["warmup_steps"]:
                group["c_warmup"] = oracle.c
        order = sorted(range(len(places)), key=lambda i, places=places: SHAPES[places[i]], reverse=True)
        if kind == "muon":
            group |= {"momentum": 0.95, "aux_update_type": auxiliary}
            assert order != list(range(len(places)))
        else:
            order = list(range(len(places)))
        if kind == "adamw":
            group |= {"beta2": 0.999, "eps": 1e-10}
        ids = [members.pop(0) for _ in order]
        for i, place in zip(ids, order, strict=True):
            found = {k: v for k, v in oracle.state[place].items() if k != "step"} | {"z": oracle.z[place]}
            state[i] = {name: torch.tensor(value) for name, value in found.items()}
        lr = 0.02 * min(1.0, BEFORE / options["warmup_steps"])
        group |= {"k": BEFORE, "warmup_steps": options["warmup_steps"], "lr": lr, "ckp1": oracle.c}
        group |= {"beta1": oracle.beta, "weight_sum": oracle.sum_of_weights, "params": ids}
        group["weight_decay"] = options.get("weight_decay", 0.0)
        saved_groups.append(group)
        oracles.append(oracle)
    return oracles, {"state": state, "param_groups": saved_groups}


def released_successor(
    auxiliary: str, dtype: torch.dtype = torch.float64, **options: Any
) -> tuple[AMUSE, list[list[nn.Parameter]]]:
    ours = [
        [nn.Parameter(torch.tensor(start()[i], dtype=dtype)) for i in places]
        for places in ([0, 1, 3, 5], [2, 4])
    ]
    groups = [{"params": ours[0], "direction": "muon"}, {"params": ours[1], "direction": auxiliary}]
    return AMUSE(groups, lr=0.02, **options), ours


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("case", RELEASED)
def test_goes_on_as_the_released_optimizer_would(case: str, mode: Any, dtype: torch.dtype) -> None:
    auxiliary = "sgd" if case == "with SGD" else "adamw"
    oracles, saved = a_released_run(auxiliary, **RELEASED[case])
    options = RELEASED[case] | {"t0_steps": RELEASED[case]["warmup_steps"], "parity": "published"}
    optimizer, ours = released_successor(auxiliary, dtype, **options)
    for state in saved["state"].values():
        state.update({name: value.to(dtype) for name, value in state.items()})
    for oracle, parameters in zip(oracles, ours, strict=True):
        held = oracle.y if mode == "train" else oracle.x
        set_weights(numbered(parameters), numbered([torch.tensor(value) for value in held]))
    optimizer.load_state_dict(from_published(saved, optimizer, mode=mode))
    assert optimizer.mode == mode
    optimizer.train()
    for step in range(BEFORE, BEFORE + AFTER):
        for places, oracle, parameters in zip(([0, 1, 3, 5], [2, 4]), oracles, ours, strict=True):
            oracle.step([gradients(step)[i] for i in places])
            for place, parameter in zip(places, parameters, strict=True):
                parameter.grad = torch.tensor(gradients(step)[place], dtype=dtype)
        optimizer.step()
        for oracle, parameters in zip(oracles, ours, strict=True):
            compare(parameters, oracle.y, dtype)
    optimizer.eval()
    for oracle, parameters in zip(oracles, ours, strict=True):
        compare(parameters, oracle.x, dtype)


def compare(parameters: list[nn.Parameter], values: list[np.ndarray], dtype: torch.dtype) -> None:
    assert_equal(numbered(parameters), numbered([torch.tensor(value) for value in values]), dtype)


def numbered(tensors: list[Any]) -> dict[str, Any]:
    return {str(i): tensor for i, tensor in enumerate(tensors)}


def test_averages_exactly_from_there_on() -> None:
    """With parity="exact" the released run's x is the x that is gone on from."""
    oracles, saved = a_released_run("adamw", **RELEASED["after it"])
    optimizer, ours = released_successor("adamw", **RELEASED["after it"])
    for oracle, parameters in zip(oracles, ours, strict=True):
        set_weights(numbered(parameters), numbered([torch.tensor(value) for value in oracle.y]))
    optimizer.load_state_dict(from_published(saved, optimizer, mode="train"))
    optimizer.eval()
    for oracle, parameters in zip(oracles, ours, strict=True):
        compare(parameters, oracle.x, torch.float64)


def test_refuses_state_of_the_release_that_does_not_fit() -> None:
    _, saved = a_released_run("adamw", **RELEASED["after it"])
    good = RELEASED["after it"]
    for wrong, message in (
        ({"beta1": 0.5}, "the beta"),
        ({"rho": 0.8}, "rho=0.8 of the optimizer give"),
        ({"r": 0.0}, "r=0.0 and weight_lr_power=2.0 of the optimizer give"),
        ({"weight_lr_power": 1.0}, "the averaging coefficient"),
    ):
        optimizer, _ = released_successor("adamw", **(good | wrong))
        with pytest.raises(ValueError, match=message):
            from_published(saved, optimizer, mode="train")
    optimizer, _ = released_successor("adamw", **good)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="mode must be one of 'train', 'eval', got 'y'"):
        from_published(saved, optimizer, mode="y")  # which is refused
    for change, message in (
        (
            lambda s: s["param_groups"][0].pop("base_lr"),
            "must be of the released AMUSE: its groups lack base_lr",
        ),
        (lambda s: s["param_groups"][1].update(update_type="sgd"), "but its state is for 'sgd'"),
        (
            lambda s: s["state"][0].update(momentum_buffer=torch.zeros(2)),
            "holds a momentum_buffer of shape (2,) for parameter number 1 of its group of shape (6, 4)",
        ),
        (lambda s: [g.update(warmup_steps=1, c_warmup=1.0, k=1) for g in s["param_groups"]], "give"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            optimizer.load_state_dict(from_published(edited(saved, change), optimizer, mode="train"))
    assert snapshot(optimizer) == before


def test_state_after_a_learning_rate_of_0_is_refused() -> None:
    """The released groups hold the last learning rate alone, and averaging goes on from the largest."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = AMUSE([weight], lr=0.5, direction="sgd", warmup_steps=2, parity="published")
    group = {
        "params": [0],
        "k": 5,
        "weight_sum": 0.6,
        "base_lr": 0.5,
        "lr": 0.0,
        "ckp1": 0.0,
        "c_warmup": 0.5,
    }
    group |= {"beta1": 0.6, "update_type": "sgd", "warmup_steps": 2, "weight_decay": 0.0}
    saved = {"state": {0: {"z": torch.zeros(3)}}, "param_groups": [group]}
    with pytest.raises(ValueError, match="a learning rate of 0, and the largest one so far"):
        from_published(saved, optimizer, mode="train")
