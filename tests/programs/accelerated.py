"""What torchrun's processes do for `test_accelerate.py`: `-m tests.programs.accelerated FOLDER KINDS PHASE`.

accelerate offers FSDP on accelerators alone, so its state is told that this processor is one. The phase
`saved` saves in both modes halfway and notes where it ends; `resumed`, in other processes, has to end there.
"""

import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import accelerate.state
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from amuse_optim import AMUSE, averaged, param_groups

HALF, END = 4, 8


def prepared(kind: str) -> tuple[Accelerator, Any, Any]:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="NO_WRAP", state_dict_type=kind)
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    optimizer = AMUSE(param_groups(model), lr=0.02, warmup_steps=3, weight_decay=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    first = model[0].weight
    assert isinstance(first, DTensor)
    assert first.to_local().numel() < first.numel()
    return accelerator, model, optimizer


def train(accelerator: Accelerator, model: nn.Module, optimizer: Any, steps: Iterable[int]) -> None:
    for step in steps:
        seed = 2 * step + accelerator.process_index
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
        accelerator.backward((model(inputs) - inputs[:, :3].sin()).square().mean())
        optimizer.step()
        optimizer.zero_grad()


def whole(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.full_tensor().clone() for name, value in model.state_dict().items()}


def save(folder: Path, kind: str) -> None:
    accelerator, model, optimizer = prepared(kind)
    train(accelerator, model, optimizer, range(HALF))
    accelerator.save_state(str(folder / "train"))
    with averaged(optimizer):
        accelerator.save_state(str(folder / "eval"))
        x = whole(model)
    train(accelerator, model, optimizer, range(HALF, END))
    if accelerator.is_main_process:
        torch.save({"x": x, "y": whole(model)}, folder / "expected.pt")
    else:
        whole(model)


def resume(folder: Path, kind: str) -> None:
    expected = torch.load(folder / "expected.pt")
    for mode in ("train", "eval"):
        accelerator, model, optimizer = prepared(kind)
        getattr(optimizer, mode)()
        accelerator.load_state(str(folder / mode))
        with averaged(optimizer):
            assert equal(whole(model), expected["x"]), mode
        optimizer.train()
        train(accelerator, model, optimizer, range(HALF, END))
        assert equal(whole(model), expected["y"]), mode


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(ours[name], value) for name, value in theirs.items())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", ACCELERATE_USE_CPU="true")
    distributed.init_process_group("gloo")
    chosen, kinds, phase = sys.argv[1:]
    for each in kinds.split(","):
        place = Path(chosen) / each
        place.mkdir(exist_ok=True)
        {"saved": save, "resumed": resume}[phase](place, each)
    print(phase, flush=True)
    os._exit(0)  # a thread of gloo that still holds a tensor aborts the interpreter's finalization
