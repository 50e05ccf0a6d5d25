"""Command-line overrides of a recipe's config, with errors of one line."""

import contextlib
import difflib
import io
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from itertools import dropwhile, takewhile

import tyro
from rich.text import Text

from amuse_lab.config import RunConfig
from amuse_lab.errors import ConfigError, RequestError


def take_option(arguments: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Take one option out of a command line, as `--name VALUE` or `--name=VALUE`; the last one counts.

    Args:
        arguments: The command line.
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
        arguments: The command line.
        name: The option, with its dashes.

    Returns:
        Whether it was there, and the other arguments in their order.
    """
    others = [argument for argument in arguments if argument != name]
    return len(others) < len(arguments), others


def apply(config: RunConfig, arguments: Sequence[str], *, prog: str, description: str) -> RunConfig:
    """Apply overrides such as `--steps 500 --optimizer.lr 0.02`; `--help` prints them all and exits.

    Args:
        config: What to start from; decides which options there are.
        arguments: The overrides.
        prog: What the help calls the command.
        description: What the help says about it.

    Raises:
        ConfigError: For an unknown option, a value of the wrong kind or one out of range.
        SystemExit: With status 0, after printing the help.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            changed, unused = tyro.cli(
                RunConfig,
                default=config,
                args=arguments,
                prog=prog,
                description=description,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_in_one_line(errors.getvalue())) from None
    if unused:
        raise _unused(unused, config)
    return changed


def _in_one_line(box: str) -> str:
    """The message in the box that tyro draws, with line characters or in ASCII: its first paragraph."""

    def is_rule(line: str) -> bool:
        return bool(line) and set(line) <= set("-─╰╯")

    lines = [line.strip(" │") for line in Text.from_ansi(box).plain.splitlines()]
    content = dropwhile(is_rule, lines[1:])  # after the title
    message = " ".join(takewhile(lambda line: line and not is_rule(line), content))
    subject, _, rest = message.removeprefix("Error parsing ").partition(": ")
    # A dataclass that rejects its settings names the one at fault itself; only options are worth naming.
    return message if not rest else f"{subject}: {rest}" if subject.startswith("-") else rest


def _options(config: object, prefix: str = "--") -> Iterator[str]:
    """All options of a config, spelled as the help spells them."""
    assert is_dataclass(config)
    for field in fields(config):
        value = getattr(config, field.name)
        option = prefix + field.name.replace("_", "-")
        if is_dataclass(value):
            yield from _options(value, option + ".")
        elif option != "--recipe":
            yield option


def _unused(arguments: Sequence[str], config: RunConfig) -> RequestError:
    options = [*_options(config), "--optimizer"]
    named = [argument.partition("=")[0] for argument in arguments if argument.startswith("-")]
    if not named:
        return ConfigError(f"unexpected argument {arguments[0]!r}")
    spelled = named[0].replace("_", "-")
    ending = [option for option in options if option.rpartition(".")[2] == spelled.lstrip("-")]
    nearest = ending or difflib.get_close_matches(spelled, options, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else "--help lists the options"
    return ConfigError(f"unknown option {named[0]}; {hint}")
