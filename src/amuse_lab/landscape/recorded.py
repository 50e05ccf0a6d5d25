"""What was measured along a run, as an object and in JSON's types."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from amuse_lab.landscape.measuring import Measurement
from amuse_lab.landscape.river import River

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Recorded:
    """The landscape of one run.

    Attributes:
        name: What tables and figures call it.
        setting: What it was trained on: "text" or "images" for the claims, else the name of the data set.
        seed: Seed of its initial weights and of the order of its training data.
        config: Its config, as `amuse_lab.config.to_json` gives it.
        settings: How much was measured: the fields of `landscape.measuring.Settings`.
        measurements: What was measured at each measured step, in the order of the steps.
        rivers: The river test at the last measured step; empty if the run failed before it.
        seconds: How long it took in seconds, training included.
        environment: Hash of the environment that it was measured in.
        failure: What ended it before its end, in words; None if nothing did.
    """

    name: str
    setting: str
    seed: int
    config: dict[str, Any]
    settings: dict[str, Any]
    measurements: list[Measurement]
    rivers: list[River]
    seconds: float
    environment: str
    failure: str | None = None


def to_json(recorded: Recorded) -> dict[str, Any]:
    """Return a record in JSON's types."""
    return dataclasses.asdict(recorded)


def from_json(content: Mapping[str, Any]) -> Recorded:
    """Return the record that `to_json` has written.

    Raises:
        TypeError: If a field is missing or unknown.
    """
    return _built(Recorded, content)


def _built(kind: type[Kind], content: Mapping[str, Any]) -> Kind:
    """A dataclass from its fields, with the dataclasses in them."""
    hints = get_type_hints(kind)
    assert is_dataclass(kind)
    known = {field.name for field in fields(kind)}
    return kind(**{name: _value(hints[name], v) if name in known else v for name, v in content.items()})


def _value(hint: Any, content: Any) -> Any:
    if content is None:
        return None
    if isinstance(hint, type) and is_dataclass(hint):
        return _built(hint, content)
    arguments = get_args(hint)
    if get_origin(hint) is list:
        return [_value(arguments[0], each) for each in content]
    if get_origin(hint) is dict:
        return {name: _value(arguments[1], each) for name, each in content.items()}
    inner = [each for each in arguments if is_dataclass(each)]  # X | None
    return _value(inner[0], content) if inner else content


def mean(values: list[float]) -> float:
    """Return the mean of numbers, at least one."""
    return math.fsum(values) / len(values)
