from pathlib import Path

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
    assert "recipes:" in lines
    assert any(line.startswith("  shakespeare") for line in lines)
