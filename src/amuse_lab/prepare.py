"""`amuse-lab prepare`: passes the command line on to the module that prepares the named data set."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Never, Protocol

from amuse_lab.arguments import take_option
from amuse_lab.errors import ConfigError, require, unknown
from amuse_lab.files import data_root
from amuse_lab.tasks.image import command as image
from amuse_lab.tasks.image.data.own import holds_images
from amuse_lab.tasks.lm import command as text


class Job(Protocol):
    """A checked request."""

    def run(self) -> None:
        """Do it.

        Raises:
            RequestError: If it cannot be done.
        """


@dataclass(frozen=True)
class Preparation:
    """A kind of data set that can be prepared.

    Attributes:
        description: What the data set is, in one line, for `prepare --help` and `amuse-lab list`.
        parse: Reads the name and the options that follow it.
        options: The dataclass of these options.
    """

    description: str
    parse: Callable[[str, Sequence[str]], Job]
    options: type


PREPARATIONS: Mapping[str, Preparation] = {
    "fineweb": Preparation(
        "FineWeb sample-100BT from the Hugging Face hub, tokenized", text.parse_fineweb, text.FineWebOptions
    ),
    "shakespeare": Preparation(
        "38 plays of Shakespeare, tokenized", text.parse_shakespeare, text.TextOptions
    ),
    **{
        name: Preparation(description, image.parse_images, image.ImageOptions)
        for name, description in image.PREPARED.items()
    },
}
"""Every data set that is prepared under a name of its own; any other name is for text of the user's."""


def usage() -> str:
    """Return what the command's help says."""
    width = max(map(len, PREPARATIONS))
    return "\n".join(
        [
            "usage: amuse-lab prepare NAME [--OPTION VALUE ...]",
            "",
            *(f"  {name:{width}}  {each.description}" for name, each in PREPARATIONS.items()),
            f"  {'NAME':{width}}  text of yours (plain, JSON, Parquet; also .gz and .zst): --from PATH",
            f"  {'NAME':{width}}  images of yours, a folder for each class: --from FOLDER",
            "",
            f"Everything goes to {data_root().absolute()}, which AMUSE_LAB_DATA or --data-root changes.",
            "Text goes on where it was interrupted; checks what is complete. `prepare NAME --help`: options.",
        ]
    )


def parse(arguments: Sequence[str]) -> Job:
    """Read and check the command line.

    Args:
        arguments: Words of the command line after `amuse-lab prepare`: the name of a data set, then options.

    Raises:
        RequestError: For whatever cannot be done as asked.
        SystemExit: With status 0, after printing the help.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        print(usage())
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(f"prepare needs the name of a data set: {', '.join(PREPARATIONS)}, or one of yours")
    name, *rest = arguments
    if name in PREPARATIONS:
        return PREPARATIONS[name].parse(name, rest)
    if not any(option.partition("=")[0] in ("--from", "-h", "--help") for option in rest):
        raise unknown("data set", name, PREPARATIONS)
    plain = re.fullmatch(r"\w[\w.-]*", name) is not None
    require(plain, "the name", "of letters, digits, dots and dashes, as it names a folder", name)
    place, _ = take_option(rest, "--from") if "-h" not in rest and "--help" not in rest else (None, [])
    if place is None:
        _print_help_of_both(name)
    if holds_images(Path(place or "")):
        return image.parse_own_images(name, rest)
    return text.parse_local(name, rest)


def _print_help_of_both(name: str) -> Never:
    for kind, parse_help in (("text", text.parse_local), ("images", image.parse_own_images)):
        print(f"For {kind} of yours:\n")
        with suppress(SystemExit):
            parse_help(name, ["--help"])
    raise SystemExit(0)
