"""FSDP2: sharded parameters take the steps of whole ones."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from amuse_optim import AMUSE
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
