"""The Trainer of transformers: lengths as fractions of its steps, and what is refused or said in words."""

import re
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from amuse_optim import AMUSE, param_groups
from amuse_optim.integrations.transformers import AMUSECallback, AMUSEFactory
from tests.amuse_optim.integrations import tiny_trainer as tiny

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def plain() -> Any:
    return tiny.plain_loop()


@pytest.mark.requirement("A14")
def test_a_run_that_is_extended_keeps_its_warm_up(plain: Any, tmp_path: Path) -> None:
    options = tiny.OPTIONS | {"warmup_steps": 0.5}
    tiny.trainer(tmp_path, options=options, max_steps=8).train()
    trainer = tiny.trainer(tmp_path, options=options)
    trainer.train(resume_from_checkpoint=True)
    assert {group["warmup_steps"] for group in trainer.optimizer.param_groups} == {4}
    assert tiny.same(tiny.saved(tmp_path / "checkpoint-12"), plain[0][12])


@pytest.mark.requirement("A14")
@pytest.mark.parametrize(
    ("options", "warmup_steps", "lengths"),
    [
        ({}, 0.2, (3, 3)),  # transformers rounds up
        ({}, 5, (5, 5)),
        ({"t0_steps": 0.5}, 0.25, (3, 6)),
        ({"warmup_steps": 0.25}, 5, (3, 3)),
        ({"warmup_steps": 2, "t0_steps": 7}, 5, (2, 7)),
        ({"warmup_steps": 0.25, "total_steps": 40}, 0, (10, 10)),
        ({"total_steps": 40, "t0_steps": 0.5}, 5, (5, 20)),
        ({"overrides": [("*", {"t0_steps": 0.75})]}, 0.25, (3, 9)),
    ],
)
def test_lengths_are_fractions_of_the_trainers_steps(
    tmp_path: Path, options: dict[str, Any], warmup_steps: float, lengths: tuple[int, int]
) -> None:
    epochs = {"max_steps": -1, "num_train_epochs": 2, "warmup_steps": warmup_steps}
    trainer = tiny.trainer(tmp_path, options=options, save_strategy="no", **epochs)
    trainer.train()
    assert trainer.state.global_step == tiny.STEPS
    for group in trainer.optimizer.param_groups:
        assert (group["warmup_steps"], group["t0_steps"]) == lengths


def test_the_factory_makes_the_anytime_preset(tmp_path: Path) -> None:
    """Its learning rate decays from step 6 of 12 on; what is given beside `anytime` wins."""
    options = tiny.OPTIONS | {"anytime": True, "warmup_steps": 1 / 12, "r": 5.0}
    trainer = tiny.trainer(tmp_path, options=options)
    trainer.train()
    averages, _, _ = tiny.plain_loop(
        make=lambda network: AMUSE.anytime(
            param_groups(network, matrices="normuon", decaying="matrices"),
            lr=0.02,
            warmup_steps=1,
            weight_decay=0.1,
            r=5.0,
        )
    )
    assert {group["lr_decay_from"] for group in trainer.optimizer.param_groups} == {6}
    trainer = tiny.trainer(tmp_path / "muon", options=options | {"matrices": "muon", "decaying": "all"})
    assert {g["direction"] for g in trainer.create_optimizer().param_groups} == {"muon", "adamw"}
    assert tiny.same(tiny.saved(tmp_path / "checkpoint-12"), averages[12])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lr_scheduler_type": "linear"}, ValueError, r"got 'linear': .*lr_scheduler_type=\"constant\""),
        ({"lr_scheduler_type": "cosine"}, ValueError, "got 'cosine'"),
        ({"options": {}}, ValueError, "warmup_steps must be given"),
        ({"options": {"warmup_steps": 0.25, "t0_steps": 1}}, ValueError, "t0_steps"),
        ({"options": {"warmup_steps": 0.1}}, ValueError, "warmup_steps=1.*of the Trainer's 12 steps"),
        ({"options": {"warmup_steps": 3, "betta1": 0.5}}, TypeError, "did you mean 'beta1'"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    trainer = tiny.trainer(tmp_path, **change)
    with pytest.raises(error, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, {"learning_rate": 2e-3}, r"learning_rate=0.002\) is not read.* with lr=0.02: .*{'lr': 0.002}"),
        ({"lr_rest": 0.5}, {"learning_rate": 2e-3}, "with lr=0.02, 0.5:"),
        ({}, {"weight_decay": 0.05}, r"weight_decay=0.05\) is not read.* with weight_decay=0.1:"),
        ({}, {"learning_rate": 0.02, "weight_decay": 0.1}, None),
        ({}, {}, None),
    ],
)
def test_settings_that_are_not_read_are_named(
    tmp_path: Path, options: dict[str, Any], arguments: dict[str, float], message: str | None
) -> None:
    trainer = tiny.trainer(
        tmp_path, options=tiny.OPTIONS | options, max_steps=1, save_strategy="no", **arguments
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.train()
    ours = [str(each.message) for each in said if "is not read" in str(each.message)]
    assert len(ours) == (message is not None)
    assert message is None or re.search(message, ours[0])


def test_a_scheduler_of_ones_own_is_taken(tmp_path: Path) -> None:
    model = tiny.model()
    optimizer = AMUSE(param_groups(model), **tiny.OPTIONS)
    halved = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
    arguments = tiny.arguments(tmp_path, lr_scheduler_type="linear", save_strategy="no")
    callbacks = [AMUSECallback()]
    trainer = tiny.InOrder(
        model, arguments, train_dataset=tiny.rows(), optimizers=(optimizer, halved), callbacks=callbacks
    )
    trainer.train()
    assert optimizer.param_groups[0]["lr_t"] == 0.01


def test_the_factory_asks_for_the_callback_and_the_callback_for_amuse(tmp_path: Path) -> None:
    arguments = tiny.arguments(tmp_path)
    chosen = (AMUSEFactory, tiny.OPTIONS)
    trainer = tiny.InOrder(
        tiny.model(), arguments, train_dataset=tiny.rows(), optimizer_cls_and_kwargs=chosen
    )
    with pytest.raises(RuntimeError, match=r"callbacks=\[AMUSECallback\(\)\]"):
        trainer.train()
    trainer = tiny.InOrder(tiny.model(), arguments, train_dataset=tiny.rows(), callbacks=[AMUSECallback()])
    with pytest.raises(TypeError, match="must be an AMUSE"):
        trainer.train()


class SaveAt2(transformers.TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        control.should_save |= state.global_step == 2


def test_saves_that_others_ask_for(plain: Any, tmp_path: Path) -> None:
    """Before the callback they hold x; after it the warning says that they do not."""
    tiny.trainer(tmp_path, callbacks=[SaveAt2()]).train()
    assert tiny.same(tiny.saved(tmp_path / "checkpoint-2"), plain[0][2])
    trainer = tiny.trainer(tmp_path)
    trainer.add_callback(SaveAt2())
    with pytest.warns(UserWarning, match=r"checkpoint-2 are y.*AMUSECallback last"):
        trainer.train()
    assert tiny.same(tiny.saved(tmp_path / "checkpoint-12"), plain[0][12])


def test_checkpoints_on_sigterm_are_said_to_hold_y(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    trainer = tiny.trainer(tmp_path, save_strategy="no", max_steps=2, enable_jit_checkpoint=True)
    try:
        with pytest.warns(UserWarning, match="enable_jit_checkpoint saves where no callback"):
            trainer.train()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_cannot_work_is_refused_or_undone() -> None:
    """State of one rank's own, which the Trainer does not gather; a state dict that does not fit."""
    with pytest.raises(ValueError, match="shard_state=True cannot be used with the Trainer"):
        AMUSEFactory()(tiny.model(), **tiny.OPTIONS, shard_state=True)
    optimizer = AMUSEFactory()(tiny.model(), **tiny.OPTIONS | {"warmup_steps": 0.5})
    saved = AMUSEFactory()(tiny.model(), **tiny.OPTIONS | {"warmup_steps": 7}).state_dict()
    before = [dict(group) for group in optimizer.param_groups]
    del saved["state"][0]["z"]
    with pytest.raises(ValueError, match="holds no z"):
        optimizer.load_state_dict(saved)
    for group, was in zip(optimizer.param_groups, before, strict=True):
        assert all(group[name] == was[name] for name in ("warmup_steps", "t0_steps", "total_steps"))


def test_hooks_of_steps_run_once() -> None:
    """Also after an `AMUSE` has been built, whose `step` torch has wrapped then."""
    plain = torch.nn.Parameter(torch.ones(2))
    AMUSE([plain], direction="sgd", warmup_steps=2)
    model = torch.nn.Linear(4, 2)
    optimizer = AMUSEFactory()(model, lr=0.1, warmup_steps=2)
    optimizer.waits = False
    optimizer.train()
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    model(torch.ones(4)).sum().backward()
    optimizer.step()
    assert calls == ["before", "after"]


def test_fractions_are_of_the_number_of_steps_that_the_trainer_has_in_the_end(tmp_path: Path) -> None:
    optimizer = AMUSEFactory()(tiny.model(), lr=0.1, warmup_steps=0.25)
    given = AMUSEFactory()(tiny.model(), lr=0.1, warmup_steps=0.25, total_steps=40)
    for steps, lengths in ((100, 25), (1000, 250)):
        for each, expected in ((optimizer, lengths), (given, 10)):
            each.begin(tiny.arguments(tmp_path), steps)
            assert {group["warmup_steps"] for group in each.param_groups} == {expected}
