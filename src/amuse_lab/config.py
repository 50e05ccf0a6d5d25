"""What a run is: frozen, validated dataclasses, their JSON form and their hash."""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
import tyro
from torch import nn

from amuse_lab.errors import ConfigError, require
from amuse_lab.parallel import Mode, Precision
from amuse_lab.protocols import Task, TrainingOptimizer
from amuse_lab.ranges import Positive, check_ranges

SinkName = Literal["tensorboard", "wandb", "trackio"]
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class OptimizerConfig(ABC):
    """An optimizer and its settings. Subclasses add theirs, with their ranges as types.

    Attributes:
        lr: Peak learning rate, after the warm-up.
    """

    name: ClassVar[str]
    """What `--optimizer` calls it."""

    lr: Positive

    def __post_init__(self) -> None:
        check_ranges(self)

    @abstractmethod
    def build(self, model: nn.Module, *, steps: int) -> TrainingOptimizer:
        """Build the optimizer of a model.

        Args:
            model: Model whose parameters the optimizer trains; on its device, and sharded if it is to be.
            steps: The horizon, for optimizers with a schedule that ends.
        """


@dataclass(frozen=True, kw_only=True)
class TaskConfig(ABC):
    """A task and its settings. Subclasses add theirs.

    Attributes:
        data: Name of the data set.
        batch: Sequences or images per step, over all processes.
    """

    name: ClassVar[str]
    """Name of the task in config.json and in `amuse-lab list --json`."""

    free: ClassVar[frozenset[str]]
    """Names of the settings that affect no training step; they may change when a run is resumed."""

    data: str
    batch: int

    @abstractmethod
    def check(self, steps: int) -> None:
        """Check that data and weights are there, without reading them: before a device is looked for.

        Args:
            steps: Training steps of the run.

        Raises:
            DataError: If something is missing; the message has the command that mends it.
        """

    @abstractmethod
    def fitted(self, default: Self) -> Self:
        """Return the config with sizes, such as the vocabulary, that fit its data, unless the user set them.

        Args:
            default: Config of the recipe, before the command line changed it.

        Raises:
            DataError: If the data is damaged. Data that is missing is left to `check`.
        """

    @abstractmethod
    def reduced(self) -> Self:
        """Return a small config of the same kind on data that a package carries, for a one-minute trial."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Build an untrained model, from torch's global generator; needs no data."""

    @abstractmethod
    def build(self, *, seed: int, device: torch.device) -> Task:
        """Load and check the data.

        Args:
            seed: Decides which batch each step sees.
            device: Device that batches are put on.

        Raises:
            DataError: If the data is missing or is not what it should be.
        """


@dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
        recipe: The recipe this config comes from; names the run folder.
        task: Model, data and their settings.
        optimizer: Optimizer and its settings.
        steps: Training steps in all.
        seed: Seed of the initial weights, of the order of the training data and of the text sample.
        eval_every: Training steps from one evaluation to the next.
        log_every: Steps between lines of training loss.
        clip: Largest global norm of the gradient; None does not clip.
        micro_batch: Sequences or images of one forward pass on one device at most; None takes a device's
            whole share of the batch at once. Changes no result beyond rounding, but where BatchNorm takes the
            statistics of these.
        precision: fp32; amp-bf16, float32 weights under bfloat16 autocast (with fsdp, gathered in bfloat16);
            bf16, bfloat16 weights.
        compile: Whether torch.compile translates the model.
        parallel: How torchrun's processes share the work: ddp, whole parameters on each; fsdp, sharded ones.
        checkpoint_every: Steps between checkpoints; the end of a run writes one too.
        keep_last: Newest checkpoints that are kept.
        keep_every: Checkpoints of steps that are multiples of this are kept as well; None keeps no others.
        sinks: Where metrics go besides metrics.jsonl.
        threads: CPU threads; None leaves torch's own choice.
        device: As torch names it: cpu, cuda, cuda:1; under torchrun cpu or cuda.
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
    micro_batch: int | None = None
    precision: Precision = "fp32"
    compile: bool = False
    parallel: Mode = "ddp"
    checkpoint_every: int = 500
    keep_last: int = 2
    keep_every: int | None = None
    sinks: tuple[SinkName, ...] = ()
    threads: int | None = None
    device: str = "cpu"
    runs: Path = Path("runs")

    def __post_init__(self) -> None:
        for name in ("steps", "eval_every", "log_every", "checkpoint_every", "keep_last"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("micro_batch", "keep_every", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "None or at least 1", value)
        for name, kind in (("precision", Precision), ("parallel", Mode)):
            value = getattr(self, name)
            require(value in get_args(kind), name, f"one of {', '.join(get_args(kind))}", value)
        for sink in self.sinks:
            require(sink in get_args(SinkName), "sinks", f"among {', '.join(get_args(SinkName))}", sink)
        require(0 <= self.seed < 2**63, "seed", "in [0, 2^63)", self.seed)
        require(
            self.clip is None or 0 < self.clip < math.inf, "clip", "None or positive and finite", self.clip
        )

    def fitted(self, default: "RunConfig") -> "RunConfig":
        """Return the config with the sizes of its data, see `TaskConfig.fitted`."""
        return replace(self, task=self.task.fitted(default.task))


def to_json(config: RunConfig) -> dict[str, Any]:
    """Return every field of a config, nested, in JSON's types; task and optimizer carry their names."""
    content = asdict(config)
    content["task"] = {"name": config.task.name} | content["task"]
    content["optimizer"] = {"name": config.optimizer.name} | content["optimizer"]
    content["runs"] = str(config.runs)
    return content


def short_hash(config: RunConfig) -> str:
    """Return eight hexadecimal digits that tell experiments apart; where runs are kept does not count."""
    return hash_of(to_json(config))


def hash_of(content: Mapping[str, Any]) -> str:
    """Return the `short_hash` of the config that `to_json` has written."""
    settings = {name: value for name, value in content.items() if name != "runs"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def from_json(default: Settings, content: Mapping[str, Any]) -> Settings:
    """Return a config with the values that `to_json` has written.

    Args:
        default: A config with the same types of task and optimizer, such as the recipe's.
        content: Output of `to_json`; its entries "name" and "runs" are ignored.

    Raises:
        ConfigError: If it has a field that this version does not know, or a value that is out of range or
            of another kind.
    """
    assert is_dataclass(default)
    assert not isinstance(default, type)
    kinds = get_type_hints(type(default))
    known = {field.name for field in fields(default)}
    changes: dict[str, Any] = {}
    for name, value in content.items():
        if name in ("name", "runs"):
            continue
        if name not in known:
            raise ConfigError(f"{type(default).__name__} has no setting {name!r}: another version wrote it")
        current = getattr(default, name)
        if is_dataclass(current):
            require(isinstance(value, Mapping), name, "an object with settings", value)
            changes[name] = from_json(current, value)
        else:
            require(_accepts(kinds[name], value), name, _in_words(kinds[name]), value)
            changes[name] = tuple(value) if isinstance(value, list) else value
    return replace(default, **changes)


def _accepts(kind: Any, value: object) -> bool:
    """Whether a value out of JSON is one of a field's type."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return value in arguments
    if get_origin(kind) in (Union, UnionType):
        return any(_accepts(each, value) for each in arguments)
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            return False
        each = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        return len(each) == len(value) and all(map(_accepts, each, value))
    return type(value) in (int, float) if kind is float else type(value) is kind


def _in_words(kind: Any) -> str:
    """Describe the values that `_accepts` accepts, for error messages."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_in_words(each) for each in arguments)
    if get_origin(kind) is tuple:
        return f"a list, each {_in_words(arguments[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))
