"""Models of the laboratory that several optimizers train one after the other."""

from dataclasses import replace

import torch
from torch import nn

from amuse_lab.config import RunConfig
from amuse_lab.parallel import ALONE, parallelize
from amuse_lab.protocols import Task, TrainingOptimizer
from amuse_lab.trainer import Trainer
from benchmarks.gpu.part import free


class Bed:
    """One model and one task, on which runs follow each other: compiled once, weights anew for each.

    Args:
        config: Of the first run; the others differ from it in the optimizer, the steps and the seed.
        device: Where they run.
        task: Instead of the one that the config builds.
        memory_format: Of the model's weights.
    """

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        task: Task | None = None,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> None:
        self._device = device
        self.task = task or config.task.build(seed=config.seed, device=device)
        self.model = self._untrained(config).to(device, memory_format=memory_format)
        self._trained = parallelize(
            self.model, processes=ALONE, mode="ddp", precision=config.precision, compiled=config.compile
        )

    @staticmethod
    def _untrained(config: RunConfig) -> nn.Module:
        torch.manual_seed(config.seed)  # on the CPU, as Trainer.build does: the same weights on every card
        return config.task.build_model()

    def trainer(self, config: RunConfig, task: Task | None = None) -> Trainer:
        """Return a trainer at its beginning.

        Args:
            config: Its optimizer, steps and seed.
            task: Instead of the bed's own.
        """
        self.model.zero_grad()
        free(self._device)
        self.model.load_state_dict(self._untrained(config).state_dict())
        optimizer: TrainingOptimizer = config.optimizer.build(self.model, steps=config.steps)
        optimizer.telemetry()  # some only measure what has been asked for before the step
        return Trainer(
            replace(config, device=str(self._device)),
            task or self.task,
            self.model,
            self._trained,
            optimizer,
            ALONE,
            self._device,
        )


def parameters(model: nn.Module) -> int:
    """Count the parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def timed_steps(trainer: Trainer, *, warmup: int, steps: int) -> dict[str, float]:
    """Return seconds per step of each part of a step, after some that do not count."""
    for _ in range(warmup):
        trainer.advance(look=False)
    before = trainer.clock.read()
    for _ in range(steps):
        trainer.advance(look=False)
    return {part: (now - before.get(part, 0.0)) / steps for part, now in trainer.clock.read().items()}
