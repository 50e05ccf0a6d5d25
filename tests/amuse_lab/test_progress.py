import io
from dataclasses import replace

import pytest
from rich.console import Console

from amuse_lab.progress import LiveProgress, PlainProgress, Silence, Status, print_summary, progress_on
from amuse_lab.recipes.reference import Reference, Result

STATUS = Status(
    step=50,
    steps=200,
    rate=70_123.4,
    unit="tokens",
    seconds_left=62.4,
    at_x={"loss": 1.7123, "bits_per_byte": 2.4703},
    at_y={"loss": 1.75, "bits_per_byte": 2.52},
    telemetry={"lr": 0.01, "beta": 0.6, "c": 0.02},
    evaluated=True,
)
SUMMARY = {
    "optimizer": "amuse",
    "steps": 2000,
    "bits_per_byte": 2.41,
    "bits_per_byte_y": 2.42,
    "tokens": 4_096_000,
    "seconds": 60.0,
    "tokens_per_second": 68_266.7,
    "evaluation_seconds": 9.0,
}


def test_plain_lines_at_evaluations_only(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainProgress() as progress:
        progress.show(replace(STATUS, evaluated=False))
        progress.show(STATUS)
    assert capsys.readouterr().out == (
        "step 50/200  loss at x 1.7123  2.4703 bits per byte  70,123 tokens/s  "
        "lr 0.01  beta 0.6  0:01:02 left\n"
    )


def test_live_display_on_a_terminal_only() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    assert isinstance(progress_on(terminal), LiveProgress)
    assert isinstance(progress_on(Console(file=io.StringIO())), PlainProgress)


def test_live_display_shows_all_readings() -> None:
    screen = io.StringIO()
    with LiveProgress(Console(file=screen, force_terminal=True, width=100)) as progress:
        progress.show(replace(STATUS, at_x={}, at_y={}, evaluated=False))
        progress.show(STATUS)
    for part in ("step 50/200", *STATUS.readings(), "0:01:02 left"):
        assert part in screen.getvalue()


def test_notes_are_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    with LiveProgress(Console(file=screen, force_terminal=True, width=30)) as progress:
        progress.show(STATUS)
        progress.note("going on with [a]/folder, which has a long name")
    assert "amuse-lab: going on with [a]/folder, which has a long name\n" in screen.getvalue()
    with PlainProgress() as plain:
        plain.note("a word")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "amuse-lab: a word\n")
    with Silence() as silence:
        silence.show(STATUS)
        silence.note("a word")
    assert capsys.readouterr() == ("", "")


def test_summary_stands_beside_the_recorded_results() -> None:
    screen = io.StringIO()
    result = Result(optimizer="muon", lr=0.02, mean=2.45, spread=0.01, seeds=(0, 1, 2))
    print_summary(
        Console(file=screen, width=100),
        SUMMARY,
        measure="bits_per_byte",
        unit="tokens",
        lr=0.03,
        reference=Reference(steps=2000, machine="two cores", results=(result,)),
    )
    text = screen.getvalue()
    for part in (
        "bits per byte",
        "amuse, this run",
        "2.4100",
        "2.4200",
        "2.4500 ± 0.0100",
        "3 seeds",
        "68,267",
    ):
        assert part in text


def test_summary_without_recorded_results() -> None:
    screen = io.StringIO()
    print_summary(
        Console(file=screen), SUMMARY, measure="bits_per_byte", unit="tokens", lr=0.03, reference=None
    )
    assert "2.4100" in screen.getvalue()
