from pathlib import Path

import pytest

from amuse_lab.figures import draw_curve

METRICS = [
    {"step": step, "split": split, "loss": 5.0 / step}
    for step in range(1, 6)
    for split in ("train", "val_x", "val_y")
]


@pytest.mark.parametrize("averages", [True, False])
@pytest.mark.parametrize("metrics", [METRICS, METRICS[:3], []], ids=["whole", "one step", "empty"])
def test_draws_a_png(tmp_path: Path, metrics: list[dict[str, object]], averages: bool) -> None:
    path = tmp_path / "curve"
    draw_curve(metrics, path, title="a run", averages=averages)
    assert path.read_bytes().startswith(b"\x89PNG")
