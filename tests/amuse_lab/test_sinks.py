import importlib.util
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from amuse_lab.config import RunConfig, to_json
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


@pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None,
    reason="wandb is not installed (pip install 'amuse-optim[sinks]'); its twin is TensorBoard's test above",
)
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


@pytest.fixture
def trackio_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where Trackio stores its runs. It asks for that when it is imported, so each test imports it anew.

    Every attempt to reach something by a network fails, and the test with it; so does a dashboard, which
    Trackio opens in notebooks.
    """
    pytest.importorskip("trackio", reason="trackio is optional")
    forbidden: list[object] = []

    def refuse(*arguments: object, **options: object) -> None:
        forbidden.append((arguments, options))
        raise OSError("the test has no network and no dashboard")

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
            del sys.modules[name]

    for name in [name for name in os.environ if name.startswith("TRACKIO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for place in ("socket.socket.connect", "socket.socket.connect_ex", "socket.getaddrinfo"):
        monkeypatch.setattr(place, refuse)
    forget()
    monkeypatch.setattr("trackio.utils.is_in_notebook", lambda: True)
    monkeypatch.setattr("trackio.show", refuse)
    yield tmp_path / "trackio"
    forget()
    assert forbidden == []


def stored(folder: Path, columns: str, table: str) -> list[tuple[Any, ...]]:
    """What Trackio's only database has, read without Trackio."""
    (database,) = folder.glob("*.db")
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(f"select {columns} from {table} order by id").fetchall()


def test_trackio_stores_what_the_metrics_file_has(tiny: Make, trackio_folder: Path) -> None:
    """Every step once, of a run that got the sink under way and of one that was killed after step 5.

    The second has sent steps 4 and 5 when it goes on from its checkpoint of step 3.
    """
    config = tiny(steps=4)
    late = train(config, Stopping(2)).folder
    assert not trackio_folder.exists()
    train(replace(config, sinks=("trackio",)), Silence(), resume=late)
    config = tiny(steps=6, checkpoint_every=3, sinks=("trackio",))
    killed = train(config, Stopping(5)).folder
    rows = stored(trackio_folder, "run_name, step", "metrics")
    assert {step for name, step in rows if name == killed.name} == {1, 2, 3, 4, 5}
    shutil.rmtree(killed / "checkpoints" / "step-00000005")
    train(config, Silence(), resume=killed)

    found: dict[str, dict[str, dict[int, float]]] = {}
    for run, step, metrics in stored(trackio_folder, "run_name, step, metrics", "metrics"):
        for name, value in json.loads(metrics).items():
            points = found.setdefault(run, {}).setdefault(name, {})
            assert step not in points
            points[step] = value
    assert found == {folder.name: curves(folder) for folder in (late, killed)}
    configs = dict(stored(trackio_folder, "run_name, config", "configs"))
    kept = json.loads(configs[killed.name])
    assert kept["_Group"] == "shakespeare"
    sent = json.loads(json.dumps(to_json(config)))
    assert {name: kept[name] for name in sent} == sent


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
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
    with pytest.raises(
        ConfigError, match=r"^sinks must be among tensorboard, wandb, trackio, got 'tensorbord'$"
    ):
        tiny(sinks=("tensorbord",))
