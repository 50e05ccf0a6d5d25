import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

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


class RecordedRun:
    """What `trackio.init` and `trackio.Api().runs` return, in one; rows arrive when it is finished."""

    def __init__(self, runs: list["RecordedRun"], name: str, group: str, config: dict[str, object]) -> None:
        self.runs, self.name, self.group, self.config = runs, name, group, config
        self.queue: list[tuple[int, dict[str, float]]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        runs.append(self)

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.queue.append((step, metrics))

    def finish(self) -> None:
        self.rows, self.queue = self.rows + self.queue, []

    def delete(self) -> None:
        self.runs.remove(self)


@pytest.fixture
def projects(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[RecordedRun]]:
    """Puts a stand-in with the part of trackio 0.43 that the sink uses in its place, and shows its runs."""
    kept: dict[str, list[RecordedRun]] = {}

    class Api:
        def runs(self, project: str) -> list[RecordedRun]:
            if project not in kept:
                raise ValueError(f"Project '{project}' does not exist")
            return kept[project]

    def init(
        project: str, name: str, group: str, config: dict[str, object], embed: bool = True
    ) -> RecordedRun:
        assert not embed, "a dashboard opens in a notebook"
        return RecordedRun(kept.setdefault(project, []), name, group, config)

    module = ModuleType("trackio")
    module.__dict__.update(__spec__=ModuleSpec("trackio", None), Api=Api, init=init)
    monkeypatch.setitem(sys.modules, "trackio", module)
    return kept


def test_trackio_gets_what_the_metrics_file_has(tiny: Make, projects: dict[str, list[RecordedRun]]) -> None:
    """Against a stand-in that records, not the package: it wants an older Pillow than the one pinned here.

    The earlier process has sent a step that was after its newest checkpoint, as one that is killed does.
    """
    config = tiny(steps=6, log_every=2, eval_every=3, sinks=("trackio",))
    folder = train(config, Stopping(4)).folder
    (first,) = projects["amuse-optim"]
    assert {step for step, _ in first.rows} == {2, 3, 4}
    first.rows.append((5, {"train/loss": 1.0}))
    other = RecordedRun(projects["amuse-optim"], "another run", config.recipe, {})
    train(config, Silence(), resume=folder)
    assert projects["amuse-optim"][0] is other
    (run,) = projects["amuse-optim"][1:]
    assert (run.name, run.group) == (folder.name, "shakespeare")
    assert run.config == to_json(config)
    found: dict[str, dict[int, float]] = {}
    for step, metrics in run.rows:
        for name, value in metrics.items():
            assert step not in found.setdefault(name, {})
            found[name][step] = value
    assert found == curves(folder)


def test_a_run_goes_on_with_trackio_where_that_knows_nothing_of_it(
    tiny: Make, projects: dict[str, list[RecordedRun]]
) -> None:
    """The sink was not there from the beginning, and yet it has all of the run."""
    config = tiny(steps=4, log_every=1)
    folder = train(config, Stopping(2)).folder
    assert projects == {}
    train(replace(config, sinks=("trackio",)), Silence(), resume=folder)
    (run,) = projects["amuse-optim"]
    assert [step for step, metrics in run.rows if "train/loss" in metrics] == [1, 2, 3, 4]


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
