"""State that is not where it was made: emptied, exchanged, under other keys, or made under inference_mode."""

import collections
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from amuse_optim import AMUSE, averaged, averaged_state_dict, telemetry
from tests.amuse_optim.training import KINDS, build_list, train_list

CALLS: dict[str, Callable[[AMUSE], Any]] = {
    "step": lambda optimizer: optimizer.step(),
    "state_dict": lambda optimizer: optimizer.state_dict(),
    "eval": lambda optimizer: optimizer.eval(),
    "telemetry": telemetry,
    "averaged": lambda optimizer: averaged(optimizer).__enter__(),
}


def values(model: nn.ParameterList, optimizer: AMUSE) -> list[Tensor]:
    kept = optimizer.state_dict()["state"].values()
    tensors = [value for state in kept for value in state.values() if isinstance(value, Tensor)]
    return [tensor.detach().clone() for tensor in (*model, *tensors)]


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


@pytest.mark.requirement("B15")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("empty", [collections.defaultdict(dict), {}], ids=["defaultdict", "dict"])
def test_state_emptied_before_the_first_step_is_made_anew(call: str, empty: Any) -> None:
    model, optimizer = build_list(2)
    twin, untouched = build_list(2)
    optimizer.state = copy.copy(empty)
    CALLS[call](optimizer)
    optimizer.train()
    CALLS[call](untouched)
    untouched.train()
    train_list(model, optimizer, range(3))
    train_list(twin, untouched, range(3))
    assert equal(values(model, optimizer), values(twin, untouched))


@pytest.mark.requirement("B15")
@pytest.mark.parametrize("call", CALLS)
def test_state_emptied_after_a_step_is_missed_in_words(call: str) -> None:
    model, optimizer = build_list(2)
    train_list(model, optimizer, range(3))
    kept, saved, before = optimizer.state, copy.deepcopy(optimizer.state_dict()), values(model, optimizer)
    optimizer.state = collections.defaultdict(dict)
    with pytest.raises(ValueError, match=r"state of parameter '0' .* is not in optimizer.state"):
        CALLS[call](optimizer)
    assert optimizer.mode == "train"
    assert [group["t"] for group in optimizer.param_groups] == [3]
    optimizer.load_state_dict(saved)
    assert equal(values(model, optimizer), before)
    optimizer.state = kept
    assert equal(values(model, optimizer), before)
    del optimizer.state[model[1]]["step"]
    with pytest.raises(ValueError, match="state of parameter '1'"):
        CALLS[call](optimizer)


@pytest.mark.requirement("B15")
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_parameters_may_be_exchanged_before_the_first_step(mode: str) -> None:
    model, optimizer = build_list(2)
    twin, untouched = build_list(2)
    for one in (optimizer, untouched):
        getattr(one, mode)()
    group = optimizer.param_groups[0]
    model = nn.ParameterList(parameter.detach().clone() for parameter in model)
    group["params"][:] = list(model)
    assert list(optimizer.state_dict()["state"]) == [0, 1]
    for one in (optimizer, untouched):
        one.train()
    train_list(model, optimizer, range(3))
    train_list(twin, untouched, range(3))
    assert equal(values(model, optimizer), values(twin, untouched))
    assert len(optimizer.state) == 2  # nothing keeps the old ones alive
    assert group["param_names"] == ["0", "1"]


@pytest.mark.requirement("B15")
def test_a_parameter_that_takes_anothers_place_begins_anew() -> None:
    model, optimizer = build_list(2)
    train_list(model, optimizer, range(3))
    wider = nn.Parameter(torch.ones(6, 3))
    optimizer.param_groups[0]["params"][1] = wider
    wider.grad = torch.ones(6, 3)
    optimizer.step()
    assert optimizer.state[wider]["step"] == 1
    assert torch.isfinite(averaged_state_dict(nn.ParameterList([wider]), optimizer)["0"]).all()

    alike = nn.Parameter(torch.ones(4, 3))
    optimizer.param_groups[0]["params"][0] = alike
    with pytest.warns(
        UserWarning, match="parameter '0' of shape .* took the place of one that has taken steps"
    ):
        optimizer.state_dict()
    assert torch.equal(optimizer.state[alike]["z"], alike)


@pytest.mark.requirement("B15")
def test_a_parameter_removed_and_put_back_is_missed_in_words() -> None:
    model, optimizer = build_list(2)
    train_list(model, optimizer, range(3))
    removed = optimizer.param_groups[0]["params"].pop()
    optimizer.param_groups[0]["param_names"].pop()
    assert list(optimizer.state_dict()["state"]) == [0]
    optimizer.param_groups[0]["params"].append(removed)
    with pytest.raises(ValueError, match="state of parameter number 1 of its group"):
        optimizer.step()


@pytest.mark.requirement("B4", "B15")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("whole", [True, False], ids=["the optimizer", "its state dict"])
@pytest.mark.filterwarnings("ignore")  # of torch, about a single process
def test_raw_distributed_checkpoints_lose_nothing(
    kind: str, dtype: torch.dtype, whole: bool, tmp_path: Any
) -> None:
    if kind == "captured" and dtype != torch.float32:
        dtype = torch.float64
    model, optimizer = build_list(2, dtype, **KINDS[kind])
    train_list(model, optimizer, range(5))
    dcp.save(
        {"model": model, "optim": optimizer if whole else optimizer.state_dict()}, checkpoint_id=tmp_path
    )
    again, target = build_list(2, dtype, **KINDS[kind])
    train_list(again, target, range(50, 52))
    stored = target.state_dict()
    dcp.load({"model": again, "optim": target if whole else stored}, checkpoint_id=tmp_path)
    if not whole:
        target.load_state_dict(stored)
    assert equal(values(again, target), values(model, optimizer))
    train_list(model, optimizer, range(5, 8))
    train_list(again, target, range(5, 8))
    assert equal(values(again, target), values(model, optimizer))


@pytest.mark.requirement("B15")
@pytest.mark.parametrize("key", [str, int])
def test_numbers_saved_as_tensors_and_keys_as_strings(key: Callable[[int], Any]) -> None:
    model, optimizer = build_list(2)
    train_list(model, optimizer, range(5))
    saved = copy.deepcopy(optimizer.state_dict())
    numbers = {**saved["param_groups"][0], "t": torch.tensor(5), "beta_t": torch.tensor(0.5)}
    saved["param_groups"] = [numbers]
    saved["state"] = {
        key(i): {**state, "step": torch.tensor(5.0), "beta": torch.tensor(state["beta"]).double()}
        for i, state in saved["state"].items()
    }
    again, target = build_list(2)
    again.load_state_dict(model.state_dict())
    target.load_state_dict(saved)
    assert [type(state["step"]) for state in target.state.values()] == [int, int]
    assert type(target.param_groups[0]["t"]) is int
    train_list(model, optimizer, range(5, 8))
    train_list(again, target, range(5, 8))
    assert equal(list(again), list(model))


@pytest.mark.requirement("B5", "B9")
def test_load_hooks_see_and_keep_what_is_loaded() -> None:
    model, optimizer = build_list(2, torch.bfloat16)
    train_list(model, optimizer, range(2))
    again, target = build_list(2, torch.bfloat16)
    seen: list[torch.dtype] = []

    def hook(loaded: torch.optim.Optimizer) -> None:
        seen.append(loaded.state[again[0]]["z"].dtype)
        loaded.state[again[0]]["exp_avg_sq"].zero_()

    target.register_load_state_dict_post_hook(hook)
    target.load_state_dict(optimizer.state_dict())
    assert seen == [torch.float32]
    assert target.state[again[0]]["exp_avg_sq"].eq(0).all()
    assert target.state[again[1]]["exp_avg_sq"].ne(0).all()


@pytest.mark.requirement("B15")
@pytest.mark.parametrize("kind", KINDS)
def test_inference_mode_around_anything_changes_nothing(kind: str) -> None:
    def life(around: Callable[[], Any]) -> list[Tensor]:
        model, _ = build_list(2)
        with around():
            optimizer = AMUSE(model, lr=0.1, warmup_steps=3, **KINDS[kind])
        train_list(model, optimizer, range(3))
        with around():
            optimizer.eval()
        optimizer.train()
        with around(), averaged(optimizer):
            optimizer.state_dict()
        saved = copy.deepcopy(optimizer.state_dict())
        with around():
            optimizer.load_state_dict(copy.deepcopy(saved))
        train_list(model, optimizer, range(3, 5))
        return values(model, optimizer)

    assert equal(life(torch.inference_mode), life(torch.no_grad))


@pytest.mark.requirement("B15")
def test_what_was_made_under_inference_mode_is_refused_before_a_step_counts() -> None:
    with torch.inference_mode():
        model, optimizer = build_list(2)
    for parameter in model:
        with torch.inference_mode():
            parameter.grad = torch.ones_like(parameter)
    with pytest.raises(ValueError, match=r"parameter '0' of shape .* was made under torch.inference_mode"):
        optimizer.step()
    assert optimizer.param_groups[0]["t"] == 0

    model, optimizer = build_list(2)
    train_list(model, optimizer, range(2))
    with torch.inference_mode():
        for state in optimizer.state.values():
            state["z"] = state["z"].clone()
    with pytest.raises(ValueError, match=r"state of parameter '0' .* was made under torch.inference_mode"):
        train_list(model, optimizer, range(2, 3))
    assert [state["step"] for state in optimizer.state.values()] == [2, 2]
