"""Matrices divided over ranks: the steps of one process, whatever holds the parameters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from amuse_optim import AMUSE, param_groups
from amuse_optim.members import evened
from tests.programs.agreeing import CASES
from tests.programs.divided import build

ROOT = Path(__file__).parents[2]
WAYS = (
    "ddp",
    "ddp, divided state",
    "fsdp",
    "hsdp",
    "rows",
    "columns",
    "fsdp of rows",
    "fsdp of columns",
    "stages",
    "crossed",
)


def run(processes: int, program: str, *arguments: str, status: int = 0) -> str:
    """What torchrun's processes print."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    done = subprocess.run(
        [sys.executable, *command, f"tests.programs.{program}", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def compare(processes: int, *cases: str) -> None:
    printed = run(processes, "divided", *cases)
    assert printed.splitlines() == [f"equal {case}" for case in cases]


@pytest.mark.requirement("D3")
def test_two_ranks_take_the_steps_of_one() -> None:
    """DDP, FSDP2 and tensor parallelism along either dimension: 1e-10 in float64, 1e-6 in float32."""
    ways = ("ddp", "ddp, divided state", "fsdp", "rows", "columns")
    given = (*(f"awkward/{way}/float64/5" for way in ways), "llama/ddp/float32/5", "llama/fsdp/float64/5")
    compare(2, *given, "training llama/ddp/float64/5", "training llama/fsdp/float64/5")


@pytest.mark.requirement("D3")
def test_two_ranks_take_the_steps_of_one_with_a_mixture_of_experts() -> None:
    """Router, attention and stacked experts, which FSDP2 shards along the experts."""
    stacks = {
        name
        for group in param_groups(build("mixture", "float64"))
        if group.get("stacked")
        for name, _ in group["params"]
    }
    assert stacks == {f"blocks.{i}.mlp.{name}" for i in range(2) for name in ("gate", "up", "down")}
    ways = [f"{way}/{dtype}/5" for way in ("ddp", "fsdp") for dtype in ("float64", "float32")]
    trained = ("training mixture/ddp/float64/5", "training mixture/fsdp/float64/5")
    compare(2, *(f"mixture/{way}" for way in ways), *trained)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", ["awkward", "llama", "mixture"])
def test_four_ranks_take_the_hundred_steps_of_one(model: str, way: str) -> None:
    compare(4, *(f"{model}/{way}/{dtype}/100" for dtype in ("float64", "float32")))


@pytest.mark.slow
def test_four_ranks_train_as_one() -> None:
    """With gradients of their own: within 1e-9 in float64, and within the spread of seeds in float32."""
    ways, models = ("ddp", "ddp, divided state", "fsdp", "hsdp"), ("llama", "mixture")
    for dtype in ("float64", "float32"):
        compare(4, *(f"training {model}/{way}/{dtype}/30" for model in models for way in ways))


@pytest.mark.requirement("A8", "D3")
def test_ranks_that_differ_stop_or_go_on_together() -> None:
    assert run(2, "agreeing").splitlines() == [f"passed {case.__name__}" for case in CASES]


@pytest.mark.parametrize("when", ["between", "within"])
def test_a_rank_that_waits_for_one_that_ended_says_so(when: str) -> None:
    assert run(2, "agreeing", when) == "told\n"


@pytest.mark.requirement("B4", "D3")
@pytest.mark.parametrize(("way", "after"), [("hsdp", "fsdp"), ("ddp, divided state", "ddp, divided state")])
def test_a_checkpoint_of_two_ranks_continues_on_one(way: str, after: str, tmp_path: Path) -> None:
    run(2, "resharded", "save", way, str(tmp_path / "saved"))
    run(1, "resharded", "load", after, str(tmp_path / "saved"))


@pytest.mark.slow
@pytest.mark.parametrize(("way", "after"), [("hsdp", "fsdp"), ("ddp, divided state", "ddp, divided state")])
def test_a_checkpoint_of_four_ranks_continues_on_two_and_on_one(way: str, after: str, tmp_path: Path) -> None:
    run(4, "resharded", "save", way, str(tmp_path / "saved"))
    for processes in (2, 1):
        run(processes, "resharded", "load", after, str(tmp_path / "saved"))


def test_a_process_group_is_one() -> None:
    with pytest.raises(TypeError, match=r"process_group must be a torch.distributed.ProcessGroup, .* got 2"):
        AMUSE([nn.Parameter(torch.ones(2, 2))], direction="muon", warmup_steps=2, process_group=2)


def test_state_is_divided_over_ranks_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"shard_state=True needs process_group, .* such as torch"):
        AMUSE([nn.Parameter(torch.ones(2, 2))], direction="muon", warmup_steps=2, shard_state=True)


def test_one_rank_of_a_process_group_steps_as_without_it() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        found = []
        for group, shard_state in ((None, False), (dist.group.WORLD, False), (dist.group.WORLD, True)):
            weight = nn.Parameter(torch.arange(12.0, dtype=torch.float64).cos().view(3, 4))
            options = {"process_group": group, "shard_state": shard_state}
            optimizer = AMUSE([weight], direction="muon", lr=0.1, warmup_steps=2, **options)
            for step in range(3):
                weight.grad = (weight.detach() + step).sin()
                optimizer.step()
            momentum = optimizer.state_dict()["state"][0]["momentum_buffer"]
            found.append(torch.stack([weight.detach(), momentum]))
        assert all(torch.equal(each, found[0]) for each in found)
    finally:
        dist.destroy_process_group()


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6))
def test_what_is_shared_is_evened_out_first(counts: list[int]) -> None:
    """Every entry goes to one rank, in order, and no rank but the last ones lacks any."""
    ranks, total = range(len(counts)), sum(counts)
    for rank in ranks:
        sends, receives, even = evened(counts, rank)
        assert sum(sends) == counts[rank]
        assert sum(receives) == max(0, min(even, total - rank * even))
        assert receives == [evened(counts, source)[0][rank] for source in ranks]
    assert 0 <= even * len(counts) - total < len(counts)
    if min(counts) == max(counts):
        assert sends[rank] == counts[rank]
