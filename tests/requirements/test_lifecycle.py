"""State, checkpoints and the frameworks around an optimizer."""

import copy
import os
import socket
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from amuse_optim import AMUSE, OptimizerModeError, averaged, averaged_state_dict, param_groups
from tests.amuse_optim.training import build, loss_of, train


def everything(model: nn.Module, optimizer: AMUSE) -> dict[str, Any]:
    """All bits that a failed call could have changed."""
    state = {
        (i, key): value.clone() if isinstance(value, Tensor) else value
        for i, parameter in enumerate(model.parameters())
        for key, value in optimizer.state[parameter].items()
    }
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return {"parameters": [p.detach().clone() for p in model.parameters()], "state": state, "groups": groups}


def unchanged(before: dict[str, Any], after: dict[str, Any]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)

    return (
        all(equal(a, b) for a, b in zip(before["parameters"], after["parameters"], strict=True))
        and before["state"].keys() == after["state"].keys()
        and all(equal(value, after["state"][key]) for key, value in before["state"].items())
        and before["groups"] == after["groups"]
    )


# --- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.requirement("B1", "B4")
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_b04_distributed_checkpoint_continues_bit_for_bit(tmp_path: Path, mode: str, on_disk: bool) -> None:
    model, optimizer = build()
    train(model, optimizer, 20)
    other_model, other = build(seed=1)
    if mode == "eval":
        optimizer.eval()
        other.eval()  # so that what is asked for includes y
    model_state, optimizer_state = get_state_dict(model, optimizer)
    if on_disk:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about a single process
            dcp.save({"m": model_state, "o": optimizer_state}, checkpoint_id=tmp_path, no_dist=True)
            model_state, optimizer_state = get_state_dict(other_model, other)
            dcp.load({"m": model_state, "o": optimizer_state}, checkpoint_id=tmp_path, no_dist=True)
    else:
        model_state, optimizer_state = copy.deepcopy((model_state, optimizer_state))
    set_state_dict(other_model, other, model_state_dict=model_state, optim_state_dict=optimizer_state)
    assert other.mode == mode
    optimizer.train()
    other.train()
    train(model, optimizer, 50, start=20)
    train(other_model, other, 50, start=20)
    assert unchanged(everything(model, optimizer), everything(other_model, other))


@pytest.mark.requirement("B4")
def test_b04_an_eval_checkpoint_read_in_train_mode_still_gives_y() -> None:
    """Where the reader did not ask for y it is interpolated: right up to rounding."""
    model, optimizer = build()
    train(model, optimizer, 20)
    y = [p.detach().clone() for p in model.parameters()]
    optimizer.eval()
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        del state["y"]
    optimizer.load_state_dict(saved)
    optimizer.train()
    for parameter, expected in zip(model.parameters(), y, strict=True):
        torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.requirement("B4")
def test_b04_asking_for_state_neither_moves_nor_counts() -> None:
    model, optimizer = build()
    before = everything(model, optimizer)
    get_state_dict(model, optimizer)
    assert unchanged(before, everything(model, optimizer))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.requirement("B5")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_b05_float32_state_survives_loading(dtype: torch.dtype) -> None:
    def make() -> tuple[nn.Parameter, AMUSE]:
        weight = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4).to(dtype))
        return weight, AMUSE([weight], direction="muon", lr=0.01, warmup_steps=2)

    weight, optimizer = make()
    for step in range(5):
        weight.grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(step)).to(dtype)
        optimizer.step()
    other, loaded = make()
    other.data.copy_(weight.data)
    loaded.load_state_dict(optimizer.state_dict())
    for key in ("z", "x", "momentum_buffer"):
        assert loaded.state[other][key].dtype == torch.float32
        assert torch.equal(loaded.state[other][key], optimizer.state[weight][key])


# --- all or nothing -------------------------------------------------------------------------------


class Unreliable:
    """An orthogonalization that fails on its fourth call."""

    def __init__(self, failure: Callable[[Tensor], Tensor]) -> None:
        self.calls = 0
        self.failure = failure

    def __call__(self, stack: Tensor) -> Tensor:
        self.calls += 1
        return self.failure(stack) if self.calls == 4 else stack

    def __deepcopy__(self, memo: dict[int, Any]) -> "Unreliable":
        return self


def _raise(_stack: Tensor) -> Tensor:
    raise RuntimeError("out of order")


@pytest.mark.requirement("A8")
@pytest.mark.parametrize(
    ("failure", "message"), [(_raise, "out of order"), (lambda stack: stack[:, :1], "must keep the shape")]
)
def test_a08_a_step_whose_orthogonalization_fails_changes_nothing(
    failure: Callable[[Tensor], Tensor], message: str
) -> None:
    """Two shapes: one of them has been orthogonalized already when the other fails."""
    model, optimizer = build(orthogonalize=Unreliable(failure))
    train(model, optimizer, 1)
    before = everything(model, optimizer)
    loss_of(model, 1).backward()
    with pytest.raises((RuntimeError, ValueError), match=message):
        optimizer.step()
    assert unchanged(before, everything(model, optimizer))
    optimizer.step()
    assert not unchanged(before, everything(model, optimizer))


@pytest.mark.requirement("A8", "B8", "C7")
@pytest.mark.parametrize("kind", ["nan", "inf", "sparse", "negative lr", "nan lr", "eval mode", "closure"])
@pytest.mark.parametrize("precision", ["full", "lean"])
def test_a08_every_failing_step_changes_nothing(kind: str, precision: str) -> None:
    model, optimizer = build(state_precision=precision)
    train(model, optimizer, 5)
    last = model[4].bias
    closure, error = None, Exception
    if kind in ("nan", "inf"):
        last.grad[1], error = float(kind), FloatingPointError
    elif kind == "sparse":
        last.grad, error = last.grad.to_sparse(), TypeError
    elif kind.endswith("lr"):
        optimizer.param_groups[-1]["lr"], error = (
            {"negative lr": -1.0, "nan lr": float("nan")}[kind],
            ValueError,
        )
    elif kind == "eval mode":
        optimizer.eval()
        error = OptimizerModeError
    else:
        error = ZeroDivisionError

        def closure() -> float:
            return 1 / 0

    before = everything(model, optimizer)
    before["groups"] = repr(before["groups"])  # nan is not equal to itself
    with pytest.raises(error):
        optimizer.step(closure)
    after = everything(model, optimizer)
    after["groups"] = repr(after["groups"])
    assert unchanged(before, after)


# --- frameworks -----------------------------------------------------------------------------------


@pytest.mark.requirement("B9")
def test_b09_gradient_accumulation_and_clipping() -> None:
    """Four quarter batches accumulate to the whole one."""
    (model, optimizer), (other, accumulating) = build(), build()
    for step in range(10):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        accumulating.zero_grad(set_to_none=step % 2 == 0)
        for i in range(4):
            (loss_of(other, step, slice(4 * i, 4 * i + 4)) / 4).backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        accumulating.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.requirement("B9")
def test_b09_grad_scaler_skips_infinite_gradients_and_scales_nothing_else() -> None:
    (model, optimizer), (other, scaled) = build(), build()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(12):
        if step == 6:  # the scaler must see this one and not step
            scaled.zero_grad()
            scaler.scale(loss_of(other, 100) * float("inf")).backward()
            before = everything(other, scaled)
            scaler.step(scaled)
            scaler.update()
            assert unchanged(before, everything(other, scaled))
        train(model, optimizer, 1, start=step)
        scaled.zero_grad()
        scaler.scale(loss_of(other, step)).backward()
        scaler.step(scaled)
        scaler.update()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.requirement("B9")
def test_b09_hooks_run() -> None:
    model, optimizer = build()
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.register_state_dict_post_hook(lambda *_: seen.append("state"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: seen.append("load"))
    train(model, optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["before", "after", "state", "load"]


@pytest.mark.requirement("B9")
def test_b09_compiled_models_train_and_ship() -> None:
    (model, optimizer), (other, other_optimizer) = build(), build()
    compiled = torch.compile(other, backend="aot_eager")
    for step in range(5):
        train(model, optimizer, 1, start=step)
        train(compiled, other_optimizer, 1, start=step)
    for a, b in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    shipped = averaged_state_dict(compiled, other_optimizer)
    assert shipped.keys() == compiled.state_dict().keys()
    wrapped = AMUSE(param_groups(compiled), warmup_steps=2)
    assert [g["direction"] for g in wrapped.param_groups] == [g["direction"] for g in optimizer.param_groups]


@pytest.mark.requirement("B9")
def test_b09_freezing_and_unfreezing() -> None:
    model, optimizer = build()
    train(model, optimizer, 5)
    frozen = model[2].weight
    frozen.requires_grad_(False)
    frozen.grad = None
    held = frozen.detach().clone()
    train(model, optimizer, 5, start=5)
    assert torch.equal(frozen, held)
    assert optimizer.state[frozen]["step"] == 5
    frozen.requires_grad_(True)
    train(model, optimizer, 5, start=10)
    assert optimizer.state[frozen]["step"] == 10
    assert not torch.equal(frozen, held)


@pytest.mark.requirement("B9")
def test_b09_accelerate_prepares_and_steps_it() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = build()
    other, plain = build()
    model, prepared = accelerator.prepare(model, optimizer)
    for step in range(5):
        prepared.zero_grad()
        accelerator.backward(loss_of(model, step))
        prepared.step()
        train(other, plain, 1, start=step)
    with averaged(optimizer), averaged(plain):
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.requirement("B9")
def test_b09_state_follows_the_device_of_its_parameter() -> None:
    """On the meta device shapes and devices are real, values are not."""
    parameters = [nn.Parameter(torch.ones(4, 4, device=device)) for device in ("cpu", "meta")]
    optimizer = AMUSE(parameters, direction="muon", warmup_steps=2, nonfinite="ignore")
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter in parameters:
        devices = {v.device.type for v in optimizer.state[parameter].values() if isinstance(v, Tensor)}
        assert devices == {parameter.device.type}


# --- ranks ----------------------------------------------------------------------------------------


def _rank(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model, optimizer = build()
    parallel = nn.parallel.DistributedDataParallel(model)
    for step in range(12):
        optimizer.zero_grad()
        loss_of(parallel, step, slice(8 * rank, 8 * rank + 8)).backward()
        optimizer.step()
        for _ in range(step % 3 + rank):  # ranks switch modes differently often
            with averaged(optimizer):
                pass
    torch.save([p.detach().clone() for p in model.parameters()], f"{folder}/y{rank}.pt")
    optimizer.eval()
    torch.save([p.detach().clone() for p in model.parameters()], f"{folder}/x{rank}.pt")
    del parallel  # its reducer must go before the group it talks through
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # a thread of gloo that still holds a tensor aborts the interpreter's finalization


@pytest.mark.requirement("B11")
def test_b11_ranks_that_switch_modes_stay_equal_to_the_bit(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = torch.multiprocessing.spawn(_rank, (port, str(tmp_path)), nprocs=2, join=False)
    deadline = time.monotonic() + 120
    while not ranks.join(timeout=5):
        if time.monotonic() > deadline:
            for process in ranks.processes:
                process.kill()
            pytest.fail("the ranks did not end within two minutes")
    for point in "xy":
        zero, one = (torch.load(tmp_path / f"{point}{rank}.pt", weights_only=True) for rank in (0, 1))
        assert all(torch.equal(a, b) for a, b in zip(zero, one, strict=True))
