import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from amuse_lab.cli import main
from amuse_lab.config import RunConfig
from amuse_lab.errors import RecordError
from amuse_lab.landscape import experiments
from amuse_lab.landscape.command import small
from amuse_lab.landscape.measuring import Settings
from amuse_lab.landscape.recorded import from_json
from amuse_lab.landscape.river import RiverSettings
from amuse_lab.landscape.running import live, of_folder
from amuse_lab.progress import Silence
from amuse_lab.recipes import find
from amuse_lab.train import train

LITTLE = ["--measure.k", "2", "--measure.window", "2", "--river.steps", "2", "--river.branches", "1"]
SETTINGS = Settings(k=2, batches=1, window=2)
RIVER = RiverSettings(steps=2, branches=1)


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_recipe_in_its_small_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--optimizer", "muon", "--steps", "6", *LITTLE, "--figures", "figures"]
    assert main(["landscape", "shakespeare", *arguments]) == 0
    folder = tmp_path / "landscape" / "shakespeare-muon"
    content = json.loads((folder / "landscape.json").read_text("utf-8"))
    run = from_json(content["run"])
    assert [at.step for at in run.measurements] == [3, 6]
    assert run.config["steps"] == 6
    assert "torch" in content["environment"]["versions"]
    assert "The river and the valley: muon on shakespeare" in (folder / "landscape.html").read_text("utf-8")
    assert len(list((tmp_path / "figures").glob("landscape-*.png"))) == 8
    printed = capsys.readouterr().out
    assert "page: landscape/shakespeare-muon/landscape.html" in printed
    assert "measured after 6 steps" in printed


def test_a_run_folder_is_measured_as_the_run_itself_would_have_been(
    tiny: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(steps=6, checkpoint_every=3, threads=1)
    folder = train(config, Silence()).folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["landscape", str(folder), *LITTLE]) == 0
    assert before == {path: path.read_bytes() for path in before}
    found = from_json(json.loads((folder / "landscape.json").read_text("utf-8"))["run"])
    here = live(config, [3, 6], SETTINGS, RIVER, name="amuse", setting="tiny")
    assert [at.step for at in found.measurements] == [3, 6]
    assert found.measurements == here.measurements
    assert found.rivers == here.rivers
    assert f"page: {folder}/landscape.html" in capsys.readouterr().out
    assert [at.step for at in of_folder(folder, 1, SETTINGS, RIVER).measurements] == [6]


def test_a_run_that_fails_keeps_what_was_measured(tiny: Callable[..., RunConfig]) -> None:
    config = tiny("muon", steps=40)
    config = replace(config, optimizer=replace(config.optimizer, lr_rest=1e30, warmup_steps=8))
    run = live(config, [1, 30], SETTINGS, RIVER, name="muon", setting="tiny")
    assert [at.step for at in run.measurements] in ([], [1])
    assert run.failure is not None
    assert "step" in run.failure


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shakespear"], "unknown recipe 'shakespear'; did you mean 'shakespeare'?"),
        (["shakespeare", "--points", "20"], "points must be from 1 to 19, a window apart, got 20"),
        (["shakespeare", "--points", "0"], "points must be at least 1, got 0"),
        (["shakespeare", "--steps", "0"], "steps must be at least 1, got 0"),
        (
            ["shakespeare", "--steps", "20"],
            "steps must be at least 21, one more than the 20 of measure.window, got 20",
        ),
        (["empty", "--steps", "800"], "steps must be left out, since no recipe is trained here, got 800"),
        (["claims", "--optimizer", "muon"], "optimizer must be left out, since no recipe is trained here"),
        (
            ["claims", "--river.steps", "5"],
            "river must be left out: what the claims rest on was fixed before",
        ),
        (["claims", "--points", "3"], "points must be left out: what the claims rest on was fixed before"),
        (["shakespeare", "--measure.budget", "31"], "budget must be at least 2 (k + 6) = 32, got 31"),
        (["runs/shakespeare/gone"], "there is no run folder runs/shakespeare/gone; `ls -d runs/*/*` shows"),
        (["shakespeare", "--measure.k", "0"], "k must be at least 1, got 0"),
        (["shakespeare", "--optimizer", "lion"], "unknown optimizer 'lion'"),
        (["empty"], "empty is not a run folder: No such file or directory: config.json"),
        (["shakespeare", "--river.rates"], "rates must be one or more positive learning rates, got ()"),
    ],
    ids=[
        *("recipe", "points", "no-points", "no-steps", "steps", "steps-of-folder", "optimizer-of-claims"),
        *("river-of-claims", "points-of-claims", "budget", "gone", "k", "optimizer", "folder", "rates"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["landscape", *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_folder_without_checkpoints_says_what_to_do(
    tiny: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(tiny(), Silence()).folder
    for file in (folder / "checkpoints").rglob("manifest.json"):
        file.write_text("{}")
    assert main(["landscape", str(folder)]) == 2
    assert "has no checkpoint that can be used: go on with its run" in capsys.readouterr().err
    assert main(["landscape", str(folder), "--river.powers", "10"]) == 2
    assert "powers must be none where checkpoints are measured, got (10.0,)" in capsys.readouterr().err


def test_the_claims_go_on_where_they_were_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., RunConfig]
) -> None:
    plain = {("text", "muon"): tiny("muon", steps=6), ("text", "amuse"): tiny(steps=6)}
    monkeypatch.setattr("amuse_lab.landscape.claims.runs", lambda: plain)
    for name, value in (("SEEDS", (1,)), ("MEASURED_AT", (3,)), ("SETTINGS", SETTINGS), ("RIVER", RIVER)):
        monkeypatch.setattr(f"amuse_lab.landscape.claims.{name}", value)
    said: list[str] = []
    folder = tmp_path / "records"
    first = experiments.make(folder, said.append)
    assert [(run.name, run.seed) for run in first] == [("amuse", 1), ("muon", 1)]
    said.clear()
    assert experiments.make(folder, said.append) == first
    assert said == []
    experiments.write(folder, first[:1])
    assert [run.name for run in experiments.make(folder, said.append)] == ["amuse", "muon"]
    assert said[-1].startswith("run 1 of 1")
    before = (folder / experiments.CLAIMS).read_bytes()
    monkeypatch.setattr("amuse_lab.landscape.claims.RIVER", replace(RIVER, steps=RIVER.steps + 1))
    with pytest.raises(RecordError, match="another river test than is wanted now"):
        experiments.make(folder, said.append)
    assert (folder / experiments.CLAIMS).read_bytes() == before


def test_lengths_of_the_small_form_are_in_proportion() -> None:
    config = small(find("shakespeare")(), 400)
    assert (config.steps, config.optimizer.warmup_steps, config.optimizer.t0_steps) == (400, 40, 160)
    assert config.task.model.n_embd == 64
