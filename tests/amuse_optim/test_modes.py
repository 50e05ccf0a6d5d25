"""Modes that overlap, and modes of model and optimizer that have come apart."""

import asyncio
import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import (
    AMUSE,
    OptimizerModeError,
    accept_weights,
    attach,
    averaged,
    averaged_state_dict,
    param_groups,
    project,
    telemetry,
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        (model(inputs) - inputs[:, :3]).square().mean().backward()
        optimizer.step()


def trained(steps: int = 5) -> tuple[nn.Sequential, AMUSE]:
    model = network()
    optimizer = AMUSE(param_groups(model), lr=0.1, warmup_steps=3)
    train(model, optimizer, range(steps))
    return model, optimizer


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.requirement("B16")
@pytest.mark.parametrize(
    "order", ["AaBb", "ABab", "ABba", "ABCacb", "ABCbac", "ABCcab", "ABaCbc", "ABCabc", "ABCbca"]
)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_blocks_in_any_order_see_x_and_y_comes_back_after_the_last(order: str, mode: str) -> None:
    model, optimizer = trained()
    y, x = weights(model), averaged_state_dict(model, optimizer)
    getattr(optimizer, mode)()
    blocks = {}
    for letter in order:
        if letter.isupper():
            blocks[letter] = averaged(optimizer)
            blocks[letter].__enter__()
        else:
            blocks.pop(letter.upper()).__exit__(None, None, None)
        assert optimizer.mode == ("eval" if blocks else mode)
        assert same(weights(model), x if blocks else {"train": y, "eval": x}[mode])
    optimizer.train()
    assert same(weights(model), y)


@pytest.mark.requirement("B16")
def test_evaluations_at_the_same_time() -> None:
    model, optimizer = trained()
    y, x = weights(model), averaged_state_dict(model, optimizer)
    seen: list[bool] = []

    async def evaluate(wait: float, work: float) -> None:
        await asyncio.sleep(wait)
        with averaged(optimizer):
            await asyncio.sleep(work)
            seen.append(same(weights(model), x))

    async def both() -> None:
        await asyncio.gather(evaluate(0, 0.03), evaluate(0.01, 0.06))

    asyncio.run(both())
    inside, leave = threading.Barrier(2), threading.Event()

    def thread(last: bool) -> None:
        with averaged(optimizer):
            inside.wait()
            if last:
                leave.wait()
            seen.append(same(weights(model), x))
        leave.set()

    threads = [threading.Thread(target=thread, args=(last,)) for last in (False, True)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert seen == [True] * 4
    assert (optimizer.mode, same(weights(model), y)) == ("train", True)


@pytest.mark.requirement("B16")
def test_blocks_survive_errors_copies_and_switches_inside() -> None:
    model, optimizer = trained()
    y, x = weights(model), averaged_state_dict(model, optimizer)
    with averaged(optimizer):
        with pytest.raises(OptimizerModeError):
            optimizer.step()
        with pytest.raises(RuntimeError, match="inside"), averaged(optimizer):
            raise RuntimeError("inside")
        assert same(weights(model), x)
        optimizer.train()
        with averaged(optimizer):
            assert same(weights(model), x)
        assert same(weights(model), y)  # what the inner block found
        copied = copy.deepcopy(optimizer)
    assert same(weights(model), y)
    with averaged(copied):
        pass
    assert copied.mode == "train"


@pytest.mark.requirement("B1", "B8")
@pytest.mark.parametrize("saved_in", ["train", "eval"])
@pytest.mark.parametrize("loaded_in", ["train", "eval"])
@pytest.mark.parametrize("first", ["model", "optimizer"])
@pytest.mark.parametrize("switch", [True, False], ids=["train()", "forward"])
def test_an_attached_model_is_set_right_after_loading(
    saved_in: str, loaded_in: str, first: str, switch: bool
) -> None:
    model, optimizer = trained()
    y, x = weights(model), averaged_state_dict(model, optimizer)
    getattr(optimizer, saved_in)()
    saved = {"model": copy.deepcopy(model.state_dict()), "optimizer": copy.deepcopy(optimizer.state_dict())}

    model, optimizer = trained(2)
    attach(optimizer, model)
    model.train(loaded_in == "train")
    for part in ("model", "optimizer") if first == "model" else ("optimizer", "model"):
        {"model": model, "optimizer": optimizer}[part].load_state_dict(saved[part])
    if switch:
        model.train(loaded_in == "train")
    model(torch.ones(1, 6))
    assert optimizer.mode == loaded_in
    for name, value in (y if loaded_in == "train" else x).items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.requirement("B8")
def test_an_attached_model_follows_flags_set_by_hand_and_leaves_averaged_alone() -> None:
    model, optimizer = trained()
    y, x = weights(model), averaged_state_dict(model, optimizer)
    handle = attach(optimizer, model)
    for flag, wanted in ((False, x), (True, y)):
        for module in model.modules():
            module.training = flag
        model[0](torch.ones(1, 6))  # a part of it, as Lightning calls it
        assert same(weights(model), wanted)
    with averaged(optimizer):
        model(torch.ones(1, 6))
        assert same(weights(model), x)
    handle.remove()
    model.training = False
    model(torch.ones(1, 6))
    assert optimizer.mode == "train"


@pytest.mark.requirement("B8")
def test_a_new_optimizer_of_the_same_parameters_takes_over_an_attached_model() -> None:
    model, old = trained()
    attach(old, model)
    new = AMUSE(param_groups(model), warmup_steps=3)
    handle = attach(new, model)
    model.eval()
    assert (old.mode, new.mode) == ("train", "eval")
    with pytest.raises(ValueError, match="attached to an optimizer already"):
        attach(AMUSE([nn.Parameter(torch.ones(2))], direction="sgd", warmup_steps=2), model)
    handle.remove()
    assert not model._forward_pre_hooks
    assert not model[0]._forward_pre_hooks


@pytest.mark.requirement("B8", "B9")
@pytest.mark.filterwarnings("ignore")  # of Lightning, about loaders and devices
def test_attach_goes_through_lightnings_validation(tmp_path: Any) -> None:
    import lightning

    seen: list[tuple[str, str]] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, x: Tensor, _: int) -> Tensor:
            loss = self.net(x).square().mean()
            seen.append(("training", self.optimizers().mode))
            return loss

        def validation_step(self, x: Tensor, _: int) -> None:
            self.net(x)
            seen.append(("validation", self.optimizers().mode))

        def configure_optimizers(self) -> AMUSE:
            optimizer = AMUSE(param_groups(self.net), lr=0.02, warmup_steps=4)
            attach(optimizer, self)
            return optimizer

    loader = torch.utils.data.DataLoader([torch.randn(8, 6) for _ in range(2)], batch_size=None)
    module = Module()
    for epochs in (2, 1):
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, loader, loader)
    assert seen == [*[("training", "train")] * 2, *[("validation", "eval")] * 2] * 3


@pytest.mark.requirement("B9")
def test_every_function_takes_what_accelerate_made_of_the_optimizer() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = network()
    bare = AMUSE(param_groups(model), lr=0.1, warmup_steps=3)
    model, optimizer = accelerator.prepare(model, bare)
    train(model, optimizer, range(3))
    x = averaged_state_dict(model, optimizer)
    with averaged(optimizer):
        assert same(weights(model), x)
    assert telemetry(optimizer)["0_muon/lr"] > 0
    attach(optimizer, model).remove()
    project(optimizer, lambda tensor: tensor.clamp_(-0.1, 0.1))
    assert all(value.abs().max() <= 0.1 for value in averaged_state_dict(model, optimizer).values())
    accept_weights(optimizer)
    assert same(averaged_state_dict(model, optimizer), weights(model))
    with pytest.raises(TypeError, match="optimizer must be an AMUSE or hold one, got SGD"):
        averaged(torch.optim.SGD(model.parameters())).__enter__()
