"""Run the library's tests with another torch and another Python, and record what came of it.

    python benchmarks/versions.py --torch 2.9.1 --python python3.12 --out records/versions

Makes a virtual environment outside the tree with that torch alone (several GB where the index offers a CUDA
build), installs the wheel built from this tree, checks that doing so left torch as it was, adds test tools in
the versions that the extra `dev` pins, and runs the library's tests against the installed wheel. An
environment that is there already is used again. NumPy is the oldest that the extra `lab` admits: the
interpreter of the Triton that torch 2.9 brings does what older NumPys deprecate and NumPy 2.4 refuses.

With `--laboratory` the wheel is installed with what the laboratory's extras ask for, in the lowest versions
that their ranges admit, and the laboratory's tests run instead.

Exits with 1 if a test fails or torch was touched.
"""

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIBRARY = ("tests/amuse_optim", "tests/oracle", "tests/requirements")
LABORATORY = ("tests/amuse_lab",)
# What the tests of the library import beside torch.
TOOLS = ("accelerate", "hypothesis", "lightning", "peft", "pytest", "schedulefree", "transformers")
# Warnings, which are errors in the tests, that are no fault of what is tested: of Triton's interpreter, of
# torch on Python 3.13.0, and of old packages about newer ones.
TOLERATED = (
    "-W 'ignore:Conversion of an array with ndim:DeprecationWarning' "
    "-W 'ignore:Guards may run slower on Python 3.13.0:RuntimeWarning'"
)
# Bytes of a process of the laboratory's tests: some Pythons give a damaged pickle all the memory it asks for.
ADDRESS_SPACE = 12 * 2**30
# The second one is what torch 2.9 says of itself.
TOLERATED_OF_OLD_PACKAGES = "-W ignore::DeprecationWarning -W 'ignore:TypedStorage is deprecated:UserWarning'"
LABORATORY_EXTRAS = ("data", "image", "lab", "sinks")  # the peers of `bench` want a newer NumPy


@dataclass(frozen=True)
class Place:
    """A virtual environment.

    Attributes:
        folder: Where it is.
    """

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def pip(self, *arguments: str) -> None:
        """Run its pip, which prints warnings only."""
        command = [self.python, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
        subprocess.run(command, check=True)

    def tell(self, program: str) -> str:
        """Return what a program prints in it."""
        command = [self.python, "-c", program]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def torch(self) -> dict[str, str]:
        """Return the version of its torch, and what changes whenever pip writes that anew."""
        program = (
            "import importlib.metadata as m, json, os; d = m.distribution('torch');"
            "r = next(f for f in d.files if f.name == 'RECORD').locate();"
            "print(json.dumps({'version': d.version, 'written': str(os.stat(r).st_mtime_ns)}))"
        )
        found: dict[str, str] = json.loads(self.tell(program))
        return found


def pins() -> dict[str, str]:
    """Return the exact versions of the extra `dev`, by package."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = (re.match(r"([\w-]+)==([\w.]+)", requirement) for requirement in extras["dev"])
    return {match[1]: match[2] for match in found if match}


def lowest() -> list[str]:
    """Return the lowest versions that the extras of the laboratory admit, as requirements."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    ranges = [each for extra in LABORATORY_EXTRAS for each in extras[extra] if ">=" in each]
    return [re.sub(r">=([\w.]+).*", r"==\1", each) for each in ranges]


def made(place: Place, *, torch: str, python: str) -> None:
    """Make the environment with torch alone, unless it is there."""
    if not place.python.exists():
        subprocess.run([python, "-m", "venv", place.folder], check=True)
    place.pip("install", f"torch=={torch}")


def installed(place: Place, extras: Sequence[str]) -> dict[str, Any]:
    """Install the wheel of this tree as a user does; tells whether torch was left as it was.

    Args:
        place: Where to.
        extras: What is installed with it, as exact requirements.
    """
    before = place.torch()
    with tempfile.TemporaryDirectory() as folder:
        place.pip("wheel", "--no-deps", "--wheel-dir", folder, str(ROOT))
        (wheel,) = Path(folder).glob("*.whl")
        place.pip("install", "--force-reinstall", "--no-deps", str(wheel))  # this tree's, whatever was there
        place.pip("install", str(wheel), *extras)
    after = place.torch()
    return {"wheel": wheel.name, "torch_before": before, "torch_after": after, "untouched": before == after}


def tools(place: Place, *, laboratory: bool) -> list[str]:
    """Return what the tests need beside the wheel, as requirements."""
    known = pins()
    if laboratory:  # transformers reads what is exported, in a version that goes with old tokenizers
        return [
            *lowest(),
            *(f"{tool}=={known[tool]}" for tool in ("hypothesis", "pytest")),
            "transformers>=5.1",
        ]
    oldest = next(each for each in lowest() if each.startswith("numpy=="))
    found = [*TOOLS]
    if not place.tell("import importlib.util as u; print(u.find_spec('triton') or '')"):
        found.append("triton")  # builds of torch for a CPU come without
    return [oldest, *(f"{tool}=={known[tool]}" for tool in found)]


def timm() -> list[str]:
    """Return timm and its torchvision as the Makefile pins them; tests/timm_package.py says why apart."""
    found = re.search(r"^TIMM *:= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found is not None
    return found[1].split()


def _bounded() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))


def tested(place: Place, folders: Sequence[str]) -> dict[str, Any]:
    """Run tests in the environment.

    Returns:
        Counts, the names of those that failed, and the reasons of those that were skipped.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [place.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}"]
        if folders == LABORATORY:
            command += ["-k", "not heavyball"]  # which wants a newer NumPy than the lowest
        # By a variable, because some tests start a pytest of their own.
        options = TOLERATED_OF_OLD_PACKAGES if folders == LABORATORY else TOLERATED
        variables = {"OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": options}
        subprocess.run(
            [*command, *folders],
            cwd=ROOT,
            env=os.environ | variables,
            preexec_fn=_bounded if folders == LABORATORY else None,
            check=False,
        )
        cases = list(ElementTree.parse(report).iter("testcase"))
    outcomes: dict[str, list[tuple[str, str]]] = {"failure": [], "error": [], "skipped": []}
    for case in cases:
        for outcome in case:
            if outcome.tag in outcomes:
                name = f"{case.get('classname')}.{case.get('name')}"
                outcomes[outcome.tag].append((name, outcome.get("message", "").split("\n")[0]))
    failed = dict(outcomes["failure"] + outcomes["error"])
    skipped = dict(outcomes["skipped"])
    passed = len(cases) - len(failed) - len(skipped)
    return {"folders": list(folders), "passed": passed, "failed": failed, "skipped": skipped}


def record(place: Place, check: dict[str, Any], tests: dict[str, Any]) -> dict[str, Any]:
    """Return everything that the record holds."""
    listing = "{d.name: d.version for d in m.distributions()}"
    versions = json.loads(place.tell(f"import importlib.metadata as m, json; print(json.dumps({listing}))"))
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip(),
        "python": place.tell("import platform; print(platform.python_version())"),
        "torch": place.tell("import torch; print(torch.__version__)"),
        "system": platform.platform(),
        "installing": check,
        "tests": tests,
        "versions": {name: versions[name] for name in sorted(versions) if not name.startswith("nvidia-")},
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch", default="2.9.1", metavar="VERSION")
    parser.add_argument("--python", default=sys.executable, metavar="PROGRAM", help="makes the environment")
    parser.add_argument(
        "--folder", type=Path, help="of the environment; below the temporary files by default"
    )
    parser.add_argument("--laboratory", action="store_true", help="with its tests, in the lowest versions")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the record goes")
    asked = parser.parse_args()

    version = subprocess.run(
        [asked.python, "-c", "import platform; print(platform.python_version())"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    name = f"torch-{asked.torch}-python-{version}" + ("-laboratory" if asked.laboratory else "")
    place = Place(asked.folder or Path(tempfile.gettempdir()) / "amuse-optim-versions" / name)
    made(place, torch=asked.torch, python=asked.python)
    check = installed(place, lowest() if asked.laboratory else [])
    place.pip("install", *tools(place, laboratory=asked.laboratory))
    if not asked.laboratory:
        place.pip("install", "--no-deps", "--upgrade", "--target", str(place.folder / "timm"), *timm())
    tests = tested(place, LABORATORY if asked.laboratory else LIBRARY)
    check["untouched_by_the_tests_tools"] = place.torch() == check["torch_before"]
    content = record(place, check, tests)
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / f"{content['date']}-{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(
        f"torch {content['torch']}, Python {content['python']}: {tests['passed']} passed, "
        f"{len(tests['failed'])} failed, {len(tests['skipped'])} skipped; installing the wheel "
        f"{'left' if check['untouched'] else 'DID NOT LEAVE'} torch as it was"
    )
    return 0 if check["untouched"] and not tests["failed"] and tests["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
