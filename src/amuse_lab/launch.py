"""Starts several training processes on this machine with one command.

torchrun does this for several machines, too, but adds forty lines to the one-line error of a process.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Never

from amuse_lab.errors import require

_GRACE_SECONDS = 30.0


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `amuse-lab` with these arguments in several processes that train together.

    Ctrl-C reaches all of them from the terminal; SIGTERM is passed on. Should one of them fail, the others
    have half a minute to end.

    Args:
        processes: Number of processes, each with one GPU if there are any.
        arguments: The command line of each.

    Returns:
        The exit status of the first one that failed; 0 if none did.

    Raises:
        ConfigError: For fewer than one process.
    """
    require(processes >= 1, "--processes", "at least 1", processes)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes))),
    }
    command = [sys.executable, "-m", "amuse_lab", *arguments]
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for child in children:
            child.send_signal(number)

    usual = {signal.SIGTERM: pass_on, signal.SIGINT: lambda *_: None}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    try:
        for rank in range(processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            children.append(subprocess.Popen(command, env=os.environ | shared | own))
        return _first_failure(children)
    finally:
        for child in children:
            child.kill()
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_rank(status: int) -> Never:
    """End this process; where it is one of several, without the interpreter's finalization.

    A thread of gloo may still hold the tensors of the last exchange while it does: their release would need
    the interpreter, and torch would abort a process whose work is done ("terminate called without an active
    exception").

    Args:
        status: Exit status that the process ends with; 0 is success.
    """
    if "RANK" not in os.environ:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _first_failure(children: Sequence["subprocess.Popen[bytes]"]) -> int:
    """Wait for all, at most 30 seconds after one fails; return the exit status of the first that failed."""
    status, deadline = 0, float("inf")
    while [child for child in children if child.poll() is None] and time.monotonic() < deadline:
        failed = [child.returncode for child in children if child.returncode]
        if failed and not status:
            status, deadline = failed[0], time.monotonic() + _GRACE_SECONDS
        time.sleep(0.05)
    status = status or next((child.returncode for child in children if child.returncode), 0)
    return status if status >= 0 else 128 - status


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
