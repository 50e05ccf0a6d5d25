"""What the orthogonalization costs each rank: counted here, and planned for larger models and machines.

python -m benchmarks.scaling            # writes records/scaling.json and the tables of docs/scaling.md
python -m benchmarks.scaling --planned  # the same without counting anew

The counts wrap torch's collectives and matrix products while processes on this machine take steps; the plan
asks the optimizer's own planner, without a process group. Where both are known they must be equal.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.flop_counter import FlopCounterMode

from amuse_lab.launch import exit_rank
from amuse_lab.tasks.lm.model import Llama, ModelConfig
from amuse_optim import AMUSE, param_groups
from amuse_optim.owners import owners_of
from amuse_optim.spread import Found, Spread, matrices_of
from benchmarks import scaling_peers, scaling_tables
from benchmarks.scaling_models import Parameter, models, of_model, on, parts
from benchmarks.traffic import counted

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "records" / "scaling.json"
PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- python -m benchmarks.scaling writes from here -->", "<!-- to here -->"

HERE = ModelConfig(n_embd=384, n_head=6, n_layer=6, context=64)
RANKS_HERE = (1, 2, 4)
RANKS = (8, 64, 512, 4096)
STEPS, WARM_UP = 12, 2
UNDIVIDED = "ddp, every rank does everything"


class Planned(NamedTuple):
    """What a step does, in the order of the ranks.

    Attributes:
        multiply_adds: Of every rank.
        entries_sent: By every rank.
        limits: Multiply-adds that some rank has in any division, by what forces them: an even share, the
            largest matrix, or the two that have to share a rank where the (ranks + 1) largest ones do not
            have one each.
        entries: Of all matrices together.
    """

    multiply_adds: list[int]
    entries_sent: list[int]
    limits: dict[str, float]
    entries: int


def least_loaded(found: Sequence[tuple[Parameter, Found]], ranks: int) -> list[int]:
    """The owners of matrices by the optimizer's rule."""
    return owners_of([matrix.work for _, matrix in found], ranks)


def planned(
    parameters: Sequence[Parameter],
    rule: Callable[[Sequence[tuple[Parameter, Found]], int], list[int]] = least_loaded,
) -> Planned:
    """The plan of the optimizer for these parameters, all of which lie on the same ranks.

    Args:
        parameters: The parameters.
        rule: Gives every matrix an owner.
    """
    ranks = len(parameters[0].spread.order)
    found: list[tuple[Parameter, Found]] = []
    for each in parameters:
        matrices = matrices_of(each.name, each.options, each.shape, each.spread)
        found += [(each, matrix) for matrix in matrices]
    owners = rule(found, ranks)
    loads, sent, entries = [0] * ranks, torch.zeros(ranks, dtype=torch.int64), 0
    replicated: dict[tuple[int, ...], list[int]] = {}
    for (parameter, matrix), owner in zip(found, owners, strict=True):
        loads[owner] += matrix.work.multiply_adds
        box, spread = matrix.single.box, parameter.spread
        held = parts(box, parameter.shape, spread)
        size = matrix.single.rows * matrix.single.cols
        entries += size
        if spread.placements is None:  # parameters of one shape are shared together
            replicated.setdefault(parameter.shape, [0] * ranks)[owner] += size
            continue
        if owner not in spread.covering(box, parameter.shape):
            replica = spread.held(parameter.shape)[owner].replica
            there = held * (replicas(parameter.shape, spread) == replica)
            there[owner] = 0
            sent += there
        sent[owner] += held.sum() - held[owner]
    for counts in replicated.values():
        given = torch.tensor(counts)
        even, ends = -(-sum(counts) // ranks), given.cumsum(0)
        starts = torch.arange(ranks) * even
        kept = torch.minimum(ends, starts + even) - torch.maximum(ends - given, starts)
        sent += given - kept.clamp(min=0) + even * (ranks - 1)
    costs = sorted((matrix.work.multiply_adds for _, matrix in found), reverse=True)
    limits = {
        "even split": sum(costs) / ranks,
        "one matrix": costs[0],
        "two matrices": sum(costs[ranks - 1 : ranks + 1]) if len(costs) > ranks else 0,
    }
    return Planned(loads, sent.tolist(), limits, entries)


@cache
def replicas(shape: tuple[int, ...], spread: Spread) -> Tensor:
    """The number of the replica that every rank belongs to."""
    return torch.tensor([each.replica for each in spread.held(shape)])


# --- counted ------------------------------------------------------------------------------------------------


def count(way: str) -> dict[str, Any]:
    """Take steps on all processes; what they counted, which must be what was planned."""
    torch.manual_seed(0)
    model = Llama(HERE)
    ranks = distributed.get_world_size()
    plan = planned(list(of_model(model, on("ddp" if way == UNDIVIDED else way, ranks))))
    if way == UNDIVIDED:
        plan = plan._replace(multiply_adds=[sum(plan.multiply_adds)] * ranks, entries_sent=[0] * ranks)
    if way == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
    elif way == "hsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("copies", "parts")))
    world = distributed.group.WORLD if way == "ddp" else None
    optimizer = AMUSE(
        param_groups(model), lr=0.01, warmup_steps=5, orthogonalize_dtype=torch.bfloat16, process_group=world
    )
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    seconds = []
    for _ in range(WARM_UP + STEPS):
        distributed.barrier()
        start = time.perf_counter()
        optimizer.step()
        distributed.barrier()
        seconds.append(time.perf_counter() - start)
    with counted() as traffic, FlopCounterMode(display=False) as products:
        optimizer.step()
    own = {
        "multiply_adds": products.get_total_flops() // 2,
        "bytes_sent": traffic.bytes_sent,
        "bytes_agreed": traffic.bytes_agreed,
        "collectives": dict(sorted(traffic.calls.items())),
    }
    rank = distributed.get_rank()
    assert own["multiply_adds"] == plan.multiply_adds[rank], (own, plan.multiply_adds)
    assert own["bytes_sent"] == 2 * plan.entries_sent[rank], (own, plan.entries_sent)
    everyone: list[Any] = [None] * ranks
    distributed.all_gather_object(everyone, own)
    return {
        "ranks": ranks,
        "way": way,
        "each": everyone,
        "bytes_of_matrices": 2 * plan.entries,
        "milliseconds": 1e3 * min(seconds[WARM_UP:]),
    }


def counted_here(ranks: int) -> list[dict[str, Any]]:
    """`count` in so many processes on this machine."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [sys.executable, *command, "-m", "benchmarks.scaling", "--count"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


# --- planned ------------------------------------------------------------------------------------------------


def planned_row(name: str, way: str, parameters: list[Parameter], ranks: int) -> dict[str, Any]:
    """What the plan gives the rank with the most work, and the one that sends most; other rules beside it."""
    plan = planned(parameters)
    total = sum(plan.multiply_adds)
    row = {
        "model": name,
        "way": way,
        "ranks": ranks,
        "multiply_adds": total,
        "most": max(plan.multiply_adds),
        "even": total / ranks,
        "limit": max(plan.limits.values()),
        "limited_by": max(plan.limits, key=lambda each: plan.limits[each]),
        "bytes_of_matrices": 2 * plan.entries,
        "bytes_sent_most": 2 * max(plan.entries_sent),
        "bytes_sent_all": 2 * sum(plan.entries_sent),
    }
    if way == "fsdp":
        there = planned(parameters, scaling_peers.torchtitan)
        most, entries = scaling_peers.dion(parameters)
        row["rules"] = {
            "Dion": {"most": most, "bytes_sent_most": 2 * entries},
            "torchtitan": {"most": max(there.multiply_adds), "bytes_sent_most": 2 * max(there.entries_sent)},
        }
    return row


# --- the record and the page --------------------------------------------------------------------------------


def write(record: dict[str, Any]) -> None:
    """Put the tables into the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{scaling_tables.tables(record)}\n\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", action="store_true", help="be one of the processes that count")
    parser.add_argument("--planned", action="store_true", help="plan anew and keep what was counted")
    parser.add_argument("--tables", action="store_true", help="write the page from the record alone")
    arguments = parser.parse_args()
    if arguments.count:
        torch.set_num_threads(1)
        distributed.init_process_group("gloo")
        ranks = distributed.get_world_size()
        for way in (UNDIVIDED, "ddp", "fsdp", "hsdp")[: 3 if ranks < 4 else 4]:
            found = count(way)
            if distributed.get_rank() == 0:
                print(json.dumps(found), flush=True)
        distributed.destroy_process_group()
        exit_rank(0)
    record = json.loads(RECORD.read_text()) if arguments.tables or arguments.planned else {}
    if not (arguments.tables or arguments.planned):
        record["torch"] = torch.__version__
        record["model"] = {"n_embd": HERE.n_embd, "n_layer": HERE.n_layer}
        record["counted"] = [row for ranks in RANKS_HERE for row in counted_here(ranks)]
    if not arguments.tables:
        record["planned"] = [planned_row(*each, ranks) for ranks in RANKS for each in models(ranks)]
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    write(record)


if __name__ == "__main__":
    main()
