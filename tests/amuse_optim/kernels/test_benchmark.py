"""What the benchmark of the kernel does without a GPU; `cases_benchmark.py` runs the rest of it."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_kernels import SHAPES, Check, Row, Shape, Times, largest_spread, table_of_rows

PROGRAM = Path(__file__).parents[3] / "benchmarks" / "gpu_kernels.py"


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    out = tmp_path / "new" / "kernels.json"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--out", str(out)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "gpu_kernels: needs a CUDA GPU and triton, and finds none here\n"
    assert done.stdout == ""
    assert not out.parent.exists()


def test_shapes() -> None:
    assert [str(shape) for shape in SHAPES] == [
        "768x768",
        "768x2304",
        "2048x2048",
        "2048x5632",
        "64 x 256x256",
    ]
    assert Shape(64, 256, 256).entries == 2**22


def test_nan_does_not_pass() -> None:
    assert Check("1x1", 0.5, 0.5, 0.5).passed
    assert not Check("1x1", float("nan"), 0.0, 0.5).passed
    assert not Check("1x1", 0.6, 0.6, 0.5).passed


def test_table_and_spread() -> None:
    row = Row("768x768", 10**9, 2e12, Times([4.0, 6.0], [1.9, 2.1]), Times([7.0], [3.0]))
    *_, last = table_of_rows([row]).splitlines()
    assert last.split() == ["768x768", "2.0000", "5.0000", "500.0", "25%", "3.0000", "7.0000", "1.50"]
    assert round(largest_spread([row]), 4) == round(2.1 / 1.9 - 1, 4)
