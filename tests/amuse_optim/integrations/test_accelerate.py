"""accelerate: what is saved at x is x, and either mode goes on with the same bits; one process, and FSDP2."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from torch import nn

from amuse_optim import AMUSE, averaged, averaged_state_dict, param_groups
from tests.amuse_optim.integrations import tiny_trainer as tiny
from tests.documented import code_in

ROOT = Path(__file__).parents[3]
HALF, END = 5, 10


def prepared() -> tuple[Accelerator, nn.Module, Any]:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = AMUSE(param_groups(model), lr=0.02, warmup_steps=3, weight_decay=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    return accelerator, model, optimizer


def train(accelerator: Accelerator, model: nn.Module, optimizer: Any, steps: range) -> None:
    for batch in range(2 * steps.start, 2 * steps.stop):
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(batch))
        with accelerator.accumulate(model):
            accelerator.backward((model(inputs) - inputs[:, :3].sin()).square().mean())
            optimizer.step()
            optimizer.zero_grad()


def plain_loop() -> tuple[tiny.Weights, tiny.Weights]:
    """x after half of the steps and y after all, without accelerate."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = AMUSE(param_groups(model), lr=0.02, warmup_steps=3, weight_decay=0.1)
    for step in range(END):
        if step == HALF:
            x = averaged_state_dict(model, optimizer)
        for batch in (2 * step, 2 * step + 1):
            inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(batch))
            (0.5 * (model(inputs) - inputs[:, :3].sin()).square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return x, tiny.weights(model)


def save_and_be_killed(folder: Path) -> None:
    accelerator, model, optimizer = prepared()
    train(accelerator, model, optimizer, range(HALF))
    accelerator.save_state(str(folder / "train"))
    with averaged(optimizer):
        accelerator.save_state(str(folder / "eval"))
        accelerator.save_model(model, str(folder / "shipped"))
    train(accelerator, model, optimizer, range(HALF, HALF + 2))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.requirement("B1")
def test_a_killed_run_goes_on_with_the_same_bits_from_either_mode(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.amuse_optim.integrations.test_accelerate", str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    x, y = plain_loop()
    for folder in ("eval", "shipped"):
        assert tiny.same(safetensors.torch.load_file(tmp_path / folder / "model.safetensors"), x)
    for mode in ("train", "eval"):
        accelerator, model, optimizer = prepared()
        accelerator.load_state(str(tmp_path / mode))
        assert optimizer.optimizer.mode == mode
        with averaged(optimizer):
            assert tiny.same(tiny.weights(model), x)
        optimizer.train()
        train(accelerator, model, optimizer, range(HALF, END))
        assert tiny.same(tiny.weights(model), y)


@pytest.mark.requirement("B4", "D3")
def test_fsdp2_goes_on_with_the_same_bits_from_either_mode(tmp_path: Path) -> None:
    """Two processes that exchange the parameters, save both ways, and two others that go on."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    program = ["tests.programs.accelerated", str(tmp_path), "SHARDED_STATE_DICT,FULL_STATE_DICT"]
    for phase in ("saved", "resumed"):
        done = subprocess.run(
            [sys.executable, *launch, *program, phase], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(phase) == 2


def test_the_code_in_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    exec(code_in("docs/trainers.md", "accelerate"), namespace)
    accelerator, model, optimizer = (namespace[name] for name in ("accelerator", "model", "optimizer"))
    went_on = tiny.weights(model)
    accelerator.load_state("resume")
    y = tiny.weights(model)
    assert optimizer.optimizer.mode == "train"
    assert tiny.same(namespace["shipped"].state_dict(), averaged_state_dict(model, optimizer))
    assert not tiny.same(namespace["shipped"].state_dict(), y)
    namespace["train_epoch"]()
    assert tiny.same(tiny.weights(model), went_on)
    assert not tiny.same(y, went_on)


if __name__ == "__main__":
    torch.set_num_threads(1)
    save_and_be_killed(Path(sys.argv[1]))
