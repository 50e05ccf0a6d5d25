"""Sophia, the only optimizer here that also needs gradients on labels sampled from the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from amuse_lab.optimizers.configs import ScheduledConfig
from amuse_lab.optimizers.groups import decay_split
from amuse_lab.optimizers.wrappers import Scheduled, WithEMA
from amuse_lab.protocols import TrainingOptimizer
from amuse_lab.ranges import Count, Decay, NotNegative, PositiveDecay

if TYPE_CHECKING:
    from pytorch_optimizer import SophiaH


@dataclass(frozen=True, kw_only=True)
class Sophia(ScheduledConfig):
    r"""Sophia-G (arXiv 2305.14342) under a schedule, from the package `pytorch_optimizer`.

    Every k steps, the first one included, it wants a Gauss-Newton-Bartlett estimate of the curvature: B g^2
    for g the gradient of the mean loss on B labels sampled from the model. With m the first moment, lr_t the
    scheduled learning rate and clipping to [-1, 1]:

    .. code-block:: text

        h  <- beta2 h + (1 - beta2) rho B g^2            # every k steps
        p  <- p - lr_t weight_decay p - lr_t clip(m / max(h, 1e-15))

    The package's own estimate is Hutchinson's, which needs second derivatives; it takes this one in its
    place, times rho, so that its update is Sophia-G's.

    Attributes:
        beta1: Decay of the first moment.
        beta2: Decay of the curvature, over estimates.
        rho: Factor of the curvature estimate; a smaller one makes larger steps and clips more entries.
        curvature_batch: B, the number of sampled labels, which are tokens for a language model. Published
            runs use 480 sequences of 512, whatever their batch size is.
        curvature_every: k, the steps from one estimate of the curvature to the next.
        weight_decay: Decoupled; not on norms and embeddings.
    """

    name: ClassVar[str] = "sophia"

    beta1: PositiveDecay = 0.9
    beta2: Decay = 0.999
    rho: NotNegative = 0.04
    curvature_batch: Count
    curvature_every: Count = 10
    weight_decay: NotNegative = 0.0

    def _optimizer(self, model: nn.Module, steps: int) -> TrainingOptimizer:
        import pytorch_optimizer  # takes seconds to load

        optimizer = pytorch_optimizer.SophiaH(
            decay_split(model, self.weight_decay),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            p=1.0,  # the bound of an update
            update_period=self.curvature_every,
            eps=1e-15,
        )
        return Curved(
            optimizer,
            schedule=self._multiplier(steps),
            every=self.curvature_every,
            scale=self.rho * self.curvature_batch,
        )

    def _averaged(
        self, optimizer: TrainingOptimizer, parameters: Sequence[Tensor], decay: float
    ) -> TrainingOptimizer:
        """Put an average around the optimizer that hands the curvature on to it."""
        assert isinstance(optimizer, Curved)
        return CurvedWithEMA(optimizer, parameters, decay=decay)


class Curved(Scheduled):
    """Sophia with estimates of the curvature from outside.

    Args:
        optimizer: SophiaH of the package `pytorch_optimizer`.
        schedule: Multiplier of the peak learning rate by step, as for `Scheduled`.
        every: Steps between estimates; the package's `update_period`.
        scale: What squared gradients are multiplied by.
    """

    def __init__(
        self, optimizer: "SophiaH", *, schedule: Callable[[int], float], every: int, scale: float
    ) -> None:
        super().__init__(optimizer, schedule=schedule)
        self._sophia = optimizer
        self._every = every
        self._scale = scale
        self._estimate: list[Tensor] | None = None

    @property
    def wants_curvature(self) -> bool:
        """Whether the next step has to have an estimate and has none yet."""
        return self._step % self._every == 0 and self._estimate is None

    @torch.no_grad()
    def observe_curvature(self) -> None:
        """Keep the squared gradients, scaled, for the next step."""
        self._estimate = [
            torch.zeros_like(p) if p.grad is None else p.grad.square().mul_(self._scale)
            for group in self._sophia.param_groups
            for p in group["params"]
        ]

    def step(self) -> None:
        """Take one step.

        Raises:
            RuntimeError: If it needs an estimate of the curvature and there is none.
        """
        if self.wants_curvature:
            raise RuntimeError(
                f"step {self._step + 1} needs an estimate of the curvature: backpropagate the mean loss on "
                "labels sampled from the model, then call observe_curvature() and zero_grad()"
            )
        super().step()

    def _move(self) -> None:
        self._sophia.step(hessian=self._estimate)
        self._estimate = None
        for state in self._sophia.state.values():
            state.pop("hessian", None)  # used up: it need not be kept, or saved

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        super().load_state_dict(state)
        self._estimate = None


class CurvedWithEMA(WithEMA):
    """Sophia with an exponential moving average of its weights as x.

    Args:
        optimizer: Sophia in the training loop's interface.
        parameters: Parameters that the optimizer trains.
        decay: Decay of the average, in (0, 1).
    """

    def __init__(self, optimizer: Curved, parameters: Sequence[Tensor], *, decay: float) -> None:
        super().__init__(optimizer, parameters, decay=decay)
        self._curved = optimizer

    @property
    def wants_curvature(self) -> bool:
        """Whether Sophia needs `observe_curvature()` before its next step."""
        return self._curved.wants_curvature

    def observe_curvature(self) -> None:
        """Pass the gradients on to Sophia."""
        self._curved.observe_curvature()
