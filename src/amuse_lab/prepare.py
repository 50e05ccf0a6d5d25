"""`amuse-lab prepare`: finds who prepares a data set, and lets them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from amuse_lab.errors import ConfigError, require, unknown
from amuse_lab.tasks.image import command as image
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
        description: One line for people.
        parse: Reads the name and the options that follow it.
    """

    description: str
    parse: Callable[[str, Sequence[str]], Job]


PREPARATIONS: Mapping[str, Preparation] = {
    "fineweb": Preparation("FineWeb sample-100BT from the Hugging Face hub, tokenized", text.parse_fineweb),
    "shakespeare": Preparation("38 plays of Shakespeare, tokenized", text.parse_shakespeare),
    **{name: Preparation(description, image.parse_images) for name, description in image.PREPARED.items()},
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
            f"  {'NAME':{width}}  text, JSON lines or Parquet of yours: --from PATH",
            "",
            "Text goes on where it was interrupted; checks what is complete. `prepare NAME --help`: options.",
        ]
    )


def parse(arguments: Sequence[str]) -> Job:
    """Read and check the command line.

    Args:
        arguments: What follows `amuse-lab prepare`.

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
    return text.parse_local(name, rest)


def run(job: Job) -> None:
    """Do what was asked for.

    Args:
        job: From `parse`.

    Raises:
        RequestError: If it cannot be done.
    """
    job.run()
