"""Kill a run again and again, at random moments and inside checkpoint writes; it must end as if nobody had.

    python benchmarks/fault_test.py --kills 50

One process imports everything and forks another for each attempt, `amuse-lab train ... --resume`, which is
killed with SIGKILL after a random time or, every second attempt, as soon as a checkpoint is being written.
When a run gets to its end, its weights, optimizer state and metrics are compared with those of a run that
nobody disturbed, to the bit but for times; then the next one begins, until all kills are spent. Prints one
JSON object; the exit status is 1 if anything differed.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # torch.optim wants it in the end
from safetensors.torch import load_file

from amuse_lab import cli, train  # noqa: F401 - imported here, so that the forked ones need not
from amuse_lab.checkpoint import finished
from amuse_lab.records import RunFolder
from amuse_lab.tasks.lm.bundled import BUNDLED, Bundled
from amuse_lab.tasks.lm.sources import ByPosition

SETTINGS = [
    *("--task.data", "tiny", "--task.batch", "2", "--task.eval-windows", "2", "--task.sample-length", "2"),
    *("--task.model.n-embd", "8", "--task.model.n-head", "1", "--task.model.n-layer", "1"),
    *("--task.model.context", "16", "--threads", "1"),
    *("--log-every", "3", "--eval-every", "8", "--checkpoint-every", "4", "--keep-every", "20"),
]


def attempt(runs: Path, steps: int) -> int:
    """Start the command in a process of its own; returns its id."""
    process = os.fork()
    if process:
        return process
    try:  # in the new process, which never gets out of here
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        command = ["train", "shakespeare", "--resume", "--runs", str(runs), "--steps", str(steps), *SETTINGS]
        os._exit(cli.main(command))
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(99)


def ended(process: int) -> bool:
    """Whether a process came to its own end; only one that did what was asked for may."""
    done, status = os.waitpid(process, os.WNOHANG)
    if done and os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"the command ended with status {os.waitstatus_to_exitcode(status)}")
    return done != 0


def finish(runs: Path, steps: int) -> None:
    """Let an attempt come to its end."""
    process = attempt(runs, steps)
    while not ended(process):
        time.sleep(0.0005)


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def writing(runs: Path, since: float) -> bool:
    """Whether a checkpoint has been begun since then and is not complete."""
    for partial in runs.glob("*/*/checkpoints/.step-*.partial"):
        try:
            if partial.stat().st_mtime > since:
                return True
        except FileNotFoundError:  # it has just become complete
            pass
    return False


def disturb(runs: Path, steps: int, longest: float, chance: random.Random, *, aimed: bool) -> str | None:
    """Start an attempt and kill it.

    Args:
        runs: Where its run folders are.
        steps: Of the run.
        longest: Seconds after which it dies at the latest.
        chance: Chooses the moment.
        aimed: Whether it is to die in a checkpoint, however long it takes to get to one.

    Returns:
        Where it died, "checkpoint" or "elsewhere"; None if it came to its end before.
    """
    since = time.time()
    process = attempt(runs, steps)
    deadline = time.time() + chance.uniform(0, longest)
    while not ended(process):
        if aimed and writing(runs, since):
            time.sleep(chance.uniform(0, 0.005))
            os.kill(process, signal.SIGSTOP)  # so that what is seen now is where it dies
            if writing(runs, since):
                kill(process)
                return "checkpoint"
            os.kill(process, signal.SIGCONT)  # too late for this checkpoint: wait for the next
        if not aimed and time.time() >= deadline:
            where = "checkpoint" if writing(runs, since) else "elsewhere"
            kill(process)
            return where
        time.sleep(0.0005)
    return None


def remains(runs: Path) -> dict[str, Any]:
    """What a run that has finished leaves, without times."""
    (folder,) = {path.parent for path in runs.glob("*/*/summary.json")}
    metrics = [
        {name: value for name, value in line.items() if "second" not in name}
        for line in RunFolder(folder).metrics()
    ]
    checkpoints = finished(folder / "checkpoints")
    return {
        "metrics": metrics,
        "checkpoints": [path.name for path in checkpoints],
        "state": load_file(checkpoints[-1] / "whole.safetensors"),
        "model": load_file(folder / "model.safetensors"),
        "sample": (folder / "sample.txt").read_bytes(),
    }


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The names of what is not equal to the bit."""
    different = [name for name in ("metrics", "checkpoints", "sample") if expected[name] != found[name]]
    for name in ("state", "model"):
        ours, theirs = expected[name], found[name]
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[key], theirs[key]) for key in ours):
            different.append(name)
    return different


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=60, help="of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    text = b"To be, or not to be. " * 200
    BUNDLED["tiny"] = Bundled("a line, repeated", lambda: ByPosition([text], {"kind": "tiny"}))
    chance = random.Random(arguments.seed)
    died: list[str] = []
    different: list[str] = []
    compared = 0
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = Path(folder) / "undisturbed"
        began = time.perf_counter()
        finish(undisturbed, arguments.steps)
        seconds = time.perf_counter() - began
        expected = remains(undisturbed)
        while len(died) < arguments.kills:
            runs = Path(folder) / f"disturbed-{compared}"
            where: str | None = "not yet"
            while where and len(died) < arguments.kills:
                where = disturb(runs, arguments.steps, seconds / 3, chance, aimed=len(died) % 2 == 1)
                died += [where] if where else []
            if where:
                finish(runs, arguments.steps)
            different += differences(expected, remains(runs))
            compared += 1
    report = {
        "kills": len(died),
        "inside checkpoint writes": died.count("checkpoint"),
        "runs compared": compared,
        "seconds of an undisturbed run": round(seconds, 2),
        "different": sorted(set(different)),
    }
    print(json.dumps(report))
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
