"""Optimizers without a schedule: AMUSE and Schedule-Free."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from amuse_lab.errors import require
from amuse_lab.optimizers.configs import AveragedConfig
from amuse_lab.optimizers.groups import decay_split, thirds, trainable
from amuse_lab.optimizers.wrappers import AveragedAmuse, ScheduleFree
from amuse_lab.parallel import replicating
from amuse_lab.protocols import TrainingOptimizer
from amuse_lab.ranges import Decay, NotNegative, Positive, PositiveDecay, Steps
from amuse_optim import AMUSE, param_groups
from amuse_optim.options import ANYTIME


@dataclass(frozen=True, kw_only=True)
class Amuse(AveragedConfig):
    """AMUSE, from `amuse_optim`: Muon for hidden matrices, AdamW or SGD for the rest, averaged; no schedule.

    Attributes:
        matrices: Update direction of the hidden matrices: Muon or NorMuon.
        auxiliary: Update direction of all other parameters, which also sets the scale of Muon's directions:
            with "adamw" their entries are as large as AdamW's; with "sgd" the scale is `spectral`,
            sqrt(max(1, rows / columns)).
        split_qkv: Whether queries, keys and values, which the transformers here compute by one matrix, are
            orthogonalized apart.
        lr_rest: Peak learning rate of the rest; None means `lr`.
        warmup_steps: Steps of linear learning-rate warm-up.
        lr_decay: Exponent a of the learning rate's decay (lr_decay_from / t)^a; 0 keeps it at its peak.
        lr_decay_from: Step after which the learning rate decays; None means 6 warmup_steps.
        t0_steps: Steps for which beta stays at beta1; None means warmup_steps.
        c_warmup_steps: Number of first steps at which x equals z; the averaging starts after them.
        beta1: Interpolation between z (0) and x (1) up to t0_steps; 0 takes gradients at z and needs rho 0.
        rho: Exponent of the rise of beta after t0_steps; 0 keeps beta at beta1.
        momentum: Decay of Muon's momentum, which is taken in Nesterov's form.
        beta2: Decay of the second moment, for the rest with "adamw".
        auxiliary_momentum: Decay of the first moment, for the rest with "adamw"; 0 stores no first moment.
        weight_decay: Decoupled weight decay of z, multiplied by the learning rate; 0 means none.
        decaying: What it acts on: every parameter, or none of embeddings, norms and biases.
        r: Power of the step in the averaging weights.
        parity: "exact" recovers x from y and z with the beta that y was computed with; "published" uses
            another beta for that, as the released code does.
    """

    name: ClassVar[str] = "amuse"

    matrices: Literal["muon", "normuon"] = "muon"
    auxiliary: Literal["adamw", "sgd"] = "adamw"
    split_qkv: bool = False
    lr_rest: Positive | None = None
    warmup_steps: Steps
    lr_decay: NotNegative = 0.0
    lr_decay_from: Steps | None = None
    t0_steps: int | None = None
    c_warmup_steps: Steps = 0
    beta1: Decay = 0.6
    rho: NotNegative = 0.8
    momentum: Decay = 0.95
    beta2: Decay = 0.999
    auxiliary_momentum: Decay = 0.0
    weight_decay: NotNegative = 0.0
    decaying: Literal["all", "matrices"] = "all"
    r: NotNegative = 0.0
    parity: Literal["exact", "published"] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.auxiliary == "adamw" or self.auxiliary_momentum == 0,
            "auxiliary_momentum",
            "0 with auxiliary 'sgd'",
            self.auxiliary_momentum,
        )

    def _optimizer(self, model: nn.Module, steps: int) -> TrainingOptimizer:  # noqa: ARG002 - no horizon
        """Build AMUSE, which checks the settings itself."""
        optimizer = AMUSE(
            param_groups(
                model,
                matrices=self.matrices,
                auxiliary=self.auxiliary,
                overrides=thirds(model) if self.split_qkv else (),
                decaying=self.decaying,
            ),
            lr=self.lr,
            lr_rest=self.lr_rest,
            warmup_steps=self.warmup_steps,
            lr_decay=self.lr_decay,
            lr_decay_from=self.lr_decay_from,
            t0_steps=self.t0_steps,
            c_warmup_steps=self.c_warmup_steps,
            beta1=self.beta1,
            rho=self.rho,
            momentum=self.momentum,
            beta2=self.beta2,
            auxiliary_momentum=self.auxiliary_momentum,
            weight_decay=self.weight_decay,
            r=self.r,
            parity=self.parity,
            process_group=replicating(model),
        )
        return AveragedAmuse(optimizer)


@dataclass(frozen=True, kw_only=True)
class Anytime(Amuse):
    """AMUSE without T0 or rho, `AMUSE.anytime` of `amuse_optim`: a learning rate that decays without an end.

    Its settings are those of `Amuse`, with the defaults of the preset: gradients are taken at z, matrices
    move by NorMuon, queries, keys and values apart, and embeddings, norms and biases do not decay.
    """

    name: ClassVar[str] = "anytime"

    matrices: Literal["muon", "normuon"] = "normuon"
    split_qkv: bool = True
    lr_decay: NotNegative = ANYTIME["lr_decay"]
    beta1: Decay = ANYTIME["beta1"]
    rho: NotNegative = ANYTIME["rho"]
    momentum: Decay = ANYTIME["momentum"]
    auxiliary_momentum: Decay = ANYTIME["auxiliary_momentum"]
    decaying: Literal["all", "matrices"] = "matrices"
    r: NotNegative = ANYTIME["r"]


@dataclass(frozen=True, kw_only=True)
class ScheduleFreeAdamW(AveragedConfig):
    """Schedule-Free AdamW, from the package `schedulefree`.

    Attributes:
        lr_rest: Peak learning rate of all that is no hidden matrix; None means `lr`.
        warmup_steps: Steps of linear learning-rate warm-up.
        beta1: Interpolation between z (0) and x (1).
        beta2: Decay of the second moment.
        weight_decay: Decoupled, at y; not on norms and embeddings.
    """

    name: ClassVar[str] = "sf-adamw"

    lr_rest: Positive | None = None
    warmup_steps: Steps
    beta1: PositiveDecay = 0.9
    beta2: Decay = 0.999
    weight_decay: NotNegative = 0.0

    def _optimizer(self, model: nn.Module, steps: int) -> TrainingOptimizer:  # noqa: ARG002 - no horizon
        import schedulefree

        optimizer = schedulefree.AdamWScheduleFree(
            decay_split(model, self.weight_decay, lr_rest=self.lr_rest),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            warmup_steps=self.warmup_steps,
        )
        return ScheduleFree(optimizer, beta=self.beta1)


@dataclass(frozen=True, kw_only=True)
class ScheduleFreeSGD(AveragedConfig):
    """Schedule-Free SGD, from the package `schedulefree`.

    Attributes:
        warmup_steps: Steps of linear learning-rate warm-up.
        beta1: Interpolation between z (0) and x (1), which the package calls momentum.
        weight_decay: Added to the gradient, at y, of every parameter.
    """

    name: ClassVar[str] = "sf-sgd"

    warmup_steps: Steps
    beta1: PositiveDecay = 0.9
    weight_decay: NotNegative = 0.0

    def _optimizer(self, model: nn.Module, steps: int) -> TrainingOptimizer:  # noqa: ARG002 - no horizon
        import schedulefree

        optimizer = schedulefree.SGDScheduleFree(
            trainable(model),
            lr=self.lr,
            momentum=self.beta1,
            weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps,
        )
        return ScheduleFree(optimizer, beta=self.beta1)
