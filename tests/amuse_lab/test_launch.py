import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amuse_lab import launch as module
from amuse_lab.errors import ConfigError
from amuse_lab.launch import launch

COMMAND = [sys.executable, "-m", "amuse_lab", "train"]
SMALL = [
    *("--task.model.n-embd", "8", "--task.model.n-head", "1", "--task.model.n-layer", "1"),
    *("--task.batch", "2", "--task.eval-windows", "2", "--task.sample-length", "3"),
]


def test_a_wrong_request_is_one_line_also_from_several_processes(tmp_path: Path) -> None:
    command = [*COMMAND, "llama-124m-amuse", "--processes", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"amuse-lab: {tmp_path}/data/fineweb holds no prepared text: ")
    assert done.stderr.count("\n") == 1


def test_two_processes_train_together_and_save_when_told_to(tmp_path: Path) -> None:
    command = [*COMMAND, "shakespeare", "--processes", "2", "--steps", "1000000", "--eval-every", "5", *SMALL]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("step ")
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert error.splitlines()[-1].startswith("amuse-lab: interrupted after step ")
    (folder,) = tmp_path.glob("runs/shakespeare/*")
    assert json.loads((folder / "env.json").read_text())["world_size"] == 2
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"


def test_the_others_end_with_the_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 fails at once; rank 0 would sleep."""
    monkeypatch.setattr(module, "_GRACE_SECONDS", 0.2)
    program = "import os, sys, time; time.sleep(60) if os.environ['RANK'] == '0' else sys.exit(7)"
    monkeypatch.setattr(sys, "executable", "/usr/bin/env")
    usual = subprocess.Popen

    def started(command: list[str], env: dict[str, str]) -> "subprocess.Popen[bytes]":
        assert command[1:] == ["-m", "amuse_lab", "train"]
        assert (env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"], env["RANK"]) == ("2", "2", env["LOCAL_RANK"])
        return usual([PYTHON, "-c", program], env=env)

    monkeypatch.setattr(subprocess, "Popen", started)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    began = time.monotonic()
    assert launch(2, ["train"]) == 7
    assert time.monotonic() - began < 20
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# Found before a test changes where it is.
PYTHON = os.path.realpath(sys.executable)


def test_at_least_one() -> None:
    with pytest.raises(ConfigError, match="--processes must be at least 1, got 0"):
        launch(0, [])


@pytest.mark.parametrize(("environment", "finalized"), [({}, "done\nfinalized\n"), ({"RANK": "0"}, "done\n")])
def test_one_of_several_processes_ends_without_finalization(
    environment: dict[str, str], finalized: str
) -> None:
    program = (
        "import atexit; from amuse_lab.launch import exit_rank; "
        "atexit.register(print, 'finalized'); print('done'); exit_rank(7)"
    )
    alone = {name: value for name, value in os.environ.items() if name != "RANK"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=alone | environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (7, finalized)
