"""Runs the parts one after the other: each in a process of its own, each with its time limit.

Whatever a part does - end with an error, crash, hang, leave half a record - the next one runs, and the
summary says what happened.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import ROOT, SUMMARY, Part, limit

GRACE = 10.0  # seconds between asking a part to stop and stopping it


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all; numbers that are not finite become null."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def read(path: Path) -> dict[str, Any]:
    """Read a JSON file; empty if it is not there or not whole."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def environment(packages: Path | None) -> dict[str, str]:
    """Return the environment of the parts: this tree's packages first, unpacked wheels behind them."""
    paths = [str(ROOT / "src"), *([str(packages)] if packages else []), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def run(
    parts: Sequence[Part],
    folder: Path,
    *,
    seconds: float,
    arguments: Sequence[str] = (),
    packages: Path | None = None,
    described: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run parts and write `summary.json` after each.

    Args:
        parts: What to run, in this order.
        folder: Where the records go; what an earlier call left of other parts is kept.
        seconds: For all of them together.
        arguments: What every part is given.
        packages: A folder with packages that the machine lacks.
        described: What the summary tells beside the parts.

    Returns:
        The summary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    summary = read(folder / SUMMARY)
    summary |= dict(described or {})
    done = summary.setdefault("parts", {})
    started = time.monotonic()
    for i, part in enumerate(parts):
        allowed = limit(parts, i, whole=seconds, left=seconds - (time.monotonic() - started))
        print(f"\n== {part.name}: {part.title} (at most {allowed:.0f} s)", flush=True)
        (folder / f"{part.name}.json").unlink(missing_ok=True)
        done[part.name] = {"status": "running"}
        write(folder / SUMMARY, summary)
        try:
            done[part.name] = _one(part, folder, allowed, arguments, environment(packages))
        except KeyboardInterrupt:
            done[part.name] = {"status": "cut", "reason": "interrupted"}
            raise
        finally:
            write(folder / SUMMARY, summary)
        outcome = done[part.name]
        print(f"-- {part.name}: {outcome['status']} after {outcome['seconds']:.0f} s", flush=True)
        if outcome["reason"]:
            print(f"   {outcome['reason']}", flush=True)
    return summary


def _one(
    part: Part, folder: Path, allowed: float, arguments: Sequence[str], variables: Mapping[str, str]
) -> dict[str, Any]:
    """Run a part; returns its status, its time and, unless it finished, the reason."""
    if allowed < 1:
        return {"status": "not run", "seconds": 0.0, "reason": "no time was left"}
    record = folder / f"{part.name}.json"
    command = [sys.executable, "-u", "-m", part.module, "--out", str(record.resolve())]
    started = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [*command, "--seconds", f"{allowed:.0f}", *arguments],
            cwd=ROOT,
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(allowed)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _stop(process)
        elapsed = time.monotonic() - started
        said = _last_line(errors)
    if code is None:
        status, reason = "cut", f"it did not end within {allowed:.0f} s"
    elif code < 0:
        status, reason = "failed", f"{signal.Signals(-code).name}: {said}"
    elif code > 0:
        status, reason = "failed", said or f"exit status {code}"
    else:
        status, reason = "finished", ""
    results = read(record).get("results", [])
    failures = [result for result in results if "failure" in result]
    return {
        "status": status,
        "seconds": round(elapsed, 1),
        "reason": reason,
        "results": len(results) - len(failures),
        "failures": [f"{result['what']}: {result['failure']}" for result in failures],
    }


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _last_line(errors: Any) -> str:
    """The last line that a process wrote to its errors: of a traceback, what was raised."""
    errors.seek(0)
    lines = [line.strip() for line in errors.read()[-20_000:].decode(errors="replace").splitlines()]
    return next((line[:500] for line in reversed(lines) if line), "")
