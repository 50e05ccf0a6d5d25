"""A small model, its data in a fixed order, a Trainer of both, and the plain loop that it should equal."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import Tensor, nn

from amuse_optim import AMUSE, averaged_state_dict, param_groups
from amuse_optim.integrations.transformers import AMUSECallback, AMUSEFactory

ROWS = 4
EPOCH = 6
STEPS = 2 * EPOCH
OPTIONS: dict[str, Any] = {"lr": 0.02, "warmup_steps": 4, "weight_decay": 0.1}

Weights = dict[str, Tensor]


def model(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config).to(dtype)


def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {"input_ids": torch.randint(0, 50, (8,), generator=generator), "labels": i % 2}
        for i in range(ROWS * EPOCH)
    ]


def batch(part: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    return {
        "input_ids": torch.stack([row["input_ids"] for row in part]),
        "labels": torch.tensor([row["labels"] for row in part]),
    }


class InOrder(transformers.Trainer):
    """Takes the rows in their order, in every epoch."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def arguments(folder: Path, **more: Any) -> transformers.TrainingArguments:
    given = {
        "max_steps": STEPS,
        "per_device_train_batch_size": ROWS,
        "per_device_eval_batch_size": ROWS * EPOCH,
        "save_steps": 3,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
    } | more
    return transformers.TrainingArguments(str(folder), **given)


def trainer(
    folder: Path,
    kind: type[transformers.Trainer] = InOrder,
    options: dict[str, Any] | None = None,
    callbacks: Sequence[transformers.TrainerCallback] = (),
    trained: nn.Module | None = None,
    **more: Any,
) -> Any:
    data = rows()
    return kind(
        trained or model(),
        arguments(folder, **more),
        train_dataset=data,
        eval_dataset=data,
        optimizer_cls_and_kwargs=(AMUSEFactory, OPTIONS if options is None else options),
        callbacks=[*callbacks, AMUSECallback()],
    )


def published(network: nn.Module) -> AMUSE:
    return AMUSE(param_groups(network), **OPTIONS)


def plain_loop(
    network: nn.Module | None = None,
    steps: int = STEPS,
    ranks: int = 1,
    make: Callable[[nn.Module], AMUSE] = published,
) -> tuple[list[Weights], Weights, list[float]]:
    """x after every step, y after the last, and the loss of all rows at each x; all ranks' rows."""
    network = network or model()
    data = rows()
    optimizer = make(network)
    averages = [averaged_state_dict(network, optimizer)]
    for step in range(steps):
        first = ranks * ROWS * step % len(data)
        network(**batch(data[first : first + ranks * ROWS])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        averages.append(averaged_state_dict(network, optimizer))
    y = weights(network)
    losses = []
    for x in averages:
        network.load_state_dict(x)
        with torch.no_grad():
            losses.append(network.eval()(**batch(data)).loss.item())
    return averages, y, losses


def weights(network: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def saved(folder: Path) -> Weights:
    return safetensors.torch.load_file(folder / "model.safetensors")


def same(ours: Weights, theirs: Weights) -> bool:
    return all(torch.equal(ours[name], value) for name, value in theirs.items())


class Kill(transformers.TrainerCallback):
    """SIGKILL in the middle of a step, some steps after a save."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if state.global_step == 7:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer(Path(sys.argv[1]), callbacks=[Kill()]).train()
