"""Gather the wheels that a machine without network lacks, and say how large they are together.

    python -m benchmarks.gpu.wheels --out wheels --installed list.txt

Wheels are for Python 3.12 on x86-64 Linux, without torch and without what the packages depend on beyond this
list. `--installed` is a file with the names of what the machine has (the output of `pip list --format=freeze`
there will do); these are left out. On the machine: `python -m benchmarks.gpu --wheels wheels`.
"""

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.plan import ROOT

# What the parts import beside torch and its dependencies: the laboratory, the peers, the tests.
PACKAGES = (
    *("tyro", "docstring-parser", "typeguard", "rich", "markdown-it-py", "mdurl", "pygments"),
    *("numpy", "scipy", "safetensors", "matplotlib", "contourpy", "cycler", "fonttools", "kiwisolver"),
    *("pyparsing", "python-dateutil", "six", "pillow", "packaging"),
    *("schedulefree", "pytorch-optimizer", "heavyball", "opt-einsum"),
    *("pytest", "pluggy", "iniconfig", "hypothesis", "sortedcontainers"),
)
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
AIM = 60e6  # bytes, of all of them


def normal(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def listed(text: str) -> set[str]:
    """Return the packages that a list names, with versions or without."""
    return {normal(re.split(r"[=<>@!~]", word)[0]) for word in re.split(r"[\s,]+", text) if word}


def requirements(installed: set[str]) -> list[str]:
    """Return what has to be gathered, in the versions that the extra `dev` pins where it does."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        normal(each.partition("==")[0]): each.partition(";")[0]
        for each in project["optional-dependencies"]["dev"]
        if "==" in each
    }
    return [pinned.get(name, name) for name in PACKAGES if name not in installed]


def gather(wanted: Sequence[str], folder: Path) -> int:
    """Download wheels and return how many bytes they have together."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    target = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    platforms = [option for name in PLATFORMS for option in ("--platform", f"{name}_x86_64")]
    subprocess.run([*command, *target, *platforms, "--dest", str(folder), *wanted], check=True)
    return sum(wheel.stat().st_size for wheel in folder.glob("*.whl"))


def unpack(folder: Path, target: Path) -> list[str]:
    """Unpack the wheels of packages that are not installed here; needs no pip.

    Args:
        folder: With wheels.
        target: Where their packages go.

    Returns:
        The names of the packages.
    """
    unpacked = []
    for wheel in sorted(folder.glob("*.whl")):
        name = normal(wheel.name.partition("-")[0])
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
            unpacked.append(name)
    return unpacked


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("wheels"), metavar="FOLDER")
    parser.add_argument("--installed", type=Path, metavar="FILE", help="names of what the machine has")
    asked = parser.parse_args()
    wanted = requirements(listed(asked.installed.read_text()) if asked.installed else set())
    asked.out.mkdir(parents=True, exist_ok=True)
    size = gather(wanted, asked.out) if wanted else 0
    for wheel in sorted(asked.out.glob("*.whl"), key=lambda wheel: -wheel.stat().st_size):
        print(f"{wheel.stat().st_size / 1e6:8.2f} MB  {wheel.name}")
    print(f"{size / 1e6:8.2f} MB in {asked.out}{'' if size <= AIM else f', more than {AIM / 1e6:.0f} MB'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
