"""The command `amuse-lab`."""

import json
import os
import sys
from collections.abc import Sequence

from amuse_lab.errors import RequestError, TrainingError, unknown

USAGE = """\
usage: amuse-lab COMMAND ...

  train RECIPE [--optimizer NAME] [--OPTION VALUE ...]   one run; `train RECIPE --help` lists the options
  bench [--OPTION VALUE ...]                             times optimizer steps against the installed peers
  list [--json]                                          recipes, studies, data sets and optimizers
"""

# The commands import what they need when they run: torch takes seconds to load, and Ctrl-C should end those
# like any others.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name; None takes it from the process.

    Returns:
        The exit status: 0 only if what was asked for was done, 1 if training failed, 2 for a wrong request,
        130 if interrupted.
    """
    # Before torch loads its OpenMP: threads that spin for long while they wait make small models up to 30
    # times slower wherever another process wants the same core, and threads that sleep at once gain nothing
    # from a second one. Some ten microseconds of spinning are as fast on idle cores, bearable on busy ones.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    try:
        if not command:
            print(USAGE, end="", file=sys.stderr)
            return 2
        if command in ("-h", "--help"):
            print(USAGE, end="")
            return 0
        if command == "train":
            return _train(rest)
        if command == "bench":
            return _bench(rest)
        if command == "list":
            return _list(rest)
        raise unknown("command", command, ("train", "bench", "list"))
    except SystemExit as stop:
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("amuse-lab: interrupted", file=sys.stderr)
        return 130
    except RequestError as error:
        print(f"amuse-lab: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"amuse-lab: training failed: {error}", file=sys.stderr)
        return 1


def _train(arguments: Sequence[str]) -> int:
    from rich.console import Console

    from amuse_lab import overrides, recipes
    from amuse_lab.progress import print_summary, progress_on
    from amuse_lab.recipes.reference import load_reference
    from amuse_lab.train import train

    if not arguments or arguments[0].startswith("-"):
        asked = arguments and arguments[0] in ("-h", "--help")
        print(f"{USAGE}\nrecipes: {', '.join(recipes.RECIPES)}", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    name, *rest = arguments
    recipe = recipes.find(name)
    optimizer, rest = overrides.take_option(rest, "--optimizer")
    config = overrides.apply(
        recipe() if optimizer is None else recipe(optimizer),
        rest,
        prog=f"amuse-lab train {name}",
        description=f"Runs the recipe {name}. `--optimizer NAME` chooses the optimizer and its own options.",
    )

    console = Console()
    outcome = train(config, progress_on(console))
    steps, folder = outcome.summary["steps"], outcome.folder
    if outcome.summary["status"] == "interrupted":
        print(f"amuse-lab: interrupted after step {steps}, saved in {folder}", file=sys.stderr)
        return 130
    reference = load_reference(name, outcome.measure)
    print_summary(
        console,
        outcome.summary,
        measure=outcome.measure,
        unit=outcome.unit,
        lr=config.optimizer.lr,
        reference=reference,
    )
    print(f"run folder: {folder}")
    return 0


def _bench(arguments: Sequence[str]) -> int:
    from amuse_lab.bench.command import parse, run

    run(parse(arguments))
    return 0


def _list(arguments: Sequence[str]) -> int:
    from amuse_lab.catalogue import catalogue, describe

    for argument in arguments:
        if argument in ("-h", "--help"):
            print(USAGE, end="")
            return 0
        if argument != "--json":
            raise unknown("option", argument, ("--json",))
    content = catalogue()
    print(json.dumps(content, indent=2) if arguments else describe(content))
    return 0
