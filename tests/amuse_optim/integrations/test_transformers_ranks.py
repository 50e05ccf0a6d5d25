"""The Trainer of transformers in two processes, with DDP and with FSDP2: as one process that has all rows."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.amuse_optim.integrations import tiny_trainer as tiny

ROOT = Path(__file__).parents[3]


@pytest.mark.requirement("B9", "D3")
@pytest.mark.parametrize(
    "how",
    [
        "ddp",
        pytest.param("fsdp2-full", marks=pytest.mark.slow),
        pytest.param("fsdp2-sharded", marks=pytest.mark.slow),
    ],
)
def test_two_processes_evaluate_and_save_x_and_resume_with_the_same_bits(tmp_path: Path, how: str) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    done = subprocess.run(
        [sys.executable, *command, "tests.programs.trainer_ranks", str(tmp_path), how],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done") == 2

    averages, y, losses = tiny.plain_loop(tiny.model(torch.float64), ranks=2)
    ended = [torch.load(tmp_path / run / f"rank{i}.pt") for run in ("whole", "resumed") for i in range(2)]
    for name, expected in {"x": averages[-1], "y": y}.items():
        assert all(tiny.same(each[name], ended[0][name]) for each in ended)
        torch.testing.assert_close(ended[0][name], expected, rtol=1e-7, atol=1e-9)
    for each in ended:
        for step, loss in each["losses"].items():
            assert loss == pytest.approx(losses[step], rel=1e-9)
        assert each["losses"] == ended[0]["losses"]
    assert sorted(ended[0]["losses"]) == [2, 4, 6, 8, 10, 12]

    if how == "fsdp2-sharded":  # of which the Trainer writes no file of the whole model
        return
    for step in (3, 6, 9, 12):
        shipped = tiny.saved(tmp_path / "whole" / f"checkpoint-{step}")
        torch.testing.assert_close(shipped, averages[step], rtol=1e-7, atol=1e-9)
        if step > 6:
            assert tiny.same(tiny.saved(tmp_path / "resumed" / f"checkpoint-{step}"), shipped)
    assert tiny.same(tiny.saved(tmp_path / "resumed" / "final"), ended[0]["x"])
