"""Random life: whatever order things happen in, AMUSE stays with its specification.

The gate runs 100 lives; `make fuzz` 2,000.
"""

import copy
import io
import math
import pickle
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor, nn

from amuse_optim import AMUSE, AMUSEReference, OptimizerModeError, averaged, averaged_state_dict
from amuse_optim.state import averaged_value

SHAPES = {"muon": [(4, 3), (3, 4), (2, 2, 2)], "adamw": [(3,), (2, 2)], "sgd": [(2,)]}


class Life(RuleBasedStateMachine):
    """Two optimizers, the same events."""

    @initialize(
        beta1=st.sampled_from([0.2, 0.6, 0.9]),
        rho=st.sampled_from([0.0, 0.8, 2.0]),
        warmup_steps=st.integers(2, 4),
        decay_at=st.sampled_from(["z", "y"]),
        parity=st.sampled_from(["exact", "published"]),
        nonfinite=st.sampled_from(["raise", "skip"]),
        auxiliary_momentum=st.sampled_from([0.0, 0.9]),
    )
    def begin(self, decay_at: str, **options: Any) -> None:
        self.options = options | {"lr": 0.05, "weight_decay": 0.1, "weight_decay_at": decay_at, "eps": 1e-6}
        self.ours: list[nn.Parameter] = []
        self.theirs: list[nn.Parameter] = []
        self.events = 0
        groups: tuple[list[Any], list[Any]] = ([], [])
        for direction in SHAPES:
            for target, group in zip(groups, self.group(direction), strict=True):
                target.append(group)
        self.optimizer = AMUSE(groups[0], **self.options)
        self.reference = AMUSEReference(groups[1], **self.options)

    def group(self, direction: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """A group for each optimizer, with equal parameters."""
        values = [self.random(shape) for shape in SHAPES[direction]]
        ours, theirs = ([nn.Parameter(v.clone()) for v in values] for _ in range(2))
        self.ours += ours
        self.theirs += theirs
        return {"params": ours, "direction": direction}, {"params": theirs, "direction": direction}

    def random(self, shape: tuple[int, ...]) -> Tensor:
        self.events += 1
        generator = torch.Generator().manual_seed(self.events)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def both(self) -> tuple[AMUSE, AMUSEReference]:
        return self.optimizer, self.reference

    def give_gradients(self, present: list[bool]) -> None:
        for i, (mine, other) in enumerate(zip(self.ours, self.theirs, strict=True)):
            gradient = self.random(tuple(mine.shape)) if present[i % len(present)] else None
            mine.grad = gradient
            other.grad = None if gradient is None else gradient.clone()

    def in_train_mode(self) -> bool:
        return self.optimizer.mode == "train"

    @precondition(in_train_mode)
    @rule(present=st.lists(st.booleans(), min_size=1, max_size=5), times=st.integers(1, 4))
    def step(self, present: list[bool], times: int) -> None:
        for _ in range(times):
            self.give_gradients(present)
            for optimizer in self.both():
                optimizer.step()

    @rule()
    def step_in_the_wrong_mode(self) -> None:
        if self.in_train_mode():
            return
        for optimizer in self.both():
            try:
                optimizer.step()
            except OptimizerModeError:
                continue
            raise AssertionError("step() in eval mode did not raise")

    @precondition(in_train_mode)
    @rule(which=st.integers(0, 20), value=st.sampled_from([float("nan"), float("inf")]))
    def step_with_a_bad_gradient(self, which: int, value: float) -> None:
        self.give_gradients([True])
        for parameters in (self.ours, self.theirs):
            bad = parameters[which % len(parameters)].grad
            assert bad is not None
            bad.view(-1)[0] = value
        for optimizer in self.both():
            try:
                optimizer.step()
                assert self.options["nonfinite"] == "skip"
            except FloatingPointError:
                assert self.options["nonfinite"] == "raise"

    @rule()
    def eval(self) -> None:
        for optimizer in self.both():
            optimizer.eval()

    @rule()
    def train(self) -> None:
        for optimizer in self.both():
            optimizer.train()

    @rule()
    def look_at_the_average(self) -> None:
        before = [p.detach().clone() for p in self.ours]
        with averaged(self.optimizer):
            pass
        model = nn.ParameterList(self.ours)
        averaged_state_dict(model, self.optimizer)
        assert all(torch.equal(a, b) for a, b in zip(before, self.ours, strict=True))

    @rule(lr=st.sampled_from([0.0, 0.01, 0.05, 0.5]))
    def change_lr(self, lr: float) -> None:
        for optimizer in self.both():
            for group in optimizer.param_groups:
                group["lr"] = lr

    @precondition(lambda self: len(self.optimizer.param_groups) < 6)
    @rule(direction=st.sampled_from(sorted(SHAPES)))
    def add_group(self, direction: str) -> None:
        for optimizer, group in zip(self.both(), self.group(direction), strict=True):
            optimizer.add_param_group(group)

    @rule(through=st.sampled_from(["save", "pickle", "deepcopy"]))
    def save_and_load_into_a_new_one(self, through: str) -> None:
        saved: Any = self.optimizer.state_dict()
        if through == "save":
            buffer = io.BytesIO()
            torch.save(saved, buffer)
            buffer.seek(0)
            saved = torch.load(buffer, weights_only=True)
        else:
            saved = pickle.loads(pickle.dumps(saved)) if through == "pickle" else copy.deepcopy(saved)
        groups = [{"params": g["params"], "direction": g["direction"]} for g in self.optimizer.param_groups]
        self.optimizer = AMUSE(groups, **self.options)
        self.optimizer.load_state_dict(saved)

    @invariant()
    def together(self) -> None:
        if not hasattr(self, "optimizer"):
            return
        assert self.optimizer.mode == self.reference.mode
        for ours, theirs in zip(self.optimizer.param_groups, self.reference.param_groups, strict=True):
            for key in ("t", "lr_max", "skipped_steps"):
                assert ours[key] == theirs[key], key
            if ours["t"]:
                for key in ("lr_t", "c_t", "beta_t"):
                    assert math.isclose(ours[key], theirs[key], rel_tol=1e-12), key
        for mine, other in zip(self.ours, self.theirs, strict=True):
            state, specified = self.optimizer.state[mine], self.reference.state[other]
            close(mine, other)
            if state["step"]:
                close(state["z"], specified["z"])
                if self.optimizer.mode == "train":
                    close(averaged_value(mine, state), specified["x"])
                else:
                    close(state["y"], specified["y"])


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-9, atol=1e-9)


TestLife = Life.TestCase
TestLife.settings = settings(
    settings.get_profile(settings.get_current_profile_name()), stateful_step_count=30
)
