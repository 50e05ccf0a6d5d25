"""Every row has a test, and the documentation shows it."""

from pathlib import Path

from tests.requirements.table import ROWS, markdown, tests_by_row

ROOT = Path(__file__).parents[2]


def test_every_row_has_a_test() -> None:
    found = tests_by_row(ROOT / "tests")
    assert [row for row in ROWS if not found[row]] == []


def test_the_documentation_is_up_to_date() -> None:
    """If it is not: python -m tests.requirements."""
    assert (ROOT / "docs" / "requirements.md").read_text() == markdown(ROOT / "tests")
