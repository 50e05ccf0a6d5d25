"""FSDP2: sharded parameters take the steps of whole ones."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.requirement("D3")
def test_sharded_steps_equal_whole_ones(processes: int) -> None:
    """Even, uneven and empty shards, in a process each, through gloo."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    done = subprocess.run(
        [sys.executable, *command, "tests.amuse_optim.sharded"],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == processes
