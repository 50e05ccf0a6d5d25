"""Muon under a schedule, with AdamW or SGD for the parameters that are not hidden matrices."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from amuse_lab.optimizers.configs import ScheduledConfig
from amuse_lab.optimizers.groups import decay_split, routed, thirds
from amuse_lab.optimizers.wrappers import Scheduled
from amuse_lab.protocols import TrainingOptimizer
from amuse_lab.ranges import Decay, NotNegative, Positive, PositiveDecay
from amuse_optim import AMUSE, param_groups


@dataclass(frozen=True, kw_only=True)
class Muon(ScheduledConfig):
    """Muon for hidden matrices, AdamW for the rest, under one schedule; from torch.

    Attributes:
        lr_rest: Peak learning rate of AdamW; `lr` is Muon's, times sqrt(max(1, rows / columns)).
        momentum: Decay of Muon's momentum, which is taken in Nesterov's form.
        beta1: Decay of AdamW's first moment.
        beta2: Decay of AdamW's second moment.
        weight_decay: Decoupled weight decay of AdamW; hidden matrices have none.
    """

    name: ClassVar[str] = "muon"

    lr_rest: Positive
    momentum: Decay = 0.95
    beta1: PositiveDecay = 0.8
    beta2: Decay = 0.999
    weight_decay: NotNegative = 0.0

    def _optimizer(self, model: nn.Module, steps: int) -> TrainingOptimizer:
        """Build both parts, with the matrices that AMUSE would choose."""
        matrices, rest = routed(model)
        muon = torch.optim.Muon(
            matrices, lr=self.lr, weight_decay=0.0, momentum=self.momentum, adjust_lr_fn="original"
        )
        adamw = torch.optim.AdamW(
            rest, lr=self.lr_rest, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )
        return Scheduled(muon, adamw, schedule=self._multiplier(steps))


@dataclass(frozen=True, kw_only=True)
class DMuon(ScheduledConfig):
    """D-Muon: Muon with updates as large as AdamW's, AdamW for the rest; from torch.

    The updates of an r x c matrix have a root mean square near 0.2: the orthogonal factor times
    0.2 sqrt(max(r, c)), as in arXiv 2502.16982.

    Attributes:
        lr_rest: Peak learning rate of AdamW; None means `lr`.
        momentum: Decay of Muon's momentum, which is taken in Nesterov's form.
        beta1: Decay of AdamW's first moment.
        beta2: Decay of AdamW's second moment.
        weight_decay: Decoupled, of both parts; not on norms and embeddings.
    """

    name: ClassVar[str] = "d-muon"

    lr_rest: Positive | None = None
    momentum: Decay = 0.95
    beta1: PositiveDecay = 0.8
    beta2: Decay = 0.999
    weight_decay: NotNegative = 0.0

    def _optimizer(self, model: nn.Module, steps: int) -> TrainingOptimizer:
        """Build both parts, with the matrices that AMUSE would choose."""
        matrices, _ = routed(model)
        taken = set(matrices)
        muon = torch.optim.Muon(
            matrices,
            lr=self.lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        rest = [
            group | {"params": [p for p in group["params"] if p not in taken]}
            for group in decay_split(model, self.weight_decay)
        ]
        lr_rest = self.lr if self.lr_rest is None else self.lr_rest
        adamw = torch.optim.AdamW(rest, lr=lr_rest, betas=(self.beta1, self.beta2))
        return Scheduled(muon, adamw, schedule=self._multiplier(steps))


@dataclass(frozen=True, kw_only=True)
class NorMuon(ScheduledConfig):
    """NorMuon, and AdamW for the rest, under one schedule; from `amuse_optim`, whose average is not used.

    Attributes:
        lr_rest: Peak learning rate of AdamW; None means `lr`.
        split_qkv: Whether queries, keys and values, which the transformers here compute by one matrix, are
            orthogonalized apart.
        momentum: Decay of NorMuon's momentum, which is taken in Nesterov's form.
        beta1: Decay of AdamW's first moment.
        beta2: Decay of AdamW's second moment.
        weight_decay: Decoupled, of both parts; not on norms, biases and embeddings.
    """

    name: ClassVar[str] = "normuon"

    lr_rest: Positive | None = None
    split_qkv: bool = False
    momentum: Decay = 0.95
    beta1: PositiveDecay = 0.9
    beta2: Decay = 0.999
    weight_decay: NotNegative = 0.0

    def _optimizer(self, model: nn.Module, steps: int) -> TrainingOptimizer:
        """Build it: with beta 0 the parameters are the fast sequence."""
        optimizer = AMUSE(
            param_groups(
                model,
                matrices="normuon",
                overrides=thirds(model) if self.split_qkv else (),
                decaying="matrices",
            ),
            lr=self.lr,
            lr_rest=self.lr_rest,
            warmup_steps=0,
            beta1=0.0,
            rho=0.0,
            momentum=self.momentum,
            auxiliary_momentum=self.beta1,
            beta2=self.beta2,
            weight_decay=self.weight_decay,
        )
        return Scheduled(optimizer, schedule=self._multiplier(steps))


@dataclass(frozen=True, kw_only=True)
class MuonSGD(ScheduledConfig):
    """Muon, kernels included, from the package `pytorch_optimizer`; heavy-ball SGD for the rest, from torch.

    A convolution kernel is one matrix, output channels by all else.

    Attributes:
        lr_rest: Peak learning rate of SGD; `lr` is Muon's, times sqrt(max(1, rows / columns)).
        momentum: Momentum of both parts: Nesterov momentum for Muon, heavy-ball momentum for SGD.
        weight_decay: Weight decay of both parts: decoupled for Muon, added to the gradient for SGD.
    """

    name: ClassVar[str] = "muon-sgd"

    lr_rest: Positive
    momentum: Decay = 0.9
    weight_decay: NotNegative = 0.0

    def _optimizer(self, model: nn.Module, steps: int) -> TrainingOptimizer:
        """Build both parts, with the matrices that AMUSE would choose."""
        import pytorch_optimizer  # takes seconds to load

        matrices, rest = routed(model, auxiliary="sgd")
        muon = pytorch_optimizer.Muon(
            [{"params": matrices, "use_muon": True}],
            lr=self.lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
        )
        sgd = torch.optim.SGD(rest, lr=self.lr_rest, momentum=self.momentum, weight_decay=self.weight_decay)
        return Scheduled(muon, sgd, schedule=self._multiplier(steps))
