"""Lightning with `AMUSECallback`: the same weights as a plain loop, x in every file, exact resumption."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor, nn
from torch.nn import functional

from amuse_optim import (
    AMUSE,
    OptimizerModeError,
    attach,
    averaged,
    averaged_state_dict,
    param_groups,
    refresh_batch_norm,
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


class Plain:
    """A loop without Lightning that does the same: what it saw at each step."""

    def __init__(self, steps: int, model: nn.Module | None = None, ranks: int = 1, batches: int = 1) -> None:
        self.model = model or network()
        self.optimizer = make_optimizer(self.model)
        self.losses: list[float] = []
        self.x = [self.shipped()]
        for step in range(steps):
            self.optimizer.zero_grad()
            for batch in range(batches * step, batches * (step + 1)):
                for rank in range(ranks):
                    loss = loss_of(self.model(inputs(batch, rank)), inputs(batch, rank))
                    self.losses.append(loss.item())
                    (loss / ranks / batches).backward()
            self.optimizer.step()
            self.x.append(self.shipped())

    def shipped(self) -> dict[str, Tensor]:
        return averaged_state_dict(self.model, self.optimizer)


def in_file(path: Any) -> dict[str, Tensor]:
    """The weights of the network in a checkpoint file."""
    saved = torch.load(path, weights_only=True)["state_dict"]
    return {name.removeprefix("network."): value for name, value in saved.items()}


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("network."): p.detach().clone() for name, p in module.named_parameters()}


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def same_everywhere(ours: Any, theirs: Any) -> bool:
    """Whether two parts of checkpoints are equal to the bit."""
    if isinstance(ours, Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same_everywhere(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same_everywhere, ours, theirs))
    return bool(ours == theirs)


def validation_loss(model: nn.Module, batches: Iterable[int] = (1000, 1001)) -> float:
    with torch.no_grad():
        losses = [loss_of(model(inputs(i)), inputs(i)) for i in batches]
    return float(sum(losses) / len(losses))


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


@pytest.mark.parametrize("other", [StochasticWeightAveraging(0.1), WeightAveraging(), EMAWeightAveraging()])
def test_other_averages_beside_it_are_refused(tmp_path: Path, other: Callback) -> None:
    with pytest.raises(ValueError, match=f"only callback that averages weights, got {type(other).__name__}"):
        trainer(tmp_path, other).fit(Module(), loader(), loader(2))


def with_optimizers(configure: Any) -> Module:
    module = Module()
    module.configure_optimizers = lambda: configure(module)  # type: ignore[method-assign]
    return module


def constant(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)


def test_a_module_without_amuse_is_refused(tmp_path: Path) -> None:
    module = with_optimizers(lambda module: torch.optim.AdamW(module.parameters()))
    with pytest.raises(ValueError, match=r"configure_optimizers must return an AMUSE .* got AdamW"):
        trainer(tmp_path).fit(module, loader())


@pytest.mark.parametrize("form", ["list", "pair", "dict", "scheduler"])
def test_the_usual_forms_of_configure_optimizers(tmp_path: Path, form: str) -> None:
    def configure(module: Module) -> Any:
        optimizer = make_optimizer(module.network)
        scheduler = constant(optimizer)
        return {
            "list": [optimizer],
            "pair": ([optimizer], [scheduler]),
            "dict": {"optimizer": optimizer},
            "scheduler": {"optimizer": optimizer,
                          "lr_scheduler": {"scheduler": scheduler, "interval": "step"}},
        }[form]  # fmt: skip

    module = with_optimizers(configure)
    trainer(tmp_path, every_step(tmp_path)).fit(module, loader(), loader(2))
    plain = Plain(3 * EPOCH)
    assert equal(weights(module), plain.x[-1])
    assert equal(in_file(tmp_path / "5.ckpt"), plain.x[5])


class Pair(Module):
    """Two networks, each with an optimizer of its own, stepped by hand; the second one's is SGD or AMUSE."""

    def __init__(self, second: str) -> None:
        super().__init__()
        self.critic = nn.Linear(3, 1)
        nn.init.constant_(self.critic.weight, 0.5)
        nn.init.zeros_(self.critic.bias)
        self.second = second
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, index: int) -> None:  # noqa: ARG002
        optimizers = self.optimizers()
        batch = inputs(self.trainer.fit_loop.total_batch_idx)
        for optimizer, sign in zip(optimizers, (1.0, -1.0), strict=True):
            self.toggle_optimizer(optimizer)
            output = self.network(batch)
            loss = loss_of(output, batch) + sign * self.critic(output).mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.losses.append(loss.item())
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        if self.second == "amuse":
            return make_optimizer(self.network), make_optimizer(self.critic)
        return make_optimizer(self.network), torch.optim.SGD(self.critic.parameters(), lr=0.01)


@pytest.mark.requirement("B9")
@pytest.mark.parametrize("second", ["amuse", "sgd"])
def test_manual_optimization_of_two_networks(tmp_path: Path, second: str) -> None:
    whole, resumed = Pair(second), Pair(second)
    trainer(tmp_path, every_step(tmp_path / "whole")).fit(whole, loader(), loader(2))
    trainer(tmp_path).fit(resumed, loader(), loader(2), ckpt_path=tmp_path / "whole" / "12.ckpt")
    assert whole.losses[12:] == resumed.losses
    assert equal(weights(whole), weights(resumed))

    plain = Pair(second)
    first, other = plain.configure_optimizers()
    for step in range(6):
        for optimizer, sign in ((first, 1.0), (other, -1.0)):
            for each in (first, other):
                each.zero_grad()
            output = plain.network(inputs(step))
            loss = loss_of(output, inputs(step)) + sign * plain.critic(output).mean()
            loss.backward(inputs=[p for group in optimizer.param_groups for p in group["params"]])
            optimizer.step()
    expected = averaged_state_dict(plain, first)
    if second == "amuse":
        expected |= {f"critic.{name}": x for name, x in averaged_state_dict(plain.critic, other).items()}
    saved = torch.load(tmp_path / "whole" / "12.ckpt", weights_only=True)["state_dict"]
    assert equal(saved, expected)


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


def test_the_librarys_functions_work_within_a_fit(tmp_path: Path) -> None:
    class Looks(Module):
        def on_train_batch_end(self, *_: Any) -> None:
            wrapped = self.optimizers()
            y = weights(self)
            x = averaged_state_dict(self, wrapped)
            assert equal(x, self.state_dict())
            assert all(self.state_dict(keep_vars=True)[n] is p for n, p in self.named_parameters())
            with averaged(wrapped):
                assert equal(weights(self), weights_of(x))
                assert equal(x, self.state_dict())
            assert equal(weights(self), y)

    def weights_of(saved: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix("network."): value for name, value in saved.items()}

    module = Looks()
    trainer(tmp_path).fit(module, loader(), loader(2))
    assert equal(weights(module), Plain(3 * EPOCH).x[-1])


def test_a_hook_that_drops_trained_weights_is_refused(tmp_path: Path) -> None:
    module = Module()
    module.network.register_state_dict_post_hook(lambda *hook: hook[1].__delitem__("network.0.weight"))
    with pytest.raises(ValueError, match=r"must hold 'network\.0\.weight'"):
        trainer(tmp_path, every_step(tmp_path)).fit(module, loader(), loader(2))


class Normalized(Module):
    """With BatchNorm, whose statistics are refreshed for x before every validation."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))

    def on_validation_start(self) -> None:
        refresh_batch_norm(self, (inputs(i) for i in range(4)), forward=self.network)


def test_refreshed_batch_norm_is_in_the_file_and_resumes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Normalized()
    start = module.network.state_dict()
    start = {name: value.clone() for name, value in start.items()}
    saving = ModelCheckpoint(tmp_path, "{step}", monitor="val", save_top_k=-1, auto_insert_metric_name=False)
    trainer(tmp_path, saving).fit(module, loader(), loader(2))
    for path, score in saving.best_k_models.items():
        loaded = Normalized.load_from_checkpoint(path).eval()
        assert validation_loss(loaded.network) == pytest.approx(score.item(), rel=1e-5)
    resumed = Normalized()
    resumed.network.load_state_dict(start)
    trainer(tmp_path).fit(resumed, loader(), loader(2), ckpt_path=tmp_path / "8.ckpt")
    assert same_everywhere(dict(resumed.state_dict()), dict(module.state_dict()))


def test_a_learning_rate_finder_goes_before(tmp_path: Path) -> None:
    module = Module()
    module.lr = 0.02
    finder = LearningRateFinder(num_training_steps=8, update_attr=False)
    trainer(tmp_path, finder, every_step(tmp_path)).fit(module, loader(), loader(2))
    plain = Plain(3 * EPOCH)
    assert finder.optimal_lr is not None
    assert module.losses[-3 * EPOCH :] == plain.losses
    assert equal(in_file(tmp_path / "5.ckpt"), plain.x[5])


def test_the_trainer_of_pytorch_lightning_takes_it(tmp_path: Path) -> None:
    import pytorch_lightning

    from amuse_optim.integrations.lightning import AMUSECallback

    class Older(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        training_step, validation_step = Module.training_step, Module.validation_step
        configure_optimizers = Module.configure_optimizers
        losses: list[float] = []  # noqa: RUF012

    module = Older()
    older = pytorch_lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=3, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, enable_checkpointing=False,
        callbacks=[AMUSECallback()],
    )  # fmt: skip
    older.fit(module, loader(), loader(2))
    assert equal(weights(module), Plain(3 * EPOCH).x[-1])


class Free(Module):
    """A module whose training step calls no module: no hook of a forward pass can see it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Module()
        self.network.weight = nn.Parameter(torch.full((3, 6), 0.1))
        self.attached = True

    def training_step(self, batch: Tensor, index: int) -> Tensor:  # noqa: ARG002
        batch = inputs(self.trainer.fit_loop.total_batch_idx)
        loss = loss_of(functional.linear(batch, self.network.weight), batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Tensor, index: int) -> None:  # noqa: ARG002
        self.log("val", loss_of(functional.linear(batch, self.network.weight), batch), batch_size=8)

    def configure_optimizers(self) -> Any:
        optimizer = AMUSE(param_groups(self, overrides=[("*", "muon")]), lr=0.02, warmup_steps=3)
        if self.attached:
            attach(optimizer, self)
        return optimizer


@pytest.mark.requirement("B8", "B9")
def test_attach_follows_lightning_or_stops_with_the_callbacks_name(tmp_path: Path) -> None:
    module, called, both = Free(), Free(), Free()
    called.attached = False
    trainer(tmp_path, None).fit(module, loader(), loader(2))  # by attach alone
    trainer(tmp_path).fit(called, loader(), loader(2))
    trainer(tmp_path).fit(both, loader(), loader(2))
    assert module.losses == called.losses == both.losses
    assert equal(weights(called), weights(both))
    with pytest.raises(OptimizerModeError, match=r"the callback in amuse_optim\.integrations"):
        trainer(tmp_path, None, accumulate_grad_batches=2).fit(Free(), loader(), loader(2))
    module = Free()
    trainer(tmp_path, accumulate_grad_batches=2).fit(module, loader(), loader(2))
    assert len(module.losses) == 3 * EPOCH
