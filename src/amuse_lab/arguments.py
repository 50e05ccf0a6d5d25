"""Command lines, read by tyro into dataclasses; every error is one line that names the nearest valid option.

tyro is imported when a command line is read: who only asks for the version of a command does not wait for it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from amuse_lab.errors import ConfigError, nearest

Parsed = TypeVar("Parsed")

_REFUSALS = {
    r"invalid literal for int\(\) with base 10: '(?P<value>.*)'": "a whole number",
    r"could not convert string to float: '(?P<value>.*)'": "a number",
    r"no type matching \{None\}\|(\S+) could be instantiated from \['(?P<value>.*?)'\]": r"\1 or None",
}
"""What Python and tyro say about a value of the wrong kind, and what it must be."""


def take_option(arguments: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Take one option out of a command line, as `--name VALUE` or `--name=VALUE`; the last one counts.

    Args:
        arguments: Words of the command line, without the program's name.
        name: The option, with its dashes.

    Returns:
        The value, or None, and the other arguments in their order.

    Raises:
        ConfigError: If the value is missing.
    """
    value: str | None = None
    others: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == name:
            value = next(waiting, None)
            if value is None or value.startswith("--"):
                raise ConfigError(f"{name} needs a value")
        elif argument.startswith(f"{name}="):
            value = argument.removeprefix(f"{name}=")
        else:
            others.append(argument)
    return value, others


def take_flag(arguments: Sequence[str], name: str) -> tuple[bool, list[str]]:
    """Take an option without a value out of a command line.

    Args:
        arguments: Words of the command line, without the program's name.
        name: The option, with its dashes.

    Returns:
        Whether it was there, and the other arguments in their order.
    """
    others = [argument for argument in arguments if argument != name]
    return len(others) < len(arguments), others


def parse(
    kind: type[Parsed],
    arguments: Sequence[str],
    *,
    prog: str,
    description: str,
    default: Parsed | None = None,
    others: Sequence[str] = (),
) -> Parsed:
    """Read a command line into a dataclass; `--help` prints its fields with their documentation and exits.

    Args:
        kind: The dataclass; nested ones have dotted options such as `--optimizer.lr`.
        arguments: Words of the command line, without the program's and the command's names.
        prog: Name of the command in the help text.
        description: Description of the command in the help text.
        default: Values of the options that are not given; None takes the defaults of the dataclass.
        others: Options, with their dashes, that were taken out of `arguments` before; they are only suggested
            in errors.

    Raises:
        ConfigError: For an unknown option, a missing one, a value of the wrong kind or one out of range.
        SystemExit: With status 0, after printing the help.
    """
    import tyro
    from tyro import _errors as events  # the only structured form of tyro's errors; tests hold every case

    known = [*_options(kind if default is None else default), *others]

    def raise_in_one_line(event: events.ParseErrorEvent) -> None:
        raise _one_line(event, known)

    with events.on_parse_error(raise_in_one_line):
        if default is None:
            return tyro.cli(kind, args=arguments, prog=prog, description=description)
        return tyro.cli(kind, default=default, args=arguments, prog=prog, description=description)


def _one_line(event: Any, known: Sequence[str]) -> ConfigError:
    """The error for what tyro met; its events have no common fields."""
    tokens = getattr(event, "tokens", None) or getattr(event, "unrecognized_tokens", None)
    if tokens:
        return _unknown(tokens, known)
    missing = getattr(event, "missing_arguments", None)
    if missing:
        return ConfigError(
            f"{', '.join(_name(each.arg) for each in missing)} must be given; --help says more"
        )
    argument = getattr(event, "argument", None)
    option = "" if argument is None else _name(argument)
    if hasattr(event, "choices"):
        return ConfigError(f"{option} must be one of {', '.join(event.choices)}, got {event.value!r}")
    if hasattr(event, "reason"):
        return ConfigError(f"{option} needs a value")
    message = " ".join(str(getattr(event, "message", type(event).__name__)).split())
    for pattern, constraint in _REFUSALS.items():
        found = re.match(pattern, message)
        if found and option:
            return ConfigError(f"{option} must be {found.expand(constraint)}, got {found['value']!r}")
    return ConfigError(f"{option}: {message}" if option else message)


def _name(argument: Any) -> str:
    """How an argument is written: `--option`, or what stands for a positional one in the help."""
    options = argument.lowered.name_or_flags
    return next((option for option in options if option.startswith("--")), str(argument.lowered.metavar))


def _unknown(tokens: Sequence[str], known: Sequence[str]) -> ConfigError:
    named = [token.partition("=")[0] for token in tokens if token.startswith("-")]
    if not named:
        return ConfigError(f"unexpected argument {tokens[0]!r}")
    spelled = named[0].replace("_", "-")
    endings = [option for option in known if option.rpartition(".")[2] == spelled.lstrip("-")]
    found = endings[0] if endings else nearest(spelled, known)
    hint = "--help lists the options" if found is None else f"did you mean {found}?"
    return ConfigError(f"unknown option {named[0]}; {hint}")


def _options(config: Any, prefix: str = "--") -> Iterator[str]:
    """All options of a dataclass or of a value of one, spelled as the help spells them."""
    for field in fields(config):
        value = getattr(config, field.name, MISSING)
        marks = getattr(field.type, "__metadata__", ())
        names = [mark.name for mark in marks if getattr(mark, "name", None)]
        option = prefix + (names[0] if names else field.name.replace("_", "-"))
        if is_dataclass(value):
            yield from _options(value, option + ".")
        elif option != "--recipe":
            yield option
