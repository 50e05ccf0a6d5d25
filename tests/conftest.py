"""Settings for every test, and the table of requirements at the end of `pytest -m requirement`."""

from collections import defaultdict

import pytest
import torch
from hypothesis import settings

from tests.requirements.table import ROWS

# Small programs slow down badly when two processes share the cores.
torch.set_num_threads(1)

# The same examples on every run, and no time limit for one: machines differ.
settings.register_profile("gate", deadline=None, derandomize=True)
settings.register_profile("nightly", deadline=None, max_examples=2000)
settings.load_profile("gate")

_outcomes: dict[str, list[str]] = defaultdict(list)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # noqa: ARG001
    report = yield
    if report.when == "call" or report.outcome != "passed":
        for mark in item.iter_markers("requirement"):
            for row in mark.args:
                _outcomes[row].append(report.outcome)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("markexpr") != "requirement":
        return
    terminalreporter.section("requirements")
    for row, promise in ROWS.items():
        outcomes = _outcomes[row]
        passed, failed, skipped = (outcomes.count(kind) for kind in ("passed", "failed", "skipped"))
        verdict = "FAILED" if failed else "ok" if passed else "MISSING"
        note = f" ({skipped} skipped)" if skipped else ""
        terminalreporter.write_line(f"{row:4} {verdict:8} {passed:3} passed{note}  {promise}")
