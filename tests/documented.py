"""Python code in documents."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def code_in(document: str, section: str) -> str:
    """The Python blocks below a heading of the second level, one after the other."""
    text = (ROOT / document).read_text()
    found = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, f"{document} has no section {section!r}"
    blocks = re.findall(r"^```python\n(.*?)^```", found[1], re.DOTALL | re.MULTILINE)
    assert blocks, f"{section!r} in {document} has no Python code"
    return "\n".join(blocks)
