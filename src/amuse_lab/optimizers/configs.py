"""What the configs of the optimizers have in common."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from amuse_lab.config import OptimizerConfig
from amuse_lab.errors import ConfigError, require
from amuse_lab.optimizers.groups import trainable
from amuse_lab.optimizers.wrappers import WithEMA
from amuse_lab.protocols import TrainingOptimizer
from amuse_lab.ranges import PositiveDecay, Steps
from amuse_lab.schedules import SCHEDULES, ScheduleName


@dataclass(frozen=True, kw_only=True)
class AveragedConfig(OptimizerConfig):
    """An optimizer whose weights can be averaged on the way.

    Attributes:
        ema: Decay of an exponential moving average of the weights, which is then what is evaluated and
            shipped; None keeps none.
    """

    ema: PositiveDecay | None = None

    def build(self, model: nn.Module, *, steps: int) -> TrainingOptimizer:
        """Build the optimizer, and the average around it.

        Raises:
            ConfigError: If the package refuses a setting or the model.
        """
        try:
            optimizer = self._optimizer(model, steps)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return optimizer if self.ema is None else self._averaged(optimizer, trainable(model), self.ema)

    def _averaged(
        self, optimizer: TrainingOptimizer, parameters: Sequence[Tensor], decay: float
    ) -> TrainingOptimizer:
        """Put the average around the optimizer."""
        return WithEMA(optimizer, parameters, decay=decay)

    @abstractmethod
    def _optimizer(self, model: nn.Module, steps: int) -> TrainingOptimizer:
        """Build the optimizer itself."""


@dataclass(frozen=True, kw_only=True)
class ScheduledConfig(AveragedConfig):
    """An optimizer with a learning-rate schedule that ends at the last step.

    Attributes:
        warmup_steps: Steps of warm-up, from a hundredth of the peak learning rate to the peak.
        schedule: Learning rate after the warm-up: "cosine" and "linear" decay to a hundredth of the peak;
            "wsd" stays at the peak and decays to 0 over the last fifth of the steps; "constant" stays at the
            peak; "none" also, without a warm-up. The warm-up is linear; that of "cosine" is half a cosine.
    """

    warmup_steps: Steps
    schedule: ScheduleName = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.schedule in SCHEDULES, "schedule", f"one of {', '.join(SCHEDULES)}", self.schedule)
        require(
            self.schedule != "none" or self.warmup_steps == 0,
            "warmup_steps",
            "0 with schedule 'none'",
            self.warmup_steps,
        )

    def _multiplier(self, steps: int) -> Callable[[int], float]:
        """The schedule of a run of `steps`."""
        return partial(SCHEDULES[self.schedule], steps=steps, warmup_steps=self.warmup_steps)
