"""State of schedulefree's optimizers and of the authors' release, taken over and continued."""

import copy
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import schedulefree
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE, from_published, from_schedulefree
from tests.oracle.published import PublishedOracle

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
SHAPES: list[tuple[int, ...]] = [(3, 5), (6, 4), (), (2, 2, 3, 3), (7,), (6, 4)]
BEFORE, AFTER = 30, 20


def start() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.standard_normal(shape) for shape in SHAPES]


def gradients(step: int) -> list[np.ndarray]:
    """Of very different sizes."""
    rng = np.random.default_rng(1000 + step)
    return [rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 2) for shape in SHAPES]


def named(dtype: torch.dtype) -> dict[str, nn.Parameter]:
    return {f"p{i}": nn.Parameter(torch.tensor(value, dtype=dtype)) for i, value in enumerate(start())}


def groups_of(parameters: Mapping[str, nn.Parameter], *options: dict[str, Any]) -> list[dict[str, Any]]:
    """Two groups, of every second parameter."""
    members = list(parameters.items())
    return [{"params": members[i::2], **more} for i, more in enumerate(options)]


def steps(optimizer: Any, parameters: Mapping[str, nn.Parameter], numbers: range, late: str = "") -> None:
    """Steps on equal gradients; the parameter `late` has none before the state is taken over."""
    for step in numbers:
        for (name, parameter), gradient in zip(parameters.items(), gradients(step), strict=True):
            rests = name == late and step < BEFORE
            parameter.grad = None if rests else torch.tensor(gradient, dtype=parameter.dtype)
        optimizer.step()


def assert_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    for name, parameter in ours.items():
        expected = theirs[name].detach().double()
        error = (parameter.detach().double() - expected).abs().max() / expected.abs().max().clamp(min=1)
        assert error < TOLERANCE[dtype], name


BUILD: dict[str, Callable[..., Any]] = {
    "adamw": lambda groups, lr, beta1, **options: schedulefree.AdamWScheduleFree(
        groups, lr=lr, betas=(beta1, 0.99), eps=1e-8, **options
    ),
    "sgd": lambda groups, lr, beta1, **options: schedulefree.SGDScheduleFree(
        groups, lr=lr, momentum=beta1, **options
    ),
}
OURS: dict[str, dict[str, Any]] = {
    "adamw": {"direction": "adamw", "beta2": 0.99, "eps": 1e-8, "weight_decay_at": "y", "rho": 0.0},
    "sgd": {"direction": "sgd", "weight_decay_at": "y", "rho": 0.0},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"warmup_steps": 0},
    "within the warm-up": {"warmup_steps": 40, "r": 1.0},
    "other weights": {"warmup_steps": 10, "weight_lr_power": 1.0, "beta1": 0.7},
}


def a_run(kind: str, dtype: torch.dtype, **options: Any) -> tuple[Any, dict[str, nn.Parameter]]:
    """A run of schedulefree's after 30 steps, the last 20 at half its learning rate."""
    theirs = named(dtype)
    settings: dict[str, Any] = {"lr": 0.02, "beta1": 0.9, **options}
    optimizer = BUILD[kind](groups_of(theirs, {}, {"weight_decay": 0.1}), **settings)
    optimizer.train()
    late = "p3" if kind == "sgd" else ""
    steps(optimizer, theirs, range(10), late)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    steps(optimizer, theirs, range(10, BEFORE), late)
    return optimizer, theirs


def successor(kind: str, dtype: torch.dtype, **options: Any) -> tuple[AMUSE, dict[str, nn.Parameter]]:
    ours = named(dtype)
    settings = {"lr": 0.02, "beta1": 0.9, **OURS[kind], **options}
    return AMUSE(groups_of(ours, {}, {"weight_decay": 0.1}), **settings), ours


def set_weights(ours: Mapping[str, nn.Parameter], theirs: Mapping[str, Tensor]) -> None:
    """As loading the model's state dict does."""
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(theirs[name])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_goes_on_as_schedulefree_would(kind: str, settings: str, mode: str, dtype: torch.dtype) -> None:
    peer, theirs = a_run(kind, dtype, **SETTINGS[settings])
    getattr(peer, mode)()
    optimizer, ours = successor(kind, dtype, **SETTINGS[settings])  # no warning: the same settings
    set_weights(ours, theirs)
    optimizer.load_state_dict(from_schedulefree(copy.deepcopy(peer.state_dict()), optimizer))
    assert optimizer.mode == mode
    assert_equal(ours, theirs, dtype)
    for both in (peer, optimizer):
        both.train()
    for step in range(BEFORE, BEFORE + AFTER):
        steps(peer, theirs, range(step, step + 1))
        steps(optimizer, ours, range(step, step + 1))
        assert_equal(ours, theirs, dtype)
    for both in (peer, optimizer):
        both.eval()
    assert_equal(ours, theirs, dtype)


def test_takes_over_a_run_that_has_not_begun() -> None:
    peer = BUILD["adamw"](groups_of(theirs := named(torch.float64), {}, {}), lr=0.02, beta1=0.9)
    optimizer, ours = successor("adamw", torch.float64, warmup_steps=0, weight_decay=0.0)
    with pytest.warns(UserWarning, match="other values than this optimizer for weight_decay"):
        optimizer.load_state_dict(from_schedulefree(peer.state_dict(), optimizer))
    for both, parameters in ((peer, theirs), (optimizer, ours)):
        both.train()
        steps(both, parameters, range(AFTER))
    assert_equal(ours, theirs, torch.float64)


def test_beta_rises_from_where_it_was() -> None:
    peer, theirs = a_run("adamw", torch.float64, warmup_steps=10)
    optimizer, ours = successor("adamw", torch.float64, warmup_steps=10, rho=0.8)
    set_weights(ours, theirs)
    optimizer.load_state_dict(from_schedulefree(peer.state_dict(), optimizer))
    betas = [0.9]
    for step in range(BEFORE, BEFORE + 40):
        steps(optimizer, ours, range(step, step + 1))
        betas.append(optimizer.param_groups[0]["beta_t"])
    assert all(a < b for a, b in itertools.pairwise(betas))
    assert betas[1] < 0.905
    assert betas[-1] > 0.93


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
        set_weights(dict(enumerate(parameters)), dict(enumerate(map(torch.tensor, held))))  # type: ignore[arg-type]
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
    ours = {str(i): parameter for i, parameter in enumerate(parameters)}
    assert_equal(ours, {str(i): torch.tensor(value) for i, value in enumerate(values)}, dtype)


def test_averages_exactly_from_there_on() -> None:
    """With parity="exact" the released run's x is the x that is gone on from."""
    oracles, saved = a_released_run("adamw", **RELEASED["after it"])
    optimizer, ours = released_successor("adamw", **RELEASED["after it"])
    for oracle, parameters in zip(oracles, ours, strict=True):
        set_weights(dict(enumerate(parameters)), dict(enumerate(map(torch.tensor, oracle.y))))  # type: ignore[arg-type]
    optimizer.load_state_dict(from_published(saved, optimizer, mode="train"))
    optimizer.eval()
    for oracle, parameters in zip(oracles, ours, strict=True):
        compare(parameters, oracle.x, torch.float64)


def snapshot(optimizer: AMUSE) -> str:
    return repr(optimizer.state_dict())


def edited(saved: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    saved = copy.deepcopy(saved)
    change(saved)
    return saved


SCHEDULEFREE_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "shape": (
        lambda s: s["state"][1].update(z=torch.zeros(9)),
        "holds a z of shape (9,) for parameter 'p2' of shape ()",
    ),
    "no second moment": (
        lambda s: s["state"][0].pop("exp_avg_sq"),
        "holds no exp_avg_sq for parameter 'p0' of shape (3, 5)",
    ),
    "fewer parameters": (
        lambda s: s["param_groups"][0]["params"].pop(),
        "groups of [2, 3] parameters, the optimizer of [3, 3]",
    ),
    "another optimizer": (
        lambda s: s["param_groups"][1].pop("train_mode"),
        "must be of schedulefree's AdamWScheduleFree or SGDScheduleFree: its groups lack train_mode",
    ),
    "no groups": (lambda s: s.pop("param_groups"), "it has no 'state' or 'param_groups'"),
    "two modes": (
        lambda s: s["param_groups"][1].update(train_mode=False),
        "some groups of state_dict are in train mode, others not",
    ),
    "gradients at z": (
        lambda s: s["param_groups"][1].update(betas=(0.0, 0.99)),
        "betas[0] must be > 0, got 0",
    ),
    "of SGD": (
        lambda s: [g.pop("betas") and g.update(momentum=0.9) for g in s["param_groups"]],
        "parameter 'p0' of shape (3, 5) has direction 'adamw', but its state is for 'sgd'",
    ),
    "out of range": (
        lambda s: s["param_groups"][0].update(weight_decay=-1.0),
        "weight_decay must be finite and >= 0, got -1.0",
    ),
    "another order": (
        lambda s: s["param_groups"][0].update(param_names=["p2", "p0", "p4"]),
        "has parameter 'p2' where the optimizer has 'p0'",
    ),
}


@pytest.mark.parametrize("fault", SCHEDULEFREE_FAULTS)
def test_refuses_state_of_schedulefree_that_does_not_fit(fault: str) -> None:
    change, message = SCHEDULEFREE_FAULTS[fault]
    peer, _ = a_run("adamw", torch.float64, warmup_steps=0)
    optimizer, ours = successor("adamw", torch.float64, warmup_steps=0)
    steps(optimizer, ours, range(3))
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.load_state_dict(from_schedulefree(edited(peer.state_dict(), change), optimizer))
    assert snapshot(optimizer) == before


@pytest.mark.parametrize(
    "peer",
    ["RAdamScheduleFree", "AdamWScheduleFreeClosure", "SGDScheduleFreeClosure", "RAdamScheduleFreeClosure"],
)
def test_refuses_other_optimizers_of_schedulefree(peer: str) -> None:
    parameter = nn.Parameter(torch.ones(3))
    saved = getattr(schedulefree, peer)([parameter], lr=0.1).state_dict()
    optimizer = AMUSE([parameter], direction="adamw", warmup_steps=0, rho=0.0)
    with pytest.raises(ValueError, match="its groups lack"):
        from_schedulefree(saved, optimizer)


def test_refuses_to_go_on_in_a_lower_precision() -> None:
    """A rounded y could not give x back."""
    peer, _ = a_run("adamw", torch.float32, warmup_steps=0)
    optimizer, _ = successor("adamw", torch.bfloat16, warmup_steps=0)
    with pytest.raises(ValueError, match=re.escape("holds no x for parameter 'p0' of shape (3, 5)")):
        optimizer.load_state_dict(from_schedulefree(peer.state_dict(), optimizer))


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
        from_published(saved, optimizer, mode="y")  # type: ignore[arg-type]
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
