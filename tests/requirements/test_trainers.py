"""Trainers of other packages drive it: the same weights as a plain loop, and exact resumption."""

import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import transformers
from torch import Tensor, nn

from amuse_optim import AMUSE, averaged, param_groups

EPOCH = 6
STEPS = 2 * EPOCH


def inputs(step: int) -> Tensor:
    """The batch of a step; every epoch has the same."""
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(step % EPOCH))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def make_optimizer(model: nn.Module) -> AMUSE:
    return AMUSE(param_groups(model), lr=0.02, warmup_steps=4, weight_decay=0.1)


def loss_of(output: Tensor, batch: Tensor) -> Tensor:
    return (output - batch[:, :3].sin()).square().mean()


def plain_loop() -> list[Tensor]:
    model = network()
    optimizer = make_optimizer(model)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model(inputs(step)), inputs(step)).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def training_step(self, batch: Tensor, index: int) -> Tensor:  # noqa: ARG002
        return loss_of(self.network(batch), batch)

    def validation_step(self, batch: Tensor, index: int) -> None:  # noqa: ARG002
        with averaged(self.optimizers().optimizer):
            self.log("loss", loss_of(self.network(batch), batch), batch_size=8)

    def configure_optimizers(self) -> AMUSE:
        return make_optimizer(self.network)


@pytest.mark.requirement("B9")
@pytest.mark.filterwarnings("ignore")  # lightning's and its dependencies' own
def test_b09_lightning_trains_evaluates_and_resumes(tmp_path: Path) -> None:
    batches = [inputs(step) for step in range(EPOCH)]
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
        "num_sanity_val_steps": 0,
    }

    def loader(part: list[Tensor]) -> Any:
        return torch.utils.data.DataLoader(part, batch_size=None)

    half = lightning.Trainer(**options, max_epochs=1, enable_checkpointing=False, val_check_interval=3)
    module = Module()
    half.fit(module, loader(batches), loader(batches[:2]))
    half.save_checkpoint(tmp_path / "half.ckpt")

    resumed = Module()
    trainer = lightning.Trainer(**options, max_epochs=2, enable_checkpointing=False, limit_val_batches=0)
    trainer.fit(resumed, loader(batches), ckpt_path=tmp_path / "half.ckpt")
    for ours, expected in zip(resumed.parameters(), plain_loop(), strict=True):
        assert torch.equal(ours, expected)


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": loss_of(self.network(x), x)}


@pytest.mark.requirement("B9")
@pytest.mark.filterwarnings("ignore")  # transformers' and its dependencies' own
def test_b09_transformers_trainer_trains_and_resumes(tmp_path: Path) -> None:
    data = [{"x": row} for step in range(EPOCH) for row in inputs(step)]

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(data)

    def trainer(max_steps: int) -> tuple[Any, AMUSE]:
        model = Wrapped()
        optimizer = make_optimizer(getattr(model, "network", model))
        constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=max_steps,
            per_device_train_batch_size=8,
            save_steps=EPOCH,
            save_only_model=False,
            report_to=[],
            use_cpu=True,
            max_grad_norm=0,
            disable_tqdm=True,
            remove_unused_columns=False,
            logging_strategy="no",
        )
        return InOrder(model, arguments, train_dataset=data, optimizers=(optimizer, constant)), optimizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(EPOCH)[0].train()
        resumed, optimizer = trainer(STEPS)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{EPOCH}"))
    assert optimizer.param_groups[0]["t"] == STEPS
    for ours, expected in zip(resumed.model.parameters(), plain_loop(), strict=True):
        torch.testing.assert_close(ours.detach(), expected, rtol=0, atol=0)
