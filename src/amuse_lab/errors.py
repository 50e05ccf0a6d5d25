"""Exceptions. Imports nothing heavy, so that the command line can use them before torch is loaded."""

import difflib
from collections.abc import Iterable


class RequestError(Exception):
    """What was asked for cannot be done as asked; the message is one line and says what to change."""


class ConfigError(RequestError, ValueError):
    """A setting is out of range, or a name is unknown."""


class DataError(RequestError):
    """The data is missing or is not what it should be."""


class MissingError(DataError):
    """Data or weights are missing, for every process of this machine alike, so that only one reports it."""


class RecordError(RequestError):
    """The run folder cannot be written."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived during set-up, or a second time during training."""


class TrainingError(RuntimeError):
    """Training cannot go on; what was recorded until then stays."""


def require(condition: bool, name: str, constraint: str, value: object) -> None:
    """Check one setting.

    Args:
        condition: Whether the value is acceptable. A comparison with NaN is false, so NaN never passes one.
        name: The setting's name, as its owner spells it.
        constraint: What it must be; completes "must be ...".
        value: Value as given, for the message.

    Raises:
        ConfigError: If the condition does not hold.
    """
    if not condition:
        raise ConfigError(f"{name} must be {constraint}, got {value!r}")


def unknown(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a name that does not exist, with the nearest one that does.

    Args:
        kind: What the name should have named, such as "recipe".
        name: The name as given, which is none of `known`.
        known: All names that are valid.
    """
    names = sorted(known)
    found = nearest(name, names)
    hint = f"choose from {', '.join(names)}" if found is None else f"did you mean {found!r}?"
    return ConfigError(f"unknown {kind} {name!r}; {hint}")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the valid name that is most like a misspelled one; None if none is like it."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return found[0] if found else None
