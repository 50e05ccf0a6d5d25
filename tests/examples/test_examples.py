"""Every example runs, and what it asserts of its result holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
DISTRIBUTED = {"ddp", "fsdp2"}


def test_examples_are_short() -> None:
    assert len(EXAMPLES) == 10
    assert [path.stem for path in EXAMPLES if len(path.read_text().splitlines()) >= 80] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path: Path) -> None:
    launcher = [sys.executable, "-W", "error::UserWarning"]
    if path.stem in DISTRIBUTED:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*launcher, str(path)], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout
