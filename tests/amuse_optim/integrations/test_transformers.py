"""The Trainer of transformers: it saves and evaluates x, and a killed run goes on with the same bits."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
import transformers
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from amuse_optim import AMUSE, averaged_state_dict, param_groups
from amuse_optim.integrations.transformers import AMUSECallback, AMUSEFactory
from tests.amuse_optim.integrations import tiny_trainer as tiny
from tests.documented import code_in

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def plain() -> Any:
    return tiny.plain_loop()


def losses(trainer: Any) -> dict[int, float]:
    return {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}


class WithoutEval(tiny.InOrder):
    """Evaluates without telling the optimizer, as the Trainer did before it knew such optimizers."""

    def evaluation_loop(self, *arguments: Any, **more: Any) -> Any:
        optimizer, self.optimizer = self.optimizer, None
        try:
            return super().evaluation_loop(*arguments, **more)
        finally:
            self.optimizer = optimizer


@pytest.mark.requirement("B9")
@pytest.mark.parametrize(
    ("kind", "strategy", "at"),
    [
        (tiny.InOrder, {}, [3, 6, 9, 12]),
        (tiny.InOrder, {"eval_strategy": "steps", "eval_steps": 2}, [3, 6, 9, 12]),
        (WithoutEval, {"eval_strategy": "steps", "eval_steps": 2}, [3, 6, 9, 12]),
        (tiny.InOrder, {"eval_strategy": "epoch", "save_strategy": "epoch"}, [6, 12]),
        (WithoutEval, {"eval_strategy": "epoch", "save_strategy": "epoch"}, [6, 12]),
    ],
)
def test_every_save_and_evaluation_is_at_x_and_training_that_of_a_plain_loop(
    plain: Any, tmp_path: Path, kind: Any, strategy: dict[str, Any], at: list[int]
) -> None:
    averages, y, expected = plain
    trainer = tiny.trainer(tmp_path, kind, **strategy)
    trainer.train()
    assert sorted(tmp_path.iterdir()) == sorted(tmp_path / f"checkpoint-{step}" for step in at)
    for step in at:
        assert tiny.same(tiny.saved(tmp_path / f"checkpoint-{step}"), averages[step])
    for step, loss in losses(trainer).items():
        assert loss == pytest.approx(expected[step], rel=1e-6)
    trainer.save_model(str(tmp_path / "final"))
    assert tiny.same(tiny.saved(tmp_path / "final"), averages[-1])
    trainer.optimizer.train()
    assert tiny.same(tiny.weights(trainer.model), y)


@pytest.mark.requirement("B9")
def test_an_optimizer_of_ones_own_takes_the_callback(plain: Any, tmp_path: Path) -> None:
    model = tiny.model()
    optimizer = AMUSE(param_groups(model), **tiny.OPTIONS)
    arguments = tiny.arguments(tmp_path)
    callbacks = [AMUSECallback()]
    trainer = tiny.InOrder(
        model, arguments, train_dataset=tiny.rows(), optimizers=(optimizer, None), callbacks=callbacks
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    shipped = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "final")
    assert tiny.same(shipped.state_dict(), plain[0][-1])
    assert tiny.same(averaged_state_dict(model, optimizer), plain[0][-1])


@pytest.mark.requirement("B9")
def test_a_killed_run_goes_on_with_the_same_bits(plain: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.amuse_optim.integrations.tiny_trainer", str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-3", "checkpoint-6"}
    trainer = tiny.trainer(tmp_path)
    trainer.train(resume_from_checkpoint=True)
    assert tiny.same(tiny.saved(tmp_path / "checkpoint-12"), plain[0][12])
    trainer.optimizer.train()
    assert tiny.same(tiny.weights(trainer.model), plain[1])


@pytest.mark.requirement("B9")
@pytest.mark.parametrize(
    "more",
    [
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5},
        {"dtype": torch.bfloat16},
        {"options": {"lr": 0.02, "warmup_steps": 0.25, "beta1": 0.0, "rho": 0.0}},
        {"options": {"lr": 0.02, "t0_steps": 0.5}, "warmup_steps": 0.25},
    ],
)
def test_resumed_within_an_epoch(tmp_path: Path, more: dict[str, Any]) -> None:
    dtype = more.pop("dtype", torch.float32)

    def run(resume: str | None) -> Any:
        trainer = tiny.trainer(tmp_path, trained=tiny.model(dtype), save_steps=2, **more)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(None)
    checkpoints = [tiny.saved(tmp_path / f"checkpoint-{step}") for step in range(2, 13, 2)]
    resumed = run(str(tmp_path / "checkpoint-4"))
    for step, expected in zip(range(2, 13, 2), checkpoints, strict=True):
        assert tiny.same(tiny.saved(tmp_path / f"checkpoint-{step}"), expected)
    for trainer in (whole, resumed):
        trainer.optimizer.train()
    assert tiny.same(tiny.weights(resumed.model), tiny.weights(whole.model))


@pytest.mark.requirement("B9")
def test_without_saves_the_trained_model_is_x(plain: Any, tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, save_strategy="no")
    trainer.train()
    assert tiny.same(tiny.weights(trainer.model), plain[0][-1])
    trainer.save_model(str(tmp_path / "final"))
    assert tiny.same(tiny.saved(tmp_path / "final"), plain[0][-1])


@pytest.mark.requirement("B4")
@pytest.mark.filterwarnings("ignore")  # torch's own, about a single process
def test_a_distributed_checkpoint_gives_y_back_bit_for_bit(plain: Any, tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path)
    trainer.train()
    model, optimizer = get_state_dict(trainer.model, trainer.optimizer)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=tmp_path / "dcp", no_dist=True)

    again = tiny.model()
    read = AMUSEFactory()(again, **tiny.OPTIONS)
    model, optimizer = get_state_dict(again, read)
    dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    set_state_dict(again, read, model_state_dict=model, optim_state_dict=optimizer)
    assert tiny.same(tiny.weights(again), plain[0][-1])
    read.train()
    assert tiny.same(tiny.weights(again), plain[1])


@pytest.mark.requirement("C6")
def test_adapters_are_saved_at_x_and_resumed(tmp_path: Path) -> None:
    def run(resume: bool) -> Any:
        adapted = peft.get_peft_model(tiny.model(), peft.LoraConfig(r=2, target_modules=["query", "value"]))
        torch.manual_seed(2)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        options = tiny.OPTIONS | {"overrides": [("*.lora_*", "adamw")]}
        trainer = tiny.trainer(tmp_path, trained=adapted, options=options, label_names=["labels"])
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6") if resume else None)
        return trainer

    def adapters(step: int) -> tiny.Weights:
        return safetensors.torch.load_file(tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors")

    whole = run(resume=False)
    x, last = averaged_state_dict(whole.model, whole.optimizer), adapters(12)
    assert len(last) == 4
    for name, value in last.items():
        assert torch.equal(value, x[name.replace(".weight", ".default.weight")])
    resumed = run(resume=True)
    assert tiny.same(adapters(12), last)
    for trainer in (whole, resumed):
        trainer.optimizer.train()
    assert tiny.same(tiny.weights(resumed.model), tiny.weights(whole.model))


class StopAfter5(transformers.TrainerCallback):
    """Ends the training two steps after an evaluation."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        control.should_training_stop = state.global_step == 5


@pytest.mark.requirement("B9")
@pytest.mark.parametrize("kind", [tiny.InOrder, WithoutEval])
def test_the_best_model_is_decoded_once(plain: Any, tmp_path: Path, kind: Any) -> None:
    strategy = {"eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True}
    trainer = tiny.trainer(tmp_path, kind, callbacks=[StopAfter5()], **strategy)
    trainer.train()
    assert list(losses(trainer)) == [3]
    assert tiny.same(tiny.weights(trainer.model), plain[0][3])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain[2][3], rel=1e-6)
    trainer.save_model(str(tmp_path / "final"))
    assert tiny.same(tiny.saved(tmp_path / "final"), plain[0][3])
    assert tiny.same(averaged_state_dict(trainer.model, trainer.optimizer), plain[0][3])
    trainer.optimizer.train()  # the next training goes on from there
    for name, value in tiny.weights(trainer.model).items():
        torch.testing.assert_close(value, plain[0][3][name], rtol=0, atol=1e-7)


@pytest.mark.requirement("B9")
def test_the_best_alone_is_saved(plain: Any, tmp_path: Path) -> None:
    best = {"save_strategy": "best", "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = tiny.trainer(tmp_path, WithoutEval, eval_strategy="steps", eval_steps=1, **best)
    trainer.train()
    steps = [int(path.name.removeprefix("checkpoint-")) for path in tmp_path.iterdir()]
    assert 0 < len(steps) < tiny.STEPS
    for step in steps:
        assert tiny.same(tiny.saved(tmp_path / f"checkpoint-{step}"), plain[0][step])


class OwnTrainingStep(tiny.InOrder):
    """Without `optimizer.train()`, as in TRL's OnlineDPOTrainer."""

    def training_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs))
        self.accelerator.backward(loss)
        return loss.detach()


@pytest.mark.requirement("B9")
def test_y_is_back_where_a_training_step_does_not_see_to_it(plain: Any, tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, OwnTrainingStep, eval_strategy="steps", eval_steps=2)
    trainer.train()
    assert tiny.same(tiny.saved(tmp_path / "checkpoint-12"), plain[0][12])
    trainer.optimizer.train()
    assert tiny.same(tiny.weights(trainer.model), plain[1])


@pytest.mark.filterwarnings("ignore")  # of the packages' own
def test_the_code_in_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    exec(code_in("docs/trainers.md", "transformers"), namespace)
    trainer = namespace["trainer"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"checkpoint-{step}" for step in (5, 10, 15, 16)
    }
    x = averaged_state_dict(trainer.model, trainer.optimizer)
    assert tiny.same(tiny.saved(tmp_path / "final"), x)
    assert tiny.same(tiny.saved(tmp_path / "out" / "checkpoint-16"), x)
    assert trainer.optimizer.param_groups[0]["warmup_steps"] == 2
    trainer.optimizer.train()
    assert not tiny.same(tiny.weights(trainer.model), x)
