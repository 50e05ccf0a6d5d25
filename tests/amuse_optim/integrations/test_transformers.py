"""transformers' Trainer: what it saves and evaluates is x, and a run that was killed goes on with the same bits."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from amuse_optim import AMUSE, averaged_state_dict, param_groups
from amuse_optim.integrations.transformers import AMUSECallback, AMUSEFactory
from tests.amuse_optim.integrations import tiny_trainer as tiny

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
