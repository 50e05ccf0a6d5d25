"""`AMUSECallback` beside other optimizers, callbacks and hooks, documented code, `attach` in its place."""

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
from tests.amuse_optim.integrations.plain_loop import (
    Plain,
    equal,
    in_file,
    same_everywhere,
    validation_loss,
    weights,
)
from tests.documented import code_in
from tests.programs.lightning_runs import (
    EPOCH,
    Module,
    every_step,
    inputs,
    loader,
    loss_of,
    make_optimizer,
    network,
    trainer,
)

# What Lightning says about loaders, devices, folders and its own dependencies; what AMUSE says is an error.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:weights were changed"),
    pytest.mark.filterwarnings("error:the loaded state"),
]


@pytest.mark.parametrize("other", [StochasticWeightAveraging(0.1), WeightAveraging(), EMAWeightAveraging()])
def test_other_averages_beside_it_are_refused(tmp_path: Path, other: Callback) -> None:
    with pytest.raises(ValueError, match=f"only callback that averages weights, got {type(other).__name__}"):
        trainer(tmp_path, other).fit(Module(), loader(), loader(2))


def with_optimizers(configure: Any) -> Module:
    module = Module()
    module.configure_optimizers = lambda: configure(module)
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
            wrapped.eval()
            assert equal(weights(self), weights_of(x))
            wrapped.train()
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


def test_the_documented_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code_in("docs/trainers.md", "Lightning"), names)
    assert names["longer"].global_step == 5 * 16
    best = names["best"]
    shipped = names["Regression"].load_from_checkpoint(best.best_model_path).network
    with torch.no_grad():
        loss = functional.mse_loss(shipped(names["inputs"]), names["data"].tensors[1])
    assert loss.item() == pytest.approx(best.best_model_score.item(), rel=1e-5)
    assert list((tmp_path / "normalized").iterdir())
