"""Optimizers with a momentum and nothing else: SGD and those that take its sign."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from amuse_lab.optimizers.configs import ScheduledConfig
from amuse_lab.optimizers.groups import decay_split, trainable
from amuse_lab.optimizers.wrappers import Scheduled
from amuse_lab.protocols import TrainingOptimizer
from amuse_lab.ranges import Decay, NotNegative, PositiveDecay


@dataclass(frozen=True, kw_only=True)
class SGD(ScheduledConfig):
    """SGD with Nesterov's momentum under a schedule; from torch.

    Attributes:
        momentum: Decay of the momentum, positive; Nesterov's form looks one step ahead.
        weight_decay: Added to the gradient of every parameter.
    """

    name: ClassVar[str] = "sgd"

    momentum: PositiveDecay = 0.9
    weight_decay: NotNegative = 0.0

    def _optimizer(self, model: nn.Module, steps: int) -> TrainingOptimizer:
        optimizer = torch.optim.SGD(
            trainable(model),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=True,
        )
        return Scheduled(optimizer, schedule=self._multiplier(steps))


@dataclass(frozen=True, kw_only=True)
class Lion(ScheduledConfig):
    """Lion (arXiv 2302.06675) under a schedule, from the package `pytorch_optimizer`.

    Attributes:
        beta1: How much of the momentum is in the update whose sign is taken.
        beta2: Decay of the momentum, a running mean of the gradients.
        weight_decay: Decoupled; not on norms and embeddings.
    """

    name: ClassVar[str] = "lion"

    beta1: PositiveDecay = 0.9
    beta2: Decay = 0.99
    weight_decay: NotNegative = 0.0

    def _optimizer(self, model: nn.Module, steps: int) -> TrainingOptimizer:
        import pytorch_optimizer  # takes seconds to load

        groups = decay_split(model, self.weight_decay)
        optimizer = pytorch_optimizer.Lion(groups, lr=self.lr, betas=(self.beta1, self.beta2))
        return Scheduled(optimizer, schedule=self._multiplier(steps))


@dataclass(frozen=True, kw_only=True)
class Signum(ScheduledConfig):
    """Signum (arXiv 1802.04434), the momentum's sign, under a schedule, from the package `pytorch_optimizer`.

    Attributes:
        momentum: Decay of the mean gradient whose sign is taken; positive.
        weight_decay: Decoupled; not on norms and embeddings.
    """

    name: ClassVar[str] = "signum"

    momentum: PositiveDecay = 0.95
    weight_decay: NotNegative = 0.0

    def _optimizer(self, model: nn.Module, steps: int) -> TrainingOptimizer:
        import pytorch_optimizer  # takes seconds to load

        groups = decay_split(model, self.weight_decay)
        optimizer = pytorch_optimizer.SignSGD(groups, lr=self.lr, momentum=self.momentum)
        return Scheduled(optimizer, schedule=self._multiplier(steps))
