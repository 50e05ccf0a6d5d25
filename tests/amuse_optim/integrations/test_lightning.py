"""Lightning with `AMUSECallback`: the same weights as a plain loop, x in every file, exact resumption."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from amuse_optim import AMUSE, OptimizerModeError, param_groups
from tests.amuse_optim.integrations.plain_loop import (
    Plain,
    equal,
    in_file,
    same_everywhere,
    validation_loss,
    weights,
)
from tests.programs.lightning_runs import (
    EPOCH,
    KILLED_AFTER,
    Module,
    every_step,
    inputs,
    loader,
    loss_of,
    make_optimizer,
    network,
    trainer,
)

ROOT = Path(__file__).parents[3]

# What Lightning says about loaders, devices, folders and its own dependencies; what AMUSE says is an error.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:weights were changed"),
    pytest.mark.filterwarnings("error:the loaded state"),
]


class Another(ModelCheckpoint):
    """Beside one that is configured alike, which Lightning takes of another class only."""


@pytest.mark.requirement("B9")
def test_every_file_holds_x_and_the_monitored_value_is_its_own(tmp_path: Path) -> None:
    by_step: dict[str, Any] = {"filename": "{step}", "save_top_k": -1, "auto_insert_metric_name": False}
    after_validation = ModelCheckpoint(tmp_path / "validation", monitor="val", **by_step)
    callbacks = [
        after_validation,
        every_step(tmp_path / "full"),
        Another(tmp_path / "weights", every_n_train_steps=1, save_weights_only=True, **by_step),
        ModelCheckpoint(tmp_path / "epoch", save_on_train_epoch_end=True, **by_step),
    ]
    module = Module()
    trainer(tmp_path, *callbacks, val_check_interval=2).fit(module, loader(), loader(2))

    plain = Plain(3 * EPOCH)
    assert module.losses == plain.losses
    assert equal(weights(module), plain.x[-1])
    for kind, steps in {"validation": range(2, 13, 2), "full": range(1, 13), "weights": range(1, 13),
                        "epoch": (4, 8, 12)}.items():  # fmt: skip
        files = sorted((tmp_path / kind).glob("*.ckpt"), key=lambda path: int(path.stem))
        assert [int(path.stem) for path in files] == list(steps)
        for path in files:
            assert equal(in_file(path), plain.x[int(path.stem)]), path
    assert len(after_validation.best_k_models) == 6
    for path, score in after_validation.best_k_models.items():
        loaded = Module.load_from_checkpoint(path)
        assert validation_loss(loaded.network) == pytest.approx(score.item(), rel=1e-6)
        plain.model.load_state_dict(plain.x[int(Path(path).stem)])
        assert validation_loss(plain.model) == pytest.approx(score.item(), rel=1e-6)


@pytest.mark.requirement("B9")
@pytest.mark.parametrize(
    ("options", "saved"),
    [({}, 4), ({}, 6), ({}, 7), ({"val_check_interval": 2}, 6), ({"precision": "bf16-mixed"}, 7),
     ({"precision": "bf16-true"}, 7), ({"accumulate_grad_batches": 2}, 3), ({"gradient_clip_val": 0.05}, 5)],
    ids=str,
)  # fmt: skip
def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(
    tmp_path: Path, options: dict[str, Any], saved: int
) -> None:
    whole, resumed = Module(), Module()
    trainer(tmp_path, every_step(tmp_path / "whole"), **options).fit(whole, loader(), loader(2))
    trainer(tmp_path, every_step(tmp_path / "resumed"), **options).fit(
        resumed, loader(), loader(2), ckpt_path=tmp_path / "whole" / f"{saved}.ckpt"
    )
    last = max(int(path.stem) for path in (tmp_path / "whole").glob("*.ckpt"))
    assert whole.losses[-len(resumed.losses) :] == resumed.losses
    assert len(resumed.losses) == (last - saved) * options.get("accumulate_grad_batches", 1)
    for step in range(saved + 1, last + 1):
        ours, theirs = (
            torch.load(tmp_path / run / f"{step}.ckpt", weights_only=True) for run in ("resumed", "whole")
        )
        assert same_everywhere(ours["state_dict"], theirs["state_dict"]), step
        assert same_everywhere(ours["optimizer_states"], theirs["optimizer_states"]), step
    assert equal(weights(resumed), weights(whole))
    assert not equal(weights(resumed), in_file(tmp_path / "whole" / f"{saved}.ckpt"))


def test_accumulated_batches_give_the_steps_of_a_plain_loop(tmp_path: Path) -> None:
    module = Module()
    trainer(tmp_path, accumulate_grad_batches=2, val_check_interval=1).fit(module, loader(), loader(2))
    for name, value in Plain(6, batches=2).x[-1].items():
        torch.testing.assert_close(weights(module)[name], value, rtol=1e-5, atol=1e-6)


def run(case: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.programs.lightning_runs", case, str(folder)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_a_killed_process_is_continued_to_the_same_bits(tmp_path: Path) -> None:
    killed = run("killed", tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    last = tmp_path / f"{KILLED_AFTER}.ckpt"
    assert max(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem)) == last
    plain = Plain(3 * EPOCH)
    assert equal(in_file(last), plain.x[KILLED_AFTER])
    module = Module()
    trainer(tmp_path).fit(module, loader(), loader(2), ckpt_path=last)
    assert module.losses == plain.losses[KILLED_AFTER:]
    assert equal(weights(module), plain.x[-1])


def test_two_processes_train_as_one_and_resume(tmp_path: Path) -> None:
    finished = run("two", tmp_path)
    assert finished.returncode == 0, finished.stderr
    plain = Plain(2 * EPOCH, ranks=2)
    for step in range(1, 2 * EPOCH + 1):
        shipped = in_file(tmp_path / "whole" / f"{step}.ckpt")
        for name, value in plain.x[step].items():
            torch.testing.assert_close(shipped[name], value, rtol=1e-4, atol=1e-5)
        if step > 3:
            assert equal(in_file(tmp_path / "resumed" / f"{step}.ckpt"), shipped)
    first, second = (torch.load(tmp_path / f"rank{i}.pt", weights_only=True) for i in range(2))
    assert equal(first, second)


def test_several_fits_go_on_from_x_and_evaluations_between_them_use_it(tmp_path: Path) -> None:
    module, again = Module(), trainer(tmp_path, epochs=1)
    plain = Plain(EPOCH)
    again.fit(module, loader(), loader(2))
    assert equal(weights(module), plain.x[-1])

    x = network()
    x.load_state_dict(plain.x[-1])
    assert again.validate(module, loader(2), verbose=False)[0]["val"] == pytest.approx(validation_loss(x))
    assert again.test(module, loader(2), verbose=False)[0]["test"] == pytest.approx(validation_loss(x))
    with torch.no_grad():
        assert all(map(torch.equal, again.predict(module, loader(2)), (x(inputs(i)) for i in (1000, 1001))))

    trainer(tmp_path, epochs=1).fit(module, loader(), loader(2))  # another trainer, then the first one again
    second = Plain(EPOCH, x)
    assert equal(weights(module), second.x[-1])
    again.fit_loop.max_epochs = 2
    again.fit(module, loader(), loader(2))
    assert len(module.losses) == 3 * EPOCH
    assert not equal(weights(module), second.x[-1])
    assert not module._state_dict_hooks


def test_an_optimizer_that_is_kept_goes_on_at_its_y(tmp_path: Path) -> None:
    class Kept(Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept = make_optimizer(self.network)

        def training_step(self, batch: Tensor, index: int) -> Tensor:  # noqa: ARG002
            batch = inputs(len(self.losses))
            loss = loss_of(self.network(batch), batch)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            return self.kept

    module = Kept()
    for _ in range(2):
        trainer(tmp_path, epochs=1).fit(module, loader(), loader(2))
    assert module.losses == Plain(2 * EPOCH).losses


def test_an_exception_leaves_x_and_a_file_that_can_be_continued(tmp_path: Path) -> None:
    class Fails(Module):
        def training_step(self, batch: Tensor, index: int) -> Tensor:
            if len(self.losses) == 5:
                raise RuntimeError("the loader broke")
            return super().training_step(batch, index)

    plain, module = Plain(3 * EPOCH), Fails()
    saving = ModelCheckpoint(tmp_path, "broken", save_on_exception=True, every_n_train_steps=100)
    failing = trainer(tmp_path, saving)
    with pytest.raises(RuntimeError, match="the loader broke"):
        failing.fit(module, loader(), loader(2))
    assert equal(weights(module), plain.x[5])
    assert equal(in_file(tmp_path / "broken.ckpt"), plain.x[5])
    x = network()
    x.load_state_dict(plain.x[5])
    assert failing.validate(module, loader(2), verbose=False)[0]["val"] == pytest.approx(validation_loss(x))
    assert equal(weights(module), plain.x[5])


def test_files_with_and_without_the_callback(tmp_path: Path) -> None:
    plain = Plain(3 * EPOCH)
    for ours in (True, False):
        files = tmp_path / str(ours)
        trainer(tmp_path, *([] if ours else [None]), every_step(files), limit_val_batches=0).fit(
            Module(), loader(), loader(2)
        )
    assert not equal(in_file(tmp_path / "False" / "5.ckpt"), plain.x[5])
    module = Module()
    trainer(tmp_path).fit(module, loader(), loader(2), ckpt_path=tmp_path / "False" / "5.ckpt")
    assert equal(weights(module), plain.x[-1])
    with pytest.raises(OptimizerModeError, match=r"the callback in amuse_optim\.integrations"):
        trainer(tmp_path, None).fit(Module(), loader(), loader(2), ckpt_path=tmp_path / "True" / "5.ckpt")


class InFractions(Module):
    def configure_optimizers(self) -> AMUSE:
        total = self.trainer.estimated_stepping_batches
        return AMUSE(param_groups(self), lr=0.02, warmup_steps=0.5, total_steps=total)


def test_lengths_as_fractions_of_the_trainers_steps(tmp_path: Path) -> None:
    module = InFractions()
    trainer(tmp_path, epochs=3).fit(module, loader(), loader(2))
    assert {group["warmup_steps"] for group in module.optimizers().param_groups} == {3 * EPOCH // 2}
