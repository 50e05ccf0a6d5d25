"""A plugin of pytest that writes a line for each test as it ends, so that a cut leaves the first ones.

python -m pytest -p benchmarks.gpu.reporting, with AMUSE_TEST_REPORT naming the file.
"""

import json
import os
from pathlib import Path

import pytest

FILE = "AMUSE_TEST_REPORT"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write what became of a test: its call, or the stage before or after if that was not passed."""
    if report.when == "call" or not report.passed:
        _write(report.nodeid, report.outcome, _reason(report), report.duration)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Write which file could not be read."""
    if report.failed:
        _write(report.nodeid, "failed", _reason(report), 0.0)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return report.longrepr[2]
    lines = [line for line in str(report.longrepr or "").splitlines() if line.startswith("E ")]
    return lines[0].removeprefix("E ").strip()[:300] if lines else ""


def _write(test: str, outcome: str, reason: str, seconds: float) -> None:
    line = {"test": test, "outcome": outcome, "reason": reason, "seconds": round(seconds, 3)}
    with Path(os.environ[FILE]).open("a") as file:
        file.write(json.dumps(line) + "\n")
