"""Runs the cases of the kernel: in Triton's interpreter, in its compiler, and on a GPU where there is one.

Triton reads TRITON_INTERPRET when it is first imported, which any test may do, and with it compiles nothing
any more; so the cases run in processes of their own. By hand:

    TRITON_INTERPRET=1 pytest tests/amuse_optim/kernels/cases_fused.py
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
EVERYWHERE = ["cases_fused.py", "cases_benchmark.py", "cases_step.py"]
RUNS = {
    "interpreter": ("1", EVERYWHERE),
    "compiler": ("0", ["cases_compilation.py"]),
}
if torch.cuda.is_available():
    RUNS["gpu"] = ("0", [*EVERYWHERE, "cases_capture.py"])


@pytest.mark.parametrize("where", RUNS)
def test_cases(where: str, tmp_path: Path) -> None:
    interpret, files = RUNS[where]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *(str(HERE / file) for file in files),
        ],
        cwd=HERE.parents[2],
        env=os.environ | {"TRITON_INTERPRET": interpret, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Passed, and nothing else: no skips.
    assert re.fullmatch(r"[1-9]\d* passed in .*", done.stdout.strip().splitlines()[-1]), done.stdout


def test_every_file_of_cases_is_run() -> None:
    listed = {*EVERYWHERE, "cases_compilation.py", "cases_capture.py"}
    assert {path.name for path in HERE.glob("cases_*.py")} == listed
