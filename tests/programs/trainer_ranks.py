"""Processes of `test_transformers_ranks.py`: `-m tests.programs.trainer_ranks FOLDER HOW`.

A run of transformers' Trainer that saves now and then into `FOLDER/whole`, and one in `FOLDER/resumed` that
goes on with the checkpoint in the middle. The Trainer offers FSDP on accelerators alone, so accelerate's
state is told that this processor is one.
"""

import os
import sys
import warnings
from pathlib import Path

import accelerate.state
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from tests.amuse_optim.integrations import tiny_trainer as tiny

RESUMED_FROM = 6


class OnShards(tiny.InOrder):
    """FSDP2 with every state dict of one kind."""

    kind = "FULL_STATE_DICT"

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="NO_WRAP", state_dict_type=self.kind
        )
        state = self.accelerator.state
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
        accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.is_fsdp_enabled = True


class OnShardsOfFiles(OnShards):
    kind = "SHARDED_STATE_DICT"


KINDS = {"ddp": tiny.InOrder, "fsdp2-full": OnShards, "fsdp2-sharded": OnShardsOfFiles}


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value.clone()
        for name, value in tensors.items()
    }


def run(folder: Path, how: str, resume: Path | None) -> None:
    model = tiny.model(torch.float64)
    # The loss of this model is a mean over rows, which the Trainer would multiply by the number of processes.
    more = {"eval_strategy": "steps", "eval_steps": 2, "average_tokens_across_devices": False}
    trainer = tiny.trainer(folder, KINDS[how], trained=model, **more)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    if how.startswith("fsdp2"):
        first = next(parameter for parameter in trainer.model.parameters() if parameter.ndim > 1)
        assert isinstance(first, DTensor)
        assert first.to_local().numel() < first.numel()
    x = whole(trainer.model.state_dict())
    trainer.save_model(str(folder / "final"))
    trainer.optimizer.train()
    losses = {
        entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry
    }
    after = {"x": x, "y": whole(trainer.model.state_dict()), "losses": losses}
    torch.save(after, folder / f"rank{trainer.args.process_index}.pt")
    distributed.barrier()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen, how = Path(sys.argv[1]), sys.argv[2]
    if how.startswith("fsdp2"):
        os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", ACCELERATE_USE_CPU="true")
    run(chosen / "whole", how, None)
    run(chosen / "resumed", how, chosen / "whole" / f"checkpoint-{RESUMED_FROM}")
    print("done", flush=True)
    os._exit(0)  # a thread of gloo that still holds a tensor aborts the interpreter's finalization
