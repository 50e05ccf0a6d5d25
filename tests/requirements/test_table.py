"""Every row has a test, and the documentation shows it."""

from pathlib import Path

from tests.requirements.table import ROWS, markdown, rows_to_tests

ROOT = Path(__file__).parents[2]


def test_every_row_has_a_test() -> None:
    found = rows_to_tests(ROOT / "tests")
    assert [row for row in ROWS if not found[row]] == []


def test_the_documentation_is_up_to_date() -> None:
    """If it is not: python -m tests.requirements."""
    assert (ROOT / "docs" / "requirements.md").read_text() == markdown(ROOT / "tests")
