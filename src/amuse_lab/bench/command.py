"""`amuse-lab bench`: parses the command line, runs the measurements, prints tables and writes the record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import tyro

from amuse_lab.arguments import parse as parse_options
from amuse_lab.bench import record
from amuse_lab.bench.contestants import CONTESTANTS, Contestant
from amuse_lab.bench.measure import Bench, Result, machine_set
from amuse_lab.bench.sizes import LARGE, SIZES, USUAL, ParameterSet
from amuse_lab.errors import ConfigError, RequestError, require, unknown
from amuse_lab.parallel import check_threads

Named = TypeVar("Named")
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_DESCRIPTION = """\
Times one optimizer step, without forward or backward, on the parameters of Llama models. All optimizers run
in one process and take turns, round by round. The table shows the median and the 10th percentile of the step
time; the median over rounds of the time divided by that of --against; bytes of optimizer state per parameter;
the most bytes held during a step beside state, parameters and gradients, per parameter; the number of
operations that torch dispatches; the number of matrix products and their floating-point operations; and the
elements read and written per parameter."""


@dataclass(frozen=True)
class Request:
    """What to measure, checked.

    Attributes:
        sizes: Sets of parameters that are stepped, one after the other.
        contestants: Optimizers that are timed, in the order of the table.
        missing: Usual contestants that are not installed.
        against: Name of the optimizer whose times the ratios divide by; one of the contestants.
        rounds: Timed rounds, after the warm-up rounds; None takes the number of each parameter set.
        threads: CPU threads of torch; None keeps torch's own choice.
        device: Device that the parameters are on.
        dtype: Type of the parameters and their gradients.
        onednn: Whether oneDNN may be used.
        out: Folder to write the record to; None writes none.
    """

    sizes: list[ParameterSet]
    contestants: list[Contestant]
    missing: list[str]
    against: str
    rounds: int | None
    threads: int | None
    device: torch.device
    dtype: torch.dtype
    onednn: bool
    out: Path | None


@dataclass(frozen=True)
class Options:
    """The command line.

    Attributes:
        sizes: Names of the parameter sets to measure, as listed in this help.
        large: Measure the largest set as well.
        only: Names of the optimizers to measure, as listed in this help; by default the usual ones that are
            installed.
        against: The optimizer that all times are divided by; by default amuse, or the first of `only` if that
            does not name amuse.
        rounds: Timed rounds, after 3 warm-up rounds; by default 10 to 40, depending on the parameter set.
        threads: Threads of torch on the CPU; by default as many as torch chooses.
        device: Device of the parameters: cpu, cuda, cuda:1.
        dtype: Type of the parameters: float32 or bfloat16.
        no_onednn: Disable oneDNN, as on a CPU without fast bfloat16 matrix products.
        out: A folder to write the record and the table to.
    """

    sizes: tuple[str, ...] = USUAL
    large: Flag = False
    only: tuple[str, ...] = ()
    against: str | None = None
    rounds: int | None = None
    threads: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    no_onednn: Flag = False
    out: Path | None = None


def _names() -> str:
    """What the help says about the names of parameter sets and optimizers."""
    return "\n".join(
        [
            "parameter sets:",
            *(f"  {size.name:18} {size.description}" for size in SIZES.values()),
            "optimizers:",
            *(f"  {each.name:18} {each.description}{_note(each)}" for each in CONTESTANTS.values()),
        ]
    )


def _note(contestant: Contestant) -> str:
    if not contestant.installed:
        return f" (not installed: pip install {contestant.requirement})"
    return "" if contestant.usual else " (with --only)"


def parse(arguments: Sequence[str]) -> Request:
    """Read and check the command line.

    Args:
        arguments: Words of the command line after `amuse-lab bench`: options and their values.

    Raises:
        RequestError: For whatever cannot be done as asked.
        SystemExit: With status 0, after printing the help.
    """
    given = parse_options(
        Options, arguments, prog="amuse-lab bench", description=f"{_DESCRIPTION}\n\n{_names()}"
    )
    sizes = _chosen("parameter set", given.sizes, SIZES)
    if given.large and SIZES[LARGE] not in sizes:
        sizes.append(SIZES[LARGE])
    if given.only:
        contestants = _chosen("optimizer", given.only, CONTESTANTS)
        for contestant in contestants:
            if not contestant.installed:
                raise RequestError(
                    f"{contestant.name} is not installed: pip install {contestant.requirement}"
                )
        missing = []
    else:
        usual = [contestant for contestant in CONTESTANTS.values() if contestant.usual]
        contestants = [contestant for contestant in usual if contestant.installed]
        missing = [contestant.name for contestant in usual if not contestant.installed]
    names = [contestant.name for contestant in contestants]
    against = given.against or ("amuse" if "amuse" in names else names[0])
    if against not in names:
        raise unknown("optimizer for --against:", against, names)
    for option in ("rounds", "threads"):
        value = getattr(given, option)
        require(value is None or value >= 1, f"--{option}", "at least 1", value)
    if given.dtype not in DTYPES:
        raise unknown("dtype", given.dtype, DTYPES)
    if given.threads is not None:
        check_threads(given.threads)
    device = _usable(given.device)
    if given.out is not None:
        record.claim(given.out)
    return Request(
        sizes=sizes,
        contestants=contestants,
        missing=missing,
        against=against,
        rounds=given.rounds,
        threads=given.threads,
        device=device,
        dtype=DTYPES[given.dtype],
        onednn=not given.no_onednn,
        out=given.out,
    )


def _chosen(kind: str, names: Sequence[str], known: Mapping[str, Named]) -> list[Named]:
    """What the names stand for, each once, in the order given."""
    for name in names:
        if name not in known:
            raise unknown(kind, name, known)
    return [known[name] for name in dict.fromkeys(names)]


def _usable(name: str) -> torch.device:
    """Check that a device exists, computes, and is of a kind that can be timed."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled for the device
        reason = str(error).split("\n")[0]
        raise ConfigError(f"--device must be one that torch can use here, got {name!r}: {reason}") from error
    require(device.type in ("cpu", "cuda"), "--device", "cpu or cuda", name)
    return device


def run(request: Request) -> None:
    """Measure, print a table for each parameter set, and keep the record complete after each.

    Args:
        request: Checked command line, from `parse`.

    Raises:
        RequestError: If a contestant cannot step.
    """
    results: dict[str, dict[str, Result]] = {}
    tables: list[str] = []
    with machine_set(threads=request.threads, onednn=request.onednn):
        for size in request.sizes:
            bench = Bench(size, request.device, request.dtype)
            results[size.name] = bench.run(request.contestants, request.rounds or size.rounds)
            tables.append(record.table(size.name, results[size.name], request.missing, request.against))
            print(tables[-1], flush=True)
            if request.out is not None:
                content = record.to_json(
                    results,
                    missing=request.missing,
                    against=request.against,
                    device=request.device,
                    dtype=request.dtype,
                    complete=size is request.sizes[-1],
                )
                record.write(request.out, content, tables)
    if request.out is not None:
        print(f"record: {request.out / record.RECORD}")
