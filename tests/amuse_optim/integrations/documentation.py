"""The code that docs/trainers.md shows."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "trainers.md"


def code_under(heading: str) -> str:
    """The one block of Python under a heading."""
    section = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    (under,) = (part for part in section if part.startswith(f"{heading}\n"))
    (block,) = re.findall(r"^```python\n(.*?)^```", under, flags=re.MULTILINE | re.DOTALL)
    return str(block)
