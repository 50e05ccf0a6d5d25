import json
from dataclasses import replace
from pathlib import Path

import pytest

from amuse_lab.errors import ConfigError
from amuse_lab.recipes import RECIPES, find, reference
from amuse_lab.recipes.reference import comparable_results, load_reference

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_know_their_names_and_have_a_line_of_documentation(name: str) -> None:
    recipe = find(name)
    assert recipe().recipe == name
    assert (recipe.__doc__ or "").partition("\n")[0].endswith(".")


@pytest.mark.parametrize("optimizer", ["amuse", "sf-adamw", "muon", "adamw"])
def test_shakespeare_has_settings_for_each_optimizer(optimizer: str) -> None:
    assert find("shakespeare")(optimizer).optimizer.name == optimizer


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'shakespear'; did you mean 'shakespeare'\?"):
        find("shakespear")
    with pytest.raises(ConfigError, match=r"unknown optimizer 'adam'; did you mean 'adamw'\?"):
        find("shakespeare")("adam")


def test_reference_is_read_by_recipe_and_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "files", lambda _: tmp_path)
    assert load_reference("some-run", "bits_per_byte") is None
    result = {"optimizer": "amuse", "lr": 0.02, "bits_per_byte_mean": 2.3, "spread": 0.01, "seeds": [0, 1, 2]}
    content = {"steps": 2000, "machine": "two cores", "results": [result]}
    (tmp_path / "some_run_reference.json").write_text(json.dumps(content))
    loaded = load_reference("some-run", "bits_per_byte")
    assert loaded is not None
    assert (loaded.steps, loaded.machine) == (2000, "two cores")
    assert loaded.results[0].mean == 2.3
    assert loaded.results[0].seeds == (0, 1, 2)


RECORDED = {
    "shakespeare": ("bits_per_byte", "shakespeare"),
    "mnist-resnet8": ("val_accuracy", "mnist/resnet8"),
    "mnist-vit": ("val_accuracy", "mnist/vit"),
}
"""Measure and folder below `records` of the recipes that ship results."""


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_references_are_the_recorded_ones_and_the_recipes_have_their_settings(name: str) -> None:
    if name not in RECORDED:
        assert load_reference(name, "accuracy") is None
        return
    measure, folder = RECORDED[name]
    recorded = json.loads((ROOT / "records" / folder / "reference.json").read_text())
    loaded = load_reference(name, measure)
    assert loaded is not None
    assert loaded.steps == recorded["steps"] == find(name)().steps
    for shipped, result in zip(loaded.results, recorded["results"], strict=True):
        assert (shipped.mean, shipped.spread) == (result[f"{measure}_mean"], result["spread"])
        optimizer = vars(find(name)(shipped.optimizer).optimizer)
        settings = result.keys() & optimizer.keys()
        assert settings >= {"lr"}
        assert {setting: optimizer[setting] for setting in settings} == {k: result[k] for k in settings}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_results_stand_beside_runs_of_the_same_task_and_length_alone(name: str) -> None:
    measure, _ = RECORDED[name]
    config = find(name)()
    assert comparable_results(config, measure) == load_reference(name, measure)
    assert comparable_results(replace(config, seed=9, runs=Path("elsewhere")), measure) is not None
    free = {"sample_length": 7} if name == "shakespeare" else {"workers": 7}
    assert comparable_results(replace(config, task=replace(config.task, **free)), measure) is not None
    model = {"context": 64} if name == "shakespeare" else {"depths": (3, 3, 3)}
    if name == "mnist-vit":
        model = {"depth": 1}
    for others in (
        {"steps": config.steps + 1},
        {"precision": "bf16"},
        {"clip": 1.0},
        {"task": replace(config.task, data="shakespeare-gpt2")},
        {"task": replace(config.task, batch=8)},
        {"task": replace(config.task, model=replace(config.task.model, **model))},
    ):
        assert comparable_results(replace(config, **others), measure) is None
