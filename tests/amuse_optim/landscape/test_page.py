"""The example of the documentation prints what the page says."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "landscape.md"


def test_the_example_prints_what_the_page_says() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    shown = PAGE.read_text(encoding="utf-8").split(example)[1].split("```text\n")[1].split("```")[0]
    ran = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True)
    assert ran.stdout == shown
