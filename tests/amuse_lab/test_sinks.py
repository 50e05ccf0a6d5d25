import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from amuse_lab.config import RunConfig
from amuse_lab.errors import ConfigError, RequestError
from amuse_lab.progress import Silence
from amuse_lab.records import RunFolder
from amuse_lab.sinks import check_installed
from amuse_lab.train import train
from tests.amuse_lab.test_resume import Stopping
from tests.programs import ranks

Make = Callable[..., RunConfig]
ROOT = Path(__file__).parents[2]


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """Every number of metrics.jsonl under the name that sinks give it."""
    found: dict[str, dict[int, float]] = {}
    for line in RunFolder(folder).metrics():
        for name, value in line.items():
            if name not in ("step", "split"):
                found.setdefault(f"{line['split']}/{name}", {})[line["step"]] = value
    return found


def test_tensorboard_shows_what_the_metrics_file_has(tiny: Make) -> None:
    """Also after a resumption: every step once, in as many event files as there were processes."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is optional"
    )
    config = tiny(steps=6, log_every=2, eval_every=3, sinks=("tensorboard",))
    folder = train(config, Stopping(3)).folder
    train(config, Silence(), resume=folder)
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    expected = curves(folder)
    assert set(events.Tags()["scalars"]) == set(expected)
    for name, points in expected.items():
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx(points, rel=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is optional")
def test_wandb_takes_the_run_offline(tmp_path: Path) -> None:
    """In a process of its own, because the package stays in the one it was started in."""
    arguments = ["train", "shakespeare", "--sinks", "wandb", *ranks.SMALL]
    program = f"""
import sys
from amuse_lab import cli
from amuse_lab.tasks.lm.bundled import BUNDLED
from tests.amuse_lab.tiny_text import tiny_text
BUNDLED["tiny"] = tiny_text()
sys.exit(cli.main({arguments!r}))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("runs/shakespeare/*")
    (record,) = folder.glob(f"wandb/offline-run-*/run-{folder.name}.wandb")
    content = record.read_bytes()
    for name, points in curves(folder).items():
        assert name.encode() in content
        assert json.dumps(points[2]).encode() in content


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_sink_that_is_not_installed_is_a_wrong_request(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    check_installed(())
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda wanted: None if wanted == name else find_spec(wanted)
    )
    message = f"^the sink {name} needs a package that is not installed: pip install {name}$"
    with pytest.raises(RequestError, match=message):
        train(tiny(sinks=(name,)), Silence())
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_sink_is_a_wrong_setting(tiny: Make) -> None:
    with pytest.raises(ConfigError, match=r"^sinks must be among tensorboard, wandb, got 'tensorbord'$"):
        tiny(sinks=("tensorbord",))
