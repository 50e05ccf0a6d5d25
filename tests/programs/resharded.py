"""Checkpoints of test_ranks.py: `torchrun ... -m tests.programs.resharded save|load WAY FOLDER`."""

import gc
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import distributed, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from amuse_lab.launch import exit_rank
from amuse_optim import AMUSE
from tests.programs.divided import build, equal, gradients, optimizer_of, own_part, spread, told

SAVED_AFTER, ENDS_AFTER = 5, 10


def steps(model: nn.Module, optimizer: AMUSE, numbers: range) -> None:
    whole = build("awkward", "float64")
    for step in numbers:
        for parameter, gradient in zip(model.parameters(), gradients(whole, step), strict=True):
            parameter.grad = own_part(gradient, parameter)
        optimizer.step()


def sharded(way: str) -> tuple[nn.Module, AMUSE]:
    model = build("awkward", "float64")
    spread(model, way)
    return model, optimizer_of(model, **told(way))


def state_of(model: nn.Module, optimizer: AMUSE) -> dict[str, Any]:
    parameters, state = get_state_dict(model, optimizer)
    return {"model": parameters, "optimizer": state}


def every_entry_once(folder: Path) -> None:
    """No part of a tensor is written twice, and none is missing."""
    metadata = dcp.FileSystemReader(folder).read_metadata()
    for name, kept in metadata.state_dict_metadata.items():
        if isinstance(kept, TensorStorageMetadata):
            entries = torch.zeros(kept.size)
            for chunk in kept.chunks:
                places = zip(chunk.offsets, chunk.sizes, strict=True)
                entries[tuple(slice(start, start + size) for start, size in places)] += 1
            assert bool((entries == 1).all()), name
    written = [(each.fqn, each.offset) for each in metadata.storage_data]
    assert len(set(written)) == len(written)


def main(action: str, way: str, folder: Path) -> None:
    model, optimizer = sharded(way)
    if action == "save":
        steps(model, optimizer, range(SAVED_AFTER))
        dcp.save(state_of(model, optimizer), checkpoint_id=folder)
        every_entry_once(folder)
        return
    state = state_of(model, optimizer)
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    steps(model, optimizer, range(SAVED_AFTER, ENDS_AFTER))
    expected = build("awkward", "float64")
    steps(expected, usual := optimizer_of(expected), range(ENDS_AFTER))
    equal(model, expected, 1e-10)
    optimizer.eval()
    usual.eval()
    equal(model, expected, 1e-10)


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    gc.collect()
    distributed.destroy_process_group()
    print("done", flush=True)
    exit_rank(0)
