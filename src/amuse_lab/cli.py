"""The command `amuse-lab`."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from amuse_lab.errors import ConfigError, RequestError, TrainingError, unknown

if TYPE_CHECKING:
    from amuse_lab.config import RunConfig

USAGE = """\
usage: amuse-lab COMMAND ...

  train RECIPE [--optimizer NAME] [--OPTION VALUE ...]   one run; `train RECIPE --help` lists the options
  train RECIPE --resume [...]                            goes on with the newest unfinished run of these very
                                                         settings; starts one if there is none
  train --resume FOLDER [--steps N]                      goes on with a run, also to more steps
  prepare NAME [--OPTION VALUE ...]                      tokenizes text; `prepare --help` lists the data sets
  export RUN_FOLDER [--out FOLDER]                       writes a language model for transformers
  bench [--OPTION VALUE ...]                             times optimizer steps against the installed peers
  list [--json]                                          recipes, studies, data sets and optimizers

`torchrun --nproc-per-node N -m amuse_lab train ...` runs on N processes. Ctrl-C and SIGTERM save and end with
status 130 and 143.
"""

# The commands import what they need when they run: torch takes seconds to load, and Ctrl-C should end those
# like any others.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name; None takes it from the process.

    Returns:
        The exit status: 0 only if what was asked for was done, 1 if training failed, 2 for a wrong request,
        130 if interrupted, 143 if terminated.
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
        if command == "prepare":
            return _prepare(rest)
        if command == "export":
            return _export(rest)
        if command == "bench":
            return _bench(rest)
        if command == "list":
            return _list(rest)
        raise unknown("command", command, ("train", "prepare", "export", "bench", "list"))
    except SystemExit as stop:
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("amuse-lab: interrupted", file=sys.stderr)
        return 130
    except RequestError as error:
        _say(str(error), everybody=not isinstance(error, ConfigError))
        return 2
    except TrainingError as error:
        _say(f"training failed: {error}")
        return 1


def _say(message: str, *, everybody: bool = False) -> None:
    """Print an error; of torchrun's processes only the first does, unless others may have met another one."""
    rank = os.environ.get("RANK", "0")
    if rank == "0" or everybody:
        process = "" if rank == "0" else f"process {rank}: "
        print(f"amuse-lab: {process}{message}", file=sys.stderr)


def _train(arguments: Sequence[str]) -> int:
    from rich.console import Console

    from amuse_lab import recipes
    from amuse_lab.progress import print_summary, progress_on
    from amuse_lab.recipes.reference import load_reference
    from amuse_lab.train import train

    resuming = bool(arguments) and arguments[0].partition("=")[0] == "--resume"
    if not resuming and (not arguments or arguments[0].startswith("-")):
        asked = bool(arguments) and arguments[0] in ("-h", "--help")
        print(f"{USAGE}\nrecipes: {', '.join(recipes.RECIPES)}", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    config, folder = _resumed(arguments) if resuming else _configured(*arguments)
    remark = recipes.remark(config)
    if remark is not None:
        _say(remark)

    console = Console()
    outcome = train(config, progress_on(console), resume=folder)
    if outcome.signal:
        _say(f"interrupted after step {outcome.summary['steps']}, saved in {outcome.folder}")
        return 128 + outcome.signal
    if os.environ.get("RANK", "0") == "0":
        print_summary(
            console,
            outcome.summary,
            measure=outcome.measure,
            unit=outcome.unit,
            lr=config.optimizer.lr,
            reference=load_reference(config.recipe, outcome.measure),
        )
        print(f"run folder: {outcome.folder}")
    return 0


def _configured(name: str, *arguments: str) -> "tuple[RunConfig, Path | None]":
    """What `train RECIPE ...` asks for, and the run folder that `--resume` goes on with."""
    from amuse_lab import overrides, recipes, resume

    recipe = recipes.find(name)
    optimizer, rest = overrides.take_option(arguments, "--optimizer")
    resuming, rest = overrides.take_flag(rest, "--resume")
    config = overrides.apply(
        recipe() if optimizer is None else recipe(optimizer),
        rest,
        prog=f"amuse-lab train {name}",
        description=f"Runs the recipe {name}. `--optimizer NAME` chooses the optimizer and its own options, "
        "`--resume` goes on with the newest unfinished run of these very settings.",
    )
    return config, resume.newest_unfinished(config) if resuming else None


def _resumed(arguments: Sequence[str]) -> "tuple[RunConfig, Path]":
    """What `train --resume FOLDER ...` asks for, and the folder."""
    from amuse_lab import overrides, resume

    given, rest = overrides.take_option(arguments, "--resume")
    optimizer, rest = overrides.take_option(rest, "--optimizer")
    folder = Path(given or "")
    saved = resume.saved_config(folder)
    if optimizer not in (None, saved.optimizer.name):
        raise resume.must_stay("optimizer", saved.optimizer.name, optimizer)
    config = overrides.apply(
        saved,
        rest,
        prog=f"amuse-lab train --resume {folder}",
        description="Goes on with a run. Settings that decide how it goes on have to stay as they are.",
    )
    resume.check_changes(saved, config)
    return config, folder


def _prepare(arguments: Sequence[str]) -> int:
    from amuse_lab.prepare import parse, run

    run(parse(arguments))
    return 0


def _export(arguments: Sequence[str]) -> int:
    from amuse_lab.tasks.lm.export import parse, run

    run(parse(arguments))
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
