"""FSDP2: sharded parameters take the steps of whole ones."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from amuse_optim import AMUSE
from amuse_optim.sharding import held_parts
from tests.amuse_optim.training import take_steps

HERE = Path(__file__).parent


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.requirement("D3")
def test_sharded_steps_equal_whole_ones(processes: int) -> None:
    """Even, uneven and empty shards, in a process each, through gloo."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    done = subprocess.run(
        [sys.executable, *command, "tests.programs.sharded"],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == processes


@pytest.fixture
def sharded() -> Iterator[Callable[[Tensor], DTensor]]:
    """Makes tensors whose rows are divided over one process, which is enough to be of another kind."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    yield lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)])
    dist.destroy_process_group()


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=3),
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from([None, 0, 1])), min_size=1, max_size=3),
)
def test_each_replica_holds_every_entry_once(shape: list[int], mesh: list[tuple[int, int | None]]) -> None:
    placements = [Replicate() if dim is None else Shard(dim) for _, dim in mesh]
    held = held_parts(shape, [size for size, _ in mesh], placements)
    counts: dict[int, Tensor] = {}
    for box, _, replica in held:
        counts.setdefault(replica, torch.zeros(shape))[tuple(slice(*span) for span in box)] += 1
    assert len(counts) == math.prod(size for size, dim in mesh if dim is None)
    assert all(bool((count == 1).all()) for count in counts.values())


@given(st.integers(1, 20), st.integers(1, 8))
def test_parts_are_those_of_chunk(size: int, ranks: int) -> None:
    held = held_parts((2, size), (ranks,), [Shard(1)])
    chunks = torch.arange(2 * size).view(2, size).chunk(ranks, dim=1)
    sizes = [stop - start for (_, (start, stop)), _, _ in held]
    assert sizes == [chunk.shape[1] for chunk in chunks] + [0] * (ranks - len(chunks))


def test_sharded_matrices_cannot_be_captured(sharded: Callable[[Tensor], DTensor]) -> None:
    weight = nn.Parameter(sharded(torch.ones(4, 3)))
    optimizer = AMUSE([weight], direction="muon", lr=0.1, warmup_steps=2, capturable=True, nonfinite="ignore")
    weight.grad = sharded(torch.randn(4, 3))
    with pytest.raises(ValueError, match="matrices must not be sharded"):
        optimizer.step()
    assert optimizer.param_groups[0]["t"] == 0
    assert float(optimizer.state[weight]["step"]) == 0
    assert torch.equal(weight.full_tensor(), torch.ones(4, 3))


def test_state_of_whole_parameters_does_not_fit_sharded_ones(sharded: Callable[[Tensor], DTensor]) -> None:
    plain = AMUSE([nn.Parameter(torch.ones(4, 3))], direction="muon", lr=0.1, warmup_steps=2)
    take_steps(plain, range(1))
    weight = nn.Parameter(sharded(torch.ones(4, 3)))
    optimizer = AMUSE([weight], direction="muon", lr=0.1, warmup_steps=2)
    optimizer.load_state_dict(plain.state_dict())
    weight.grad = sharded(torch.randn(4, 3))
    with pytest.raises(ValueError, match="does not fit its state"):
        optimizer.step()
    assert torch.equal(weight.full_tensor(), torch.ones(4, 3))
