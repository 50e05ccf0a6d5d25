"""Write docs/requirements.md."""

from pathlib import Path

from tests.requirements.table import markdown

ROOT = Path(__file__).parents[2]
(ROOT / "docs" / "requirements.md").write_text(markdown(ROOT / "tests"))
