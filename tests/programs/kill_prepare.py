"""Prepares a text again and again in processes that are killed at many moments; run by test_preparation.py.

Called with the text, a folder, and how many lines lie between two kills. Prints one JSON object: how many
processes were killed, and the folders that came out in the end, as sets of the digests of all their files. It
is a program of its own because it forks.
"""

import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

WRITING = {"write_shard", "replacing", "sync", "write", "save", "_locked"}
"""Functions in whose lines a process is killed."""


def digest(folder: Path) -> str:
    files = sorted(folder.iterdir())
    return json.dumps({path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files})


class DeadlyTokenizer:
    """Ends the process that uses it. It is here because that process imports little then."""

    name, vocabulary, end_of_text, sha256 = "deadly", 256, 0, "00" * 32

    def encode(self, _: list[str]) -> Any:
        os._exit(9)


def prepare(
    source: Path,
    folder: Path,
    *,
    tokenizer: str = "bytes",
    workers: int = 1,
    report: Callable[[int, int], None] = lambda *_: None,
) -> None:
    from amuse_lab.tasks.lm import preparation
    from amuse_lab.tasks.lm.local import LocalText
    from amuse_lab.tasks.lm.tokenizer import TokenizerChoice

    preparation._CHUNK_CHARACTERS = 1000
    preparation._SAVE_TOKENS = 4000
    plan = preparation.Plan(
        lambda _: LocalText.find(source, 0.2),
        TokenizerChoice(tokenizer),
        workers=workers,
        shard_tokens=15_000,
    )
    preparation.prepare(plan, folder, report=report)


def forked(work: Callable[[], None]) -> int:
    """Begin work in a process and a process group of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return pid


def was_killed(pid: int) -> bool:
    """Wait for the end of a process; fail unless it finished its work or was killed."""
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert os.waitstatus_to_exitcode(status) == 0, status
    return False


def at_line(number: int, work: Callable[[], None]) -> None:
    """Kill this process before it executes the so-many-th line of the functions that write."""
    left = number

    def in_function(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return in_function

    def trace(frame: FrameType, _event: str, _argument: Any) -> Any:
        code = frame.f_code
        if code.co_name in WRITING and "amuse_lab" in code.co_filename:
            return in_function
        return None

    sys.settrace(trace)
    work()


def at_many_lines(source: Path, place: Path, stride: int) -> dict[str, Any]:
    killed, results = 0, set()
    for number in range(0, 10_000, stride):
        folder = place / f"line-{number}"
        interrupted = was_killed(forked(partial(at_line, number, partial(prepare, source, folder))))
        if interrupted:
            killed += 1
            prepare(source, folder)
        results.add(digest(folder))
        if not interrupted:
            return {"killed": killed, "results": sorted(results)}
    raise AssertionError("it never came to an end")


def at_random_times(source: Path, place: Path, workers: int, kills: int) -> dict[str, Any]:
    """Kill what tokenizes in several processes a moment after some chunk of documents."""
    folder = place / f"workers-{workers}"
    chance = random.Random(workers)
    for _ in range(kills):
        last, delay = chance.randrange(10, 150), chance.uniform(0, 0.01)

        def kill_later(documents: int, _: int, last: int = last, delay: float = delay) -> None:
            if documents >= last:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

        options = {"tokenizer": "bpe-300", "workers": workers, "report": kill_later}
        pid = forked(partial(prepare, source, folder, **options))
        assert was_killed(pid)
        wait_for_end_of_group(pid)
    assert not was_killed(forked(partial(prepare, source, folder, tokenizer="bpe-300", workers=workers)))
    return {"killed": kills, "results": [digest(folder)]}


def wait_for_end_of_group(group: int) -> None:
    """Fail unless the processes that a killed one had started end too."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("tokenizing processes outlive the one that started them")


def main(source: Path, place: Path, stride: int) -> None:
    # A kill leaves the system's cache as it is, so waiting for the disk makes no difference but in time.
    os.fsync = lambda _: None
    # What is imported before forking is not imported by every process again.
    import tokenizers  # noqa: F401

    from amuse_lab.tasks.lm import preparation  # noqa: F401

    outcome = {
        "lines": at_many_lines(source, place, stride=stride),
        "two": at_random_times(source, place, workers=2, kills=2),
        "three": at_random_times(source, place, workers=3, kills=1),
    }
    print(json.dumps(outcome))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
