"""Measure everything that wants a GPU, in about 25 minutes, with what is installed.

    python -m benchmarks.gpu --minutes 25
    python -m benchmarks.gpu --device cpu --tiny          # walks through all of it, to see that it works

Five parts run one after the other, each in a process of its own with a time limit of its own; their records
are written as results come, to records/gpu/<date>-<card>. The fifth is a study that takes several calls, and
keeps its runs in records/gpu/anytime. What is not installed is left out, and a part that fails is named.
Nothing is fetched: packages that the machine lacks are given with `--wheels`, a folder that
`python -m benchmarks.gpu.wheels` has filled elsewhere.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu import runner
from benchmarks.gpu.plan import PARTS, RECORDS, SUMMARY
from benchmarks.gpu.tables import tables
from benchmarks.gpu.wheels import unpack

PROBE = """\
import json, platform, torch
device = torch.device({device!r})
torch.ones(1, device=device).add(1).item()
on_gpu = device.type == "cuda"
print(json.dumps({{
    "card": torch.cuda.get_device_name(device) if on_gpu else "cpu",
    "memory_bytes": torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
    "torch": torch.__version__,
    "cuda": torch.version.cuda,
    "python": platform.python_version(),
}}))
"""


def probed(device: str, packages: Path | None) -> dict[str, Any]:
    """Describe the device, from a process of its own, which leaves no memory of it taken.

    Raises:
        RuntimeError: If torch cannot be imported or cannot use the device.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(device=device)],
        env=runner.environment(packages),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"torch cannot use {device} here: {lines[-1]}")
    described: dict[str, Any] = json.loads(done.stdout)
    return described


def folder_of(described: dict[str, Any], date: str) -> Path:
    """Return where the record of a card goes."""
    card = "".join(letter if letter.isalnum() else "-" for letter in described["card"].lower())
    return RECORDS / f"{date}-{card.strip('-')}"


def main(arguments: Sequence[str] | None = None) -> int:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=25.0, help="for all parts together")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument(
        "--tiny", action="store_true", help="everything as small as it can be; no record kept"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=names, default=names, help="these alone, in their order"
    )
    parser.add_argument("--out", type=Path, help="instead of records/gpu/<date>-<card>")
    parser.add_argument("--wheels", type=Path, help="a folder with the wheels of what is not installed")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        packages = None
        if asked.wheels is not None:
            packages = Path(temporary) / "packages"
            print(f"unpacked: {', '.join(unpack(asked.wheels, packages)) or 'nothing that is not installed'}")
        try:
            described = probed(asked.device, packages)
        except RuntimeError as error:
            print(f"gpu: {error}", file=sys.stderr)
            return 2
        date = f"{datetime.now(UTC):%Y-%m-%d}"
        folder = asked.out or (Path(temporary) / "record" if asked.tiny else folder_of(described, date))
        try:
            runner.run(
                [part for part in PARTS if part.name in asked.parts],
                folder,
                seconds=60 * asked.minutes,
                arguments=["--device", asked.device, *(["--tiny"] if asked.tiny else [])],
                packages=packages,
                described={"date": date, "device": asked.device, "tiny": asked.tiny} | described,
            )
        except KeyboardInterrupt:
            print("gpu: interrupted; what was measured is kept", file=sys.stderr)
        print(f"\n{tables(folder)}\n")
        outcomes = runner.read(folder / SUMMARY)["parts"]
        lacking = [each for each in outcomes.values() if "ModuleNotFoundError" in each.get("reason", "")]
        if lacking:
            print(
                "gather what is missing elsewhere, python -m benchmarks.gpu.wheels, and give it with --wheels"
            )
        if folder.is_relative_to(temporary):
            print("too small to tell anything: no record kept")
        else:
            print(f"record: {os.path.relpath(folder)}/{SUMMARY} and the files beside it")
    finished = (outcomes.get(name, {}).get("status") == "finished" for name in asked.parts)
    return 0 if all(finished) else 1


if __name__ == "__main__":
    # As Ctrl-C, so that the part under way is ended too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
