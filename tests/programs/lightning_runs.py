"""A Lightning module and, as `python -m tests.programs.lightning_runs CASE FOLDER`, runs of it."""

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn

from amuse_optim import AMUSE, param_groups
from amuse_optim.integrations.lightning import AMUSECallback

EPOCH = 4
KILLED_AFTER = 6


def inputs(step: int, rank: int = 0) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(100 * rank + step))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def make_optimizer(model: nn.Module) -> AMUSE:
    return AMUSE(param_groups(model), lr=0.02, warmup_steps=3, weight_decay=0.1)


def loss_of(output: Tensor, batch: Tensor) -> Tensor:
    return (output.float() - batch[:, :3].sin()).square().mean()


class Module(lightning.LightningModule):
    """Takes its batches by step and rank, so that a loader that begins anew changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.losses: list[float] = []

    def training_step(self, batch: Tensor, index: int) -> Tensor:  # noqa: ARG002
        batch = inputs(self.trainer.fit_loop.total_batch_idx, self.global_rank)
        loss = loss_of(self.network(batch), batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Tensor, index: int) -> None:  # noqa: ARG002
        self.log("val", loss_of(self.network(batch), batch), batch_size=8, sync_dist=True)

    def test_step(self, batch: Tensor, index: int) -> None:  # noqa: ARG002
        self.log("test", loss_of(self.network(batch), batch), batch_size=8)

    def predict_step(self, batch: Tensor, index: int) -> Tensor:  # noqa: ARG002
        return self.network(batch)

    def configure_optimizers(self) -> Any:
        return make_optimizer(self.network)


def loader(batches: int = EPOCH) -> Any:
    return torch.utils.data.DataLoader([inputs(1000 + i) for i in range(batches)], batch_size=None)


def trainer(folder: Path, *callbacks: Callback, epochs: int = 3, **options: Any) -> lightning.Trainer:
    """A quiet trainer, with `AMUSECallback` unless `callbacks` begin with None."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(each, ModelCheckpoint) for each in callbacks),
        "default_root_dir": folder,
        "max_epochs": epochs,
    }
    ours = [] if callbacks[:1] == (None,) else [AMUSECallback()]
    return lightning.Trainer(**quiet | options, callbacks=[*ours, *filter(None, callbacks)])


def every_step(folder: Path) -> ModelCheckpoint:
    """Saves after every step, as `<global step>.ckpt`."""
    return ModelCheckpoint(
        folder, "{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False
    )


class Killed(Callback):
    """Ends the process at once, as the system would."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == KILLED_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)


def main(case: str, folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if case == "killed":
        trainer(folder, every_step(folder), Killed()).fit(Module(), loader(), loader(2))
    elif case == "two":
        two: dict[str, Any] = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
        module = Module()
        trainer(folder, every_step(folder / "whole"), epochs=2, **two).fit(module, loader(), loader(2))
        torch.save(module.state_dict(), folder / f"rank{module.global_rank}.pt")
        resumed = Module()
        trainer(folder, every_step(folder / "resumed"), epochs=2, **two).fit(
            resumed, loader(), loader(2), ckpt_path=folder / "whole" / "3.ckpt"
        )
    else:
        raise SystemExit(f"unknown case {case!r}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # a thread of gloo that still holds a tensor aborts the interpreter's finalization
