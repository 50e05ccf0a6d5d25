from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amuse_lab.figures import draw_curve

Line = dict[str, Any]

METRICS: list[Line] = [
    {"step": step, "split": split, "loss": 5.0 / step}
    for step in range(1, 6)
    for split in ("train", "val_x", "val_y")
]
# A training loss far above and below that of validation, which begins late.
IMAGES: list[Line] = [
    *({"step": step, "split": "train", "loss": 100.0 / step**2} for step in range(10, 1001, 10)),
    *(
        {"step": step, "split": split, "loss": height / step, "accuracy": 1 - height / step}
        for step in range(200, 1001, 200)
        for split, height in (("val_x", 1.0), ("val_y", 2.0))
    ),
]


def drawn(
    monkeypatch: pytest.MonkeyPatch, path: Path, metrics: list[Line], *, averages: bool = True
) -> list[Axes]:
    """The panels of a picture, after it was written."""
    figures: list[Figure] = []
    save = Figure.savefig

    def saving(figure: Figure, *given: Any, **options: Any) -> None:
        save(figure, *given, **options)
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", saving)
    draw_curve(metrics, path, title="a run", averages=averages)
    return figures[0].axes


def curves(axes: Axes) -> dict[str, dict[int, float]]:
    """Values by step, by the beginning of the label."""
    return {
        str(line.get_label()).partition(":")[0]: dict(zip(*line.get_data(), strict=True))
        for line in axes.get_lines()
    }


@pytest.mark.parametrize("averages", [True, False])
@pytest.mark.parametrize(
    "metrics",
    [METRICS, METRICS[:3], METRICS[:1], [], IMAGES],
    ids=["whole", "one step", "one line", "empty", "images"],
)
def test_draws_a_png(tmp_path: Path, metrics: list[Line], averages: bool) -> None:
    path = tmp_path / "curve"
    draw_curve(metrics, path, title="a run", averages=averages)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_shows_everything_that_was_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loss, accuracy = drawn(monkeypatch, tmp_path / "curve", IMAGES)
    for axes, name, count in ((loss, "loss", 3), (accuracy, "accuracy", 2)):
        found = curves(axes)
        assert len(found) == count
        recorded = sorted((line["step"], line[name]) for line in IMAGES if name in line)
        assert sorted(point for points in found.values() for point in points.items()) == recorded
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        assert all(left < step < right and low < value < high for step, value in recorded)
    assert loss.get_yscale() == loss.get_xscale() == accuracy.get_xscale() == "log"


def test_says_where_each_curve_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loss, accuracy = drawn(monkeypatch, tmp_path / "curve", IMAGES)
    ends = [
        str(line.get_label()).partition(": ")[2] for axes in (loss, accuracy) for line in axes.get_lines()
    ]
    values = ("0.0001000", "0.002000", "0.001000", "0.9980", "0.9990")
    assert ends == [f"{value} at the end" for value in values]


def test_one_validation_curve_without_an_average(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (axes,) = drawn(monkeypatch, tmp_path / "curve", METRICS, averages=False)
    assert list(curves(axes)) == ["training batches", "validation"]


def test_curves_differ_without_their_colors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (axes,) = drawn(monkeypatch, tmp_path / "curve", METRICS)
    looks = {(line.get_linestyle(), line.get_marker()) for line in axes.get_lines()}
    assert len(looks) == 3


def test_losses_that_are_not_finite_or_not_positive_leave_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A loss of 0 has no place on the axis; one that is not finite is None in the file."""
    metrics: list[Line] = [
        {"step": step, "split": "train", "loss": loss}
        for step, loss in enumerate((3.0, None, 1.0, 0.0, None), 1)
    ]
    (axes,) = drawn(monkeypatch, tmp_path / "curve", metrics)
    (line,) = axes.get_lines()
    assert line.get_label() == "training batches: not finite at the end"
    low, high = axes.get_ylim()
    assert 0 < low < 1.0 < 3.0 < high < 10
