"""The command `amuse-lab`."""

import importlib.util
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Never

from amuse_lab.arguments import take_flag, take_option
from amuse_lab.errors import (
    ConfigError,
    MissingError,
    RequestError,
    Terminated,
    TrainingError,
    require,
    unknown,
)
from amuse_lab.files import data_root_at

if TYPE_CHECKING:
    from amuse_lab.config import RunConfig

USAGE = """\
usage: amuse-lab COMMAND ... [--data-root FOLDER]

  train RECIPE [--optimizer NAME] [--OPTION VALUE ...]   one run; `train RECIPE --help` lists the options
  train RECIPE --resume [...]                            goes on with the newest unfinished run of these very
                                                         settings; starts one if there is none
  train --resume FOLDER [--steps N]                      goes on with a run, also to more steps
  train --resume FOLDER --optimizer.lr X --from-here     ... at another learning rate from this step on
  train RECIPE --smoke                                   the recipe in a minute: small, on data on board
  train ... --processes N                                on N processes of this machine, one for each GPU
  prepare NAME [--OPTION VALUE ...]                      puts text or images where recipes find them;
                                                         `prepare --help` lists the data sets
  export RUN_FOLDER [--out FOLDER]                       writes a language model for transformers, or an
                                                         image classifier for plain torch
  compare STUDY [--workers N] [--OPTION VALUE ...]       makes the runs of a study that its records lack;
                                                         `compare STUDY --plan` says how many those are
  report [STUDY ...] [--figures FOLDER]                  writes the page of a study from its records, and
                                                         its figures
  landscape RECIPE|RUN_FOLDER [--OPTION VALUE ...]       what the updates of a run have to do with the
                                                         curvature of its loss, as a page
  bench [--OPTION VALUE ...]                             times optimizer steps against the installed peers
  list [--json]                                          recipes, studies, data sets and optimizers
  completion bash|zsh                                    a script that completes these commands with Tab

Prepared data lies in the folder `data`, or where AMUSE_LAB_DATA or --data-root says.
`torchrun ... -m amuse_lab train ...` runs on several machines. Ctrl-C and SIGTERM save and end with status
130 and 143.
"""

_NEEDED = (
    *("matplotlib", "numpy", "optuna", "pytorch_optimizer", "rich", "safetensors", "schedulefree", "scipy"),
    "tyro",
)
"""The packages of the extra `lab`, without which no command runs; looked for before torch is loaded."""

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
    # Must be set before torch loads OpenMP. Waiting threads that spin for long make small models up to 30
    # times slower when another process uses the same core; with threads that sleep at once, a second thread
    # gains nothing. About ten microseconds of spinning are as fast on idle cores and acceptable on busy ones.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        with _terminable():
            data_root, rest = take_option(sys.argv[1:] if arguments is None else arguments, "--data-root")
            with data_root_at(data_root):
                status = _run(rest)
                sys.stdout.flush()
                return status
    except SystemExit as stop:
        return int(stop.code or 0)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Terminated:
        _say("terminated")
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        _say("interrupted")
        return 128 + signal.SIGINT
    except MissingError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            _say(str(error), everybody=True)
        return 2
    except RequestError as error:
        _say(str(error), everybody=not isinstance(error, ConfigError))
        return 2
    except TrainingError as error:
        _say(f"training failed: {error}")
        return 1


@contextmanager
def _terminable() -> Iterator[None]:
    """Context manager: SIGTERM raises `Terminated`; training has a handler of its own, which saves."""

    def terminate(_number: int, _frame: FrameType | None) -> Never:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # only that one may have handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(message: str, *, everybody: bool = False) -> None:
    """Print an error, on rank 0 only unless `everybody`: other ranks may have had a different error."""
    rank = os.environ.get("RANK", "0")
    if rank == "0" or everybody:
        process = "" if rank == "0" else f"process {rank}: "
        print(f"amuse-lab: {process}{message}", file=sys.stderr, flush=True)


def _run(arguments: Sequence[str]) -> int:
    if not arguments:
        print(USAGE, end="", file=sys.stderr)
        return 2
    command, *rest = arguments
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if command not in _COMMANDS:
        raise unknown("command", command, _COMMANDS)
    for package in _NEEDED:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"the package {package} is not installed: pip install 'amuse-optim[lab]'")
    return _COMMANDS[command](rest)


def _train(arguments: Sequence[str]) -> int:
    from rich.console import Console

    from amuse_lab import recipes
    from amuse_lab.progress import print_summary, progress_on
    from amuse_lab.recipes.reference import comparable_results
    from amuse_lab.train import train

    processes, arguments = take_option(arguments, "--processes")
    if processes is not None:
        return _launch(processes, arguments)
    resuming = bool(arguments) and arguments[0].partition("=")[0] == "--resume"
    if not resuming and (not arguments or arguments[0].startswith("-")):
        asked = bool(arguments) and arguments[0] in ("-h", "--help")
        print(f"{USAGE}\nrecipes: {', '.join(recipes.RECIPES)}", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    if resuming:
        config, folder, newest = *_resumed(arguments), False
    else:
        (config, newest), folder = _configured(*arguments), None

    console = Console()
    outcome = train(config, progress_on(console), resume=folder, newest=newest)
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
            reference=comparable_results(config, outcome.measure),
        )
        print(f"run folder: {outcome.folder}")
    return 0


def _launch(processes: str, arguments: Sequence[str]) -> int:
    from amuse_lab.launch import launch

    require(processes.isdecimal(), "--processes", "a whole number", processes)
    return launch(int(processes), ["train", *arguments])


def _configured(name: str, *arguments: str) -> "tuple[RunConfig, bool]":
    """What `train RECIPE ...` asks for, and whether to go on with a run of it that is not finished."""
    from amuse_lab import recipes
    from amuse_lab.arguments import parse
    from amuse_lab.config import RunConfig
    from amuse_lab.recipes.smoke import reduced

    recipe = recipes.find(name)
    optimizer, rest = take_option(arguments, "--optimizer")
    for word, following in pairwise([*rest, "-"]):
        if word.startswith("--resume=") or (word == "--resume" and not following.startswith("-")):
            raise ConfigError(
                "--resume takes no folder behind a recipe, where it goes on with the newest unfinished run "
                "of these settings; `train --resume FOLDER` goes on with the run of a folder"
            )
    newest, rest = take_flag(rest, "--resume")
    smoke, rest = take_flag(rest, "--smoke")
    original = recipe() if optimizer is None else recipe(optimizer)
    default = reduced(original) if smoke else original
    config = parse(
        RunConfig,
        rest,
        default=default,
        prog=f"amuse-lab train {name}",
        description=f"Runs the recipe {name}. `--optimizer NAME` chooses the optimizer and its own options, "
        "`--resume` goes on with the newest unfinished run of these very settings, `--smoke` tries the "
        "recipe in a minute, `--data-root FOLDER` says where prepared data lies.",
        others=("--optimizer", "--resume", "--smoke", "--processes", "--data-root"),
    )
    return config.fitted(default), newest


def _resumed(arguments: Sequence[str]) -> "tuple[RunConfig, Path]":
    """What `train --resume FOLDER ...` asks for, and the folder."""
    from amuse_lab import resume
    from amuse_lab.arguments import parse
    from amuse_lab.config import RunConfig

    given, rest = take_option(arguments, "--resume")
    optimizer, rest = take_option(rest, "--optimizer")
    from_here, rest = take_flag(rest, "--from-here")
    folder = Path(given or "")
    saved = resume.saved_config(folder)
    if optimizer not in (None, saved.optimizer.name):
        raise resume.must_stay("optimizer", saved.optimizer.name, optimizer)
    config = parse(
        RunConfig,
        rest,
        default=saved,
        prog=f"amuse-lab train --resume {folder}",
        description="Goes on with a run. Settings that decide how it goes on have to stay as they are; with "
        "`--from-here` the learning rate may change for the steps to come.",
        others=("--optimizer", "--from-here", "--processes", "--data-root"),
    )
    resume.check_changes(saved, config, from_here=from_here)
    return config, folder


def _prepare(arguments: Sequence[str]) -> int:
    from amuse_lab.prepare import parse

    parse(arguments).run()
    return 0


def _export(arguments: Sequence[str]) -> int:
    from amuse_lab.export import parse, run

    run(parse(arguments))
    return 0


def _compare(arguments: Sequence[str]) -> int:
    from amuse_lab.studies.compare import parse, run

    return run(*parse(arguments))


def _report(arguments: Sequence[str]) -> int:
    from amuse_lab.studies.report import parse, run

    run(parse(arguments))
    return 0


def _landscape(arguments: Sequence[str]) -> int:
    from amuse_lab.landscape.command import parse, run

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


def _completion(arguments: Sequence[str]) -> int:
    from amuse_lab.completion import SHELLS, script

    shell = next(iter(arguments), "")
    if shell not in SHELLS or len(arguments) > 1:
        raise ConfigError(f"completion needs the name of a shell: {' or '.join(SHELLS)}")
    print(script(shell))
    return 0


_COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "prepare": _prepare,
    "export": _export,
    "compare": _compare,
    "report": _report,
    "landscape": _landscape,
    "bench": _bench,
    "list": _list,
    "completion": _completion,
}
