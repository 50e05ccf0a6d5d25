from pathlib import Path

import pytest

from amuse_lab.catalogue import catalogue, describe
from amuse_lab.optimizers import OPTIMIZERS


def test_recipes_come_with_size_and_runs(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = tmp_path / "shakespeare" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (recipe,) = (entry for entry in catalogue(tmp_path)["recipes"] if entry["name"] == "shakespeare")
    assert recipe["task"] == "lm"
    assert recipe["optimizer"] == "amuse"
    assert recipe["parameters"] > 100_000
    assert recipe["steps"] > 0
    assert recipe["runs_here"] == 2


def test_every_entry_has_a_name_and_a_description(tmp_path: Path) -> None:
    content = catalogue(tmp_path)
    assert list(content) == ["recipes", "studies", "datasets", "optimizers"]
    assert all(entry["name"] and entry["description"] for entries in content.values() for entry in entries)
    assert [entry["name"] for entry in content["optimizers"]] == list(OPTIMIZERS)
    lines = describe(content).splitlines()
    assert lines[0].split() == ["recipe", "parameters", "steps", "data", "runs", "here"]
    assert any(line.startswith("  adamw") for line in lines)


def rows_of_recipes() -> dict[str, list[str]]:
    table, _, _ = describe(catalogue()).partition("\n\n")
    return {line.split()[0]: line.split()[1:] for line in table.splitlines()}


def test_recipes_are_a_table_that_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    rows = rows_of_recipes()
    assert rows["shakespeare"] == ["0.4", "M", "1,600", "shakespeare", "yes"]
    assert rows["llama-124m-amuse"] == ["123.6", "M", "16,000", "fineweb", "no:", "data,", "gpu"]
    assert rows["cifar10-wrn16x8-sgd"] == ["11.0", "M", "117,300", "cifar10", "no:", "data,", "gpu"]
    assert rows["isic2019-vit-b16-amuse"][-3:] == ["no:", "weights,", "gpu"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    rows = rows_of_recipes()
    assert rows["llama-124m-amuse"][-2:] == ["no:", "data"]


def test_what_was_prepared_here_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMUSE_LAB_DATA", str(tmp_path))
    for name, file in (("notes", "index.json"), ("pets", "images.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    described = describe(catalogue())
    assert f"Prepared data lies in {tmp_path};" in described
    names = {entry["name"]: entry["description"] for entry in catalogue()["datasets"]}
    assert (names["notes"], names["pets"]) == ("text prepared here", "images prepared here")
