"""`amuse-lab completion`: a script with which a shell completes commands, recipes, data sets and options."""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union

import tyro

from amuse_lab import export
from amuse_lab.bench.command import Options as BenchOptions
from amuse_lab.landscape.command import LandscapeOptions
from amuse_lab.prepare import PREPARATIONS
from amuse_lab.recipes import RECIPES
from amuse_lab.studies.catalogue import STUDIES
from amuse_lab.studies.compare import CompareOptions
from amuse_lab.studies.report import ReportOptions

SHELLS = ("bash", "zsh")


@dataclass(frozen=True)
class _ListOptions:
    """Recipes, studies, data sets and optimizers."""

    json: bool = False


@dataclass(frozen=True)
class _Commands:
    """The whole command line, as far as completion knows it."""

    command: Any


def script(shell: str) -> str:
    """Return the script of a shell.

    Args:
        shell: Name of the shell, one of `SHELLS`.
    """
    recipes = _choice({name: recipe() for name, recipe in RECIPES.items()})
    prepared = _choice({name: each.options for name, each in PREPARATIONS.items()})
    commands: Any = _choice(
        {
            "train": recipes,
            "prepare": prepared,
            "export": export.Request,
            "compare": _choice({name: CompareOptions() for name in STUDIES}),
            "report": _choice({name: ReportOptions() for name in STUDIES}),
            "landscape": _choice({name: LandscapeOptions(name) for name in RECIPES}),
            "bench": BenchOptions,
            "list": _ListOptions,
        }
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.cli(commands, prog="amuse-lab", args=["--tyro-print-completion", shell])
    return printed.getvalue()


def _choice(members: Mapping[str, Any]) -> Any:
    """A type of which tyro makes a subcommand for each name; a value stands for its own type and defaults."""
    choices = [
        Annotated[kind, tyro.conf.subcommand(name=name, prefix_name=False)]
        if isinstance(kind, type) or not hasattr(kind, "__dataclass_fields__")
        else Annotated[type(kind), tyro.conf.subcommand(name=name, default=kind, prefix_name=False)]
        for name, kind in members.items()
    ]
    unseen = Annotated[_ListOptions, tyro.conf.Suppress]  # a union of one type would be no union
    return Union[(*choices, unseen)]
