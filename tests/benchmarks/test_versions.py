"""Ranges for users, exact versions for the gate, and the records of what other versions said."""

import json
import tomllib

import pytest
from packaging.requirements import Requirement

from benchmarks.versions import LIBRARY, ROOT, TOOLS, lowest, pins

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
RANGES = [
    Requirement(each)
    for extra, requirements in EXTRAS.items()
    for each in requirements
    if extra != "dev" and not each.startswith("amuse-optim")
]


@pytest.mark.parametrize("wanted", RANGES, ids=lambda wanted: wanted.name)
def test_what_users_install_is_a_range_that_the_gate_pins_within(wanted: Requirement) -> None:
    operators = {each.operator for each in wanted.specifier}
    assert ">=" in operators
    assert operators <= {">=", "<"}
    assert wanted.specifier.contains(pins()[wanted.name])


def test_the_gate_has_exact_versions_of_everything() -> None:
    others = [each for each in EXTRAS["dev"] if not each.startswith("amuse-optim[")]
    assert all("==" in each for each in others)
    assert set(pins()) == {Requirement(each).name for each in others}
    assert set(TOOLS) <= set(pins())


def test_lowest_versions_are_the_lower_ends() -> None:
    assert "numpy==2.3.0" in lowest()
    assert "schedulefree==1.4.1" in lowest()
    admitted = {wanted.name: wanted.specifier for wanted in RANGES}
    for each in lowest():
        name, _, version = each.partition("==")
        assert admitted[name].contains(version)


def test_recorded_versions_passed() -> None:
    records = [json.loads(path.read_text()) for path in (ROOT / "records" / "versions").glob("*.json")]
    library = [record for record in records if record["tests"]["folders"] == list(LIBRARY)]
    assert {"2.9.1", "2.13.0"} <= {record["torch"].partition("+")[0] for record in library}
    for record in records:
        assert record["tests"]["passed"] > 500
        assert record["tests"]["failed"] == {}
        assert record["installing"]["torch_before"] == record["installing"]["torch_after"]
