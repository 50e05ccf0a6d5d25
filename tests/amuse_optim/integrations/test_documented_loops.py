"""Sections of docs/trainers.md on programs that are not installed here, as far as they run without them."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from amuse_optim import averaged_state_dict
from tests.amuse_optim.integrations import tiny_trainer as tiny
from tests.documented import code_in

NANOCHAT = code_in("docs/trainers.md", "Loops like nanochat's")


class LikeAxolotl(tiny.InOrder):
    """Gives the factory its arguments as well, as axolotl 0.19 does."""

    def create_optimizer(self, model: Any = None) -> Any:
        factory, options = self.optimizer_cls_and_kwargs
        self.optimizer = factory()(model or self.model, self.args, **options)
        return self.optimizer


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_plugin_for_axolotl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("axolotl", "axolotl.integrations", "axolotl.integrations.base"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["axolotl.integrations.base"], "BasePlugin", object, raising=False)
    namespace: dict[str, Any] = {}
    exec(code_in("docs/trainers.md", "axolotl"), namespace)
    plugin, config = namespace["AMUSEPlugin"](), SimpleNamespace(learning_rate=0.02, weight_decay=0.1)

    def run(resume: str | None) -> Any:
        trainer = LikeAxolotl(
            tiny.model(), tiny.arguments(tmp_path, warmup_steps=4), train_dataset=tiny.rows()
        )
        for callback in plugin.add_callbacks_post_trainer(config, trainer):
            trainer.add_callback(callback)
        plugin.post_trainer_create(config, trainer)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    averages, y, _ = tiny.plain_loop()
    run(None)
    for step in (3, 6, 9, 12):
        assert tiny.same(tiny.saved(tmp_path / f"checkpoint-{step}"), averages[step])
    resumed = run(str(tmp_path / "checkpoint-6"))
    assert tiny.same(tiny.saved(tmp_path / "checkpoint-12"), averages[12])
    resumed.optimizer.train()
    assert tiny.same(tiny.weights(resumed.model), y)


def test_a_loop_like_nanochats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(folder: str, code: str) -> tuple[dict[str, Any], tiny.Weights]:
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        namespace: dict[str, Any] = {}
        exec(code, namespace)
        return namespace, torch.load("nano.pt")["model"]

    whole, shipped = run("whole", NANOCHAT)
    x, y = averaged_state_dict(whole["model"], whole["optimizer"]), tiny.weights(whole["model"])
    assert tiny.same(shipped, x)
    assert not tiny.same(shipped, y)
    half = NANOCHAT.replace("step, steps, file = 0, 100,", "step, steps, file = 0, 50,")
    assert half != NANOCHAT
    assert run("in halves", half)[0]["step"] == 50
    resumed, shipped = run("in halves", NANOCHAT)
    assert tiny.same(shipped, x)
    assert tiny.same(tiny.weights(resumed["model"]), y)
    tokens = torch.arange(64)
    resumed["model"].load_state_dict(shipped)
    assert (resumed["model"](tokens).argmax(1) == (3 * tokens + 1) % 64).float().mean() > 0.9


@pytest.mark.parametrize("section", ["torchtitan", "unsloth"])
def test_what_does_not_run_here_is_python(section: str) -> None:
    compile(code_in("docs/trainers.md", section), section, "exec")
