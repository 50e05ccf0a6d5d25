"""Optimizers of Adam's family under a schedule."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from amuse_lab.optimizers.configs import ScheduledConfig
from amuse_lab.optimizers.groups import decay_split
from amuse_lab.optimizers.wrappers import Scheduled
from amuse_lab.protocols import TrainingOptimizer
from amuse_lab.ranges import Count, Decay, NotNegative, Positive, PositiveDecay, Steps

# `pytorch_optimizer` takes seconds to load: only those who build one of its optimizers wait for it.


@dataclass(frozen=True, kw_only=True)
class AdamW(ScheduledConfig):
    """AdamW under a schedule; from torch.

    Attributes:
        lr_rest: Peak learning rate of all that is no hidden matrix; None means `lr`.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        weight_decay: Decoupled; not on norms and embeddings.
    """

    name: ClassVar[str] = "adamw"

    lr_rest: Positive | None = None
    beta1: PositiveDecay = 0.9
    beta2: Decay = 0.999
    weight_decay: NotNegative = 0.0

    def _optimizer(self, model: nn.Module, steps: int) -> TrainingOptimizer:
        groups = decay_split(model, self.weight_decay, lr_rest=self.lr_rest)
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2))
        return Scheduled(optimizer, schedule=self._multiplier(steps))


@dataclass(frozen=True, kw_only=True)
class AdEMAMix(ScheduledConfig):
    """AdEMAMix (arXiv 2409.03137) under a schedule, from the package `pytorch_optimizer`.

    Attributes:
        beta1: Decay of the fast first moment.
        beta2: Decay of the second moment.
        beta3: Decay of the slow first moment.
        alpha: Weight of the slow first moment in the update.
        slow_warmup_steps: Steps over which alpha rises from 0 and beta3 from beta1; 0 starts with both.
        weight_decay: Decoupled; not on norms and embeddings.
    """

    name: ClassVar[str] = "ademamix"

    beta1: PositiveDecay = 0.9
    beta2: Decay = 0.999
    beta3: PositiveDecay = 0.999
    alpha: NotNegative = 8.0
    slow_warmup_steps: Steps
    weight_decay: NotNegative = 0.0

    def _optimizer(self, model: nn.Module, steps: int) -> TrainingOptimizer:
        import pytorch_optimizer

        optimizer = pytorch_optimizer.AdEMAMix(
            decay_split(model, self.weight_decay),
            lr=self.lr,
            betas=(self.beta1, self.beta2, self.beta3),
            alpha=self.alpha,
            t_alpha_beta3=self.slow_warmup_steps or None,
            weight_decouple=True,
        )
        return Scheduled(optimizer, schedule=self._multiplier(steps))


@dataclass(frozen=True, kw_only=True)
class Adopt(ScheduledConfig):
    """ADOPT (arXiv 2411.02853) under a schedule, from the package `pytorch_optimizer`.

    The first step only starts the second moment (and decays); at step t + 1 normalized gradients are clipped
    to t^(1/4).

    Attributes:
        beta1: Decay of the first moment, of normalized gradients.
        beta2: Decay of the second moment.
        eps: Least root of the second moment that is divided by.
        weight_decay: Decoupled; not on norms and embeddings.
    """

    name: ClassVar[str] = "adopt"

    beta1: PositiveDecay = 0.9
    beta2: Decay = 0.999
    eps: Positive = 1e-6
    weight_decay: NotNegative = 0.0

    def _optimizer(self, model: nn.Module, steps: int) -> TrainingOptimizer:
        import pytorch_optimizer

        optimizer = pytorch_optimizer.ADOPT(
            decay_split(model, self.weight_decay),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            # The package counts the first gradient, which moves nothing, as step 1; the paper as step 0.
            clip_lambda=lambda step: float((step - 1) ** 0.25),
            eps=self.eps,
            weight_decouple=True,
            foreach=False,  # the batched form has operations that sharded tensors lack
        )
        return Scheduled(optimizer, schedule=self._multiplier(steps))


@dataclass(frozen=True, kw_only=True)
class Mars(ScheduledConfig):
    """MARS-AdamW (arXiv 2411.10438) under a schedule, from the package `pytorch_optimizer`.

    Corrects each gradient by its difference from the last step's gradient, which was taken on the last step's
    batch (the paper's approximate form). Vectors get plain AdamW.

    Attributes:
        lr_rest: Peak learning rate of vectors.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        beta1_rest: Decay of the first moment of vectors.
        beta2_rest: Decay of the second moment of vectors.
        gamma: Weight of the correction, which adds gamma beta1 / (1 - beta1) times that difference.
        weight_decay: Decoupled; not on norms and embeddings.
    """

    name: ClassVar[str] = "mars"

    lr_rest: Positive
    beta1: PositiveDecay = 0.95
    beta2: Decay = 0.99
    beta1_rest: PositiveDecay = 0.8
    beta2_rest: Decay = 0.999
    gamma: NotNegative = 0.025
    weight_decay: NotNegative = 0.0

    def _optimizer(self, model: nn.Module, steps: int) -> TrainingOptimizer:
        import pytorch_optimizer

        optimizer = pytorch_optimizer.MARS(
            decay_split(model, self.weight_decay),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            lr_1d=self.lr_rest,
            betas_1d=(self.beta1_rest, self.beta2_rest),
            weight_decay_1d=0.0,
            gamma=self.gamma,
            foreach=False,  # as for ADOPT
        )
        return Scheduled(optimizer, schedule=self._multiplier(steps))


@dataclass(frozen=True, kw_only=True)
class Prodigy(ScheduledConfig):
    """Prodigy (arXiv 2306.06101) under a schedule, bias-corrected, from the package `pytorch_optimizer`.

    It finds its own step size d, which `lr` multiplies: leave that at 1.

    Attributes:
        beta1: Decay of the first moment.
        beta2: Decay of the second moment; its root is the decay of the sums that d is estimated from.
        weight_decay: Decoupled; not on norms and embeddings.
    """

    name: ClassVar[str] = "prodigy"

    lr: Positive = 1.0
    beta1: PositiveDecay = 0.9
    beta2: Decay = 0.999
    weight_decay: NotNegative = 0.0

    def _optimizer(self, model: nn.Module, steps: int) -> TrainingOptimizer:
        import pytorch_optimizer

        optimizer = pytorch_optimizer.Prodigy(
            decay_split(model, self.weight_decay),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            bias_correction=True,
        )
        return Scheduled(optimizer, schedule=self._multiplier(steps), tells=("d",))


@dataclass(frozen=True, kw_only=True)
class Soap(ScheduledConfig):
    """SOAP (arXiv 2409.11321) under a schedule, from the package `pytorch_optimizer`.

    Adam in the eigenbasis of Shampoo's preconditioner; vectors get plain Adam. The first step only starts the
    preconditioner.

    Attributes:
        beta1: Decay of the first moment.
        beta2: Decay of the second moment and of the preconditioner.
        precondition_every: Steps between updates of the eigenbasis.
        max_precondition_dim: Dimensions of a matrix that are larger than this are not rotated.
        weight_decay: Decoupled; not on norms and embeddings.
    """

    name: ClassVar[str] = "soap"

    beta1: PositiveDecay = 0.9
    beta2: Decay = 0.999
    precondition_every: Count = 10
    max_precondition_dim: Count = 10_000
    weight_decay: NotNegative = 0.0

    def _optimizer(self, model: nn.Module, steps: int) -> TrainingOptimizer:
        import pytorch_optimizer

        optimizer = pytorch_optimizer.SOAP(
            decay_split(model, self.weight_decay),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            precondition_frequency=self.precondition_every,
            max_precondition_dim=self.max_precondition_dim,
        )
        return Scheduled(optimizer, schedule=self._multiplier(steps))
