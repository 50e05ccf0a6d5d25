"""What a run is: frozen, validated dataclasses, their JSON form and their hash."""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import tyro
from torch import nn

from amuse_lab.errors import require
from amuse_lab.protocols import Task, TrainingOptimizer

_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "lr": (lambda value: 0 < value < math.inf, "positive and finite"),
    "lr_rest": (lambda value: 0 < value < math.inf, "positive and finite"),
    "warmup_steps": (lambda value: value >= 0, "at least 0"),
    "c_warmup_steps": (lambda value: value >= 0, "at least 0"),
    "momentum": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "auxiliary_momentum": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "beta1": (lambda value: 0 < value < 1, "in (0, 1)"),
    "beta2": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "rho": (lambda value: 0 <= value < math.inf, "finite and at least 0"),
    "r": (lambda value: 0 <= value < math.inf, "finite and at least 0"),
    "weight_decay": (lambda value: 0 <= value < math.inf, "finite and at least 0"),
}
"""What a setting of this name must be, in every optimizer that has it."""


@dataclass(frozen=True)
class OptimizerConfig(ABC):
    """An optimizer and its settings. Subclasses add theirs; `_RANGES` checks them by name.

    Attributes:
        lr: Peak learning rate.
    """

    name: ClassVar[str]
    """What `--optimizer` calls it."""

    lr: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in _RANGES:
                within, constraint = _RANGES[name]
                require(within(value), name, constraint, value)

    @abstractmethod
    def build(self, model: nn.Module, *, steps: int) -> TrainingOptimizer:
        """Build the optimizer of a model.

        Args:
            model: Whose parameters it trains.
            steps: The horizon, for optimizers with a schedule that ends.
        """


@dataclass(frozen=True)
class TaskConfig(ABC):
    """A task and its settings. Subclasses add theirs."""

    name: ClassVar[str]
    """What `amuse-lab list` calls it."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Build an untrained model, from torch's global generator; needs no data."""

    @abstractmethod
    def build(self, *, seed: int, device: torch.device) -> Task:
        """Load and check the data.

        Args:
            seed: Decides which batch each step sees.
            device: Where batches go.

        Raises:
            DataError: If the data is missing or is not what it should be.
        """


@dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
        recipe: The recipe this config comes from; names the run folder.
        task: What is trained.
        optimizer: What trains it.
        steps: Training steps.
        seed: Of the initial weights, the batches and the sample.
        eval_every: Steps between evaluations.
        log_every: Steps between lines of training loss.
        clip: Largest global norm of the gradient; None does not clip.
        threads: CPU threads; None leaves torch's own choice.
        device: As torch names it: cpu, cuda, cuda:1.
        runs: The folder that holds the run folders.
    """

    recipe: tyro.conf.Suppress[str]
    task: TaskConfig
    optimizer: OptimizerConfig
    steps: int
    seed: int = 0
    eval_every: int = 100
    log_every: int = 10
    clip: float | None = None
    threads: int | None = None
    device: str = "cpu"
    runs: Path = Path("runs")

    def __post_init__(self) -> None:
        for name in ("steps", "eval_every", "log_every"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(0 <= self.seed < 2**63, "seed", "in [0, 2^63)", self.seed)
        require(
            self.clip is None or 0 < self.clip < math.inf, "clip", "None or positive and finite", self.clip
        )
        require(self.threads is None or self.threads >= 1, "threads", "None or at least 1", self.threads)


def to_json(config: RunConfig) -> dict[str, Any]:
    """Return every field of a config, nested, in JSON's types; task and optimizer carry their names."""
    fields = asdict(config)
    fields["task"] = {"name": config.task.name} | fields["task"]
    fields["optimizer"] = {"name": config.optimizer.name} | fields["optimizer"]
    fields["runs"] = str(config.runs)
    return fields


def short_hash(config: RunConfig) -> str:
    """Return eight hexadecimal digits that tell experiments apart; where runs are kept does not count."""
    fields = {name: value for name, value in to_json(config).items() if name != "runs"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]
