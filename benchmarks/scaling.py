"""What the orthogonalization costs each rank: counted here, and planned for larger models and machines.

python -m benchmarks.scaling      # writes records/scaling.json and the tables of docs/scaling.md

The counts wrap torch's collectives and matrix products while processes on this machine take steps; the plan
asks the optimizer's own planner, without a process group. Where both are known they must be equal.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.utils.flop_counter import FlopCounterMode

from amuse_lab.launch import exit_rank
from amuse_lab.recipes.pretraining import SIZES
from amuse_lab.tasks.lm.model import Llama, ModelConfig
from amuse_optim import AMUSE, param_groups
from amuse_optim.owners import owners_of
from amuse_optim.ranks import Found, Spread, matrices_of
from amuse_optim.sharding import Box
from benchmarks.gpu.tables import table
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
MUON = {"orthogonalize": "quintic", "orthogonalize_steps": 5}


class Parameter(NamedTuple):
    """A parameter that is made of matrices.

    Attributes:
        name: Its name.
        options: Options of its group.
        shape: Its shape.
        spread: How it lies on the ranks.
    """

    name: str
    options: dict[str, Any]
    shape: tuple[int, ...]
    spread: Spread


class Planned(NamedTuple):
    """What a step does, in the order of the ranks.

    Attributes:
        multiply_adds: Of every rank.
        entries_sent: By every rank.
        limit: Multiply-adds that some rank has in any division: an even share, those of the largest matrix,
            or of the two that the (ranks + 1) largest ones force on one rank.
        entries: Of all matrices together.
    """

    multiply_adds: list[int]
    entries_sent: list[int]
    limit: float
    entries: int


@cache
def parts(box: Box, shape: tuple[int, ...], spread: Spread) -> Tensor:
    """How many entries of a box every rank holds."""
    held = torch.tensor([each.box for each in spread.held(shape)])
    wanted = torch.tensor(box)
    common = torch.minimum(held[..., 1], wanted[:, 1]) - torch.maximum(held[..., 0], wanted[:, 0])
    return common.clamp(min=0).prod(dim=-1)


def planned(parameters: Sequence[Parameter]) -> Planned:
    """The plan of the optimizer for these parameters, all of which lie on the same ranks."""
    ranks = len(parameters[0].spread.order)
    found: list[tuple[Parameter, Found]] = []
    for each in parameters:
        matrices = matrices_of(each.name, each.options, each.shape, each.spread)
        found += [(each, matrix) for matrix in matrices]
    owners = owners_of([matrix.work for _, matrix in found], ranks)
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
    limit = max(sum(costs) / ranks, costs[0], sum(costs[ranks - 1 : ranks + 1]) if len(costs) > ranks else 0)
    return Planned(loads, sent.tolist(), limit, entries)


@cache
def replicas(shape: tuple[int, ...], spread: Spread) -> Tensor:
    """The number of the replica that every rank belongs to."""
    return torch.tensor([each.replica for each in spread.held(shape)])


def on(way: str, ranks: int) -> Spread:
    """Ranks that replicate (ddp), shard (fsdp), or shard in two replicas (hsdp)."""
    order = tuple(range(ranks))
    if way == "ddp":
        return Spread((ranks,), None, order)
    if way == "fsdp":
        return Spread((ranks,), (Shard(0),), order)
    return Spread((2, ranks // 2), (Replicate(), Shard(0)), order)


def of_model(model: nn.Module, spread: Spread) -> Iterator[Parameter]:
    """The parameters of a model that Muon gets."""
    for group in param_groups(model):
        if group["direction"] == "muon":
            for name, parameter in group["params"]:
                yield Parameter(name, group | MUON, tuple(parameter.shape), spread)


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


def transformer(
    layers: int, shapes: dict[str, tuple[int, ...]], experts: dict[str, tuple[int, ...]], ranks: int
) -> list[Parameter]:
    """The matrices of a decoder under FSDP2; stacked experts along the experts, then along their rows."""
    plain = on("fsdp", ranks)
    found = []
    for layer in range(layers):
        for name, shape in shapes.items():
            found.append(Parameter(f"{layer}.{name}", MUON, shape, plain))
        for name, shape in experts.items():
            spread = plain
            if ranks > shape[0]:
                spread = Spread((shape[0], ranks // shape[0]), (Shard(0), Shard(1)), plain.order)
            found.append(Parameter(f"{layer}.{name}", {**MUON, "stacked": True}, shape, spread))
    return found


def models(ranks: int) -> Iterator[tuple[str, str, list[Parameter]]]:
    """Name, how it lies on the ranks, and the matrices of each model."""
    for name, size in SIZES.items():
        with torch.device("meta"):
            model = Llama(size.model)
        for way in ("ddp", "fsdp"):
            yield name, way, list(of_model(model, on(way, ranks)))
    width, hidden = 6656, 17920  # Llama 30B (arXiv 2302.13971)
    dense = {
        **dict.fromkeys(("query", "key", "value", "output"), (width, width)),
        "gate": (hidden, width),
        "up": (hidden, width),
        "down": (width, hidden),
    }
    yield "30B dense", "fsdp", transformer(60, dense, {}, ranks)
    attention = {  # Qwen3-235B-A22B (arXiv 2505.09388)
        "query": (8192, 4096),
        "key": (512, 4096),
        "value": (512, 4096),
        "output": (4096, 8192),
        "router": (128, 4096),
    }
    experts = {"gate": (128, 1536, 4096), "up": (128, 1536, 4096), "down": (128, 4096, 1536)}
    yield "235B mixture of experts", "fsdp", transformer(94, attention, experts, ranks)


def planned_row(name: str, way: str, parameters: list[Parameter], ranks: int) -> dict[str, Any]:
    """What the plan gives the rank with the most work, and the one that sends most."""
    plan = planned(parameters)
    total = sum(plan.multiply_adds)
    return {
        "model": name,
        "way": way,
        "ranks": ranks,
        "multiply_adds": total,
        "most": max(plan.multiply_adds),
        "even": total / ranks,
        "limit": plan.limit,
        "bytes_of_matrices": 2 * plan.entries,
        "bytes_sent_most": 2 * max(plan.entries_sent),
        "bytes_sent_all": 2 * sum(plan.entries_sent),
    }


# --- tables -------------------------------------------------------------------------------------------------


def counted_table(rows: Sequence[dict[str, Any]]) -> str:
    """What processes here did in a step."""
    header = [
        "ranks, way",
        "multiply-adds, most of a rank",
        "share of one rank's",
        "MB sent, most of a rank",
        "all-to-alls and all-gathers",
        "all-reduces",
        "ms, fastest of 12",
    ]
    alone = max(each["multiply_adds"] for each in rows[0]["each"])
    lines = []
    for row in rows:
        most = max(each["multiply_adds"] for each in row["each"])
        calls = row["each"][0]["collectives"]
        lines.append(
            [
                f"{row['ranks']}, {row['way']}",
                f"{most / 1e9:.2f} G",
                f"{most / alone:.3f}",
                f"{max(each['bytes_sent'] for each in row['each']) / 1e6:.2f}",
                str(calls.get("all_to_all_single", 0) + calls.get("all_gather", 0)),
                str(calls.get("all_reduce", 0)),
                f"{row['milliseconds']:.0f}",
            ]
        )
    return table(header, lines)


def planned_table(rows: Sequence[dict[str, Any]]) -> str:
    """The plan beside what every rank would do and send without it."""
    header = [
        "model, way",
        "ranks",
        "multiply-adds, most of a rank",
        "over an even split",
        "over the limit",
        "every rank does everything",
        "GB sent, most of a rank",
        "sent by all / matrices",
        "gather everywhere: GB sent by a rank",
    ]
    lines = []
    for row in rows:
        # Without the plan: under DDP nothing is sent; under FSDP2 each rank sends its shards to all others.
        gathered = row["bytes_of_matrices"] * (row["ranks"] - 1) / row["ranks"] if row["way"] == "fsdp" else 0
        lines.append(
            [
                f"{row['model']}, {row['way']}",
                f"{row['ranks']:,}",
                f"{row['most'] / 1e12:.4g} T",
                f"{row['most'] / row['even']:.2f}",
                f"{row['most'] / row['limit']:.3f}",
                f"{row['multiply_adds'] / 1e12:.4g} T",
                f"{row['bytes_sent_most'] / 1e9:.4g}",
                f"{row['bytes_sent_all'] / row['bytes_of_matrices']:.2f}",
                f"{gathered / 1e9:.4g}",
            ]
        )
    return table(header, lines)


def write(record: dict[str, Any]) -> None:
    """Put the tables into the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = "\n\n".join(
        ["Counted:", counted_table(record["counted"]), "Planned:", planned_table(record["planned"])]
    )
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", action="store_true", help="be one of the processes that count")
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
    if not arguments.tables:
        record = {
            "torch": torch.__version__,
            "model": {"n_embd": HERE.n_embd, "n_layer": HERE.n_layer},
            "counted": [row for ranks in RANKS_HERE for row in counted_here(ranks)],
            "planned": [planned_row(*each, ranks) for ranks in RANKS for each in models(ranks)],
        }
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    write(json.loads(RECORD.read_text()))


if __name__ == "__main__":
    main()
