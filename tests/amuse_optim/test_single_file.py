"""AMUSE as one file takes the steps of the package's AMUSE."""

import importlib.util
import inspect
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from amuse_optim import AMUSE, averaged, reference
from amuse_optim.orthogonalize import QUINTIC, polynomial
from amuse_optim.single_file import single_file

ROOT = Path(__file__).parents[2]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}

# Groups of every direction and layout of matrices, by their shapes.
GROUPS: list[tuple[list[tuple[int, ...]], dict[str, Any]]] = [
    ([(4, 3), (3, 4), (2, 2, 2), (9, 2)], {"direction": "muon"}),
    ([(6, 4)], {"direction": "muon", "split_rows": (2, 4), "scale": "spectral"}),
    ([(4, 3, 2)], {"direction": "muon", "conv_groups": 2, "nesterov": False, "orthogonalize_steps": 4}),
    ([(2, 3, 4)], {"direction": "muon", "stacked": True, "transposed": True}),
    ([(4, 6)], {"direction": "muon", "transposed": True, "num_heads": 2, "momentum": 0.8}),
    ([(3,), (2, 2)], {"direction": "adamw"}),
    ([(4,)], {"direction": "adamw", "auxiliary_momentum": 0.9, "weight_decay": 0.0}),
    ([(2,), ()], {"direction": "sgd"}),
]


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return loaded(tmp_path_factory.mktemp("single_file"))


def loaded(folder: Path) -> ModuleType:
    path = folder / "amuse_as_one_file.py"
    path.write_text(single_file())
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


averaging = st.one_of(
    st.fixed_dictionaries(
        {
            "beta1": st.sampled_from([0.2, 0.6, 0.9]),
            "rho": st.sampled_from([0.0, 0.8, 2.0]),
            "parity": st.sampled_from(["exact", "published"]),
            "beta_clock": st.sampled_from(["window", "steps"]),
        }
    ),
    st.just({"beta1": 0.0, "rho": 0.0}),
)
options = st.fixed_dictionaries(
    {
        "warmup_steps": st.integers(2, 5),
        "t0_steps": st.sampled_from([None, 6]),
        "c_warmup_steps": st.sampled_from([0, 0, 1, 4]),
        "lr_decay": st.sampled_from([0.0, 0.7]),
        "lr_decay_from": st.sampled_from([None, 4]),
        "r": st.sampled_from([0.0, 2.0, 9.0]),
        "weight_lr_power": st.sampled_from([2.0, 0.0]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "weight_decay_at": st.sampled_from(["z", "y"]),
    }
)
events = st.lists(
    st.one_of(
        st.tuples(st.just("steps"), st.integers(1, 4), st.lists(st.booleans(), min_size=1, max_size=5)),
        st.tuples(st.just("lr"), st.sampled_from([0.0, 0.01, 0.05, 0.3])),
        st.sampled_from([("eval",), ("train",), ("averaged",), ("save",), ("group",)]),
    ),
    min_size=3,
    max_size=14,
)


class Pair:
    """The package's optimizer and the file's, with equal parameters and the same events."""

    def __init__(self, module: ModuleType, dtype: torch.dtype, options: dict[str, Any]) -> None:
        self.classes: tuple[Callable[..., Any], ...] = (AMUSE, module.AMUSE)
        self.options, self.dtype, self.tensors = {"lr": 0.05, "eps": 1e-6, **options}, dtype, 0
        self.groups: tuple[list[dict[str, Any]], ...] = ([], [])
        for shapes, given_options in GROUPS:
            for mine, group in zip(self.groups, self.new_group(shapes, given_options), strict=True):
                mine.append(group)
        self.optimizers = [self.build(i) for i in range(2)]

    def new_group(self, shapes: list[tuple[int, ...]], options: dict[str, Any]) -> list[dict[str, Any]]:
        values = [self.random(shape) for shape in shapes]
        return [{"params": [nn.Parameter(v.clone()) for v in values], **options} for _ in range(2)]

    def random(self, shape: tuple[int, ...]) -> Tensor:
        self.tensors += 1
        generator = torch.Generator().manual_seed(self.tensors)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)

    def build(self, i: int) -> Any:
        return self.classes[i]([dict(group) for group in self.groups[i]], **self.options)

    def parameters(self) -> list[tuple[Tensor, Tensor]]:
        ours, theirs = ([p for g in o.param_groups for p in g["params"]] for o in self.optimizers)
        return list(zip(ours, theirs, strict=True))

    def happen(self, event: tuple[Any, ...]) -> None:
        name, *more = event
        if name == "steps" and self.optimizers[0].mode == "train":
            times, present = more
            for _ in range(times):
                for i, pair in enumerate(self.parameters()):
                    gradient = self.random(tuple(pair[0].shape)) if present[i % len(present)] else None
                    for p in pair:
                        p.grad = None if gradient is None else gradient.clone()
                for optimizer in self.optimizers:
                    optimizer.step()
        elif name == "lr":
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = more[0]
        elif name in ("eval", "train"):
            for optimizer in self.optimizers:
                getattr(optimizer, name)()
        elif name == "averaged":
            before = [p.detach().clone() for _, p in self.parameters()]
            with averaged(self.optimizers[0]), self.optimizers[1].averaged():
                self.compare()
            assert all(torch.equal(a, p) for a, (_, p) in zip(before, self.parameters(), strict=True))
        elif name == "save":
            for i, optimizer in enumerate(self.optimizers):
                buffer = io.BytesIO()
                torch.save(optimizer.state_dict(), buffer)
                buffer.seek(0)
                self.optimizers[i] = self.build(i)
                self.optimizers[i].load_state_dict(torch.load(buffer, weights_only=True))
        elif name == "group" and len(self.groups[0]) < len(GROUPS) + 2:
            pairs = zip(self.groups, self.optimizers, self.new_group(*GROUPS[5]), strict=True)
            for mine, optimizer, group in pairs:
                mine.append(group)
                optimizer.add_param_group(dict(group))

    def compare(self) -> None:
        tolerance = TOLERANCE[self.dtype]
        assert self.optimizers[0].mode == self.optimizers[1].mode
        for ours, theirs in self.parameters():
            torch.testing.assert_close(theirs.detach(), ours.detach(), rtol=tolerance, atol=tolerance)
            state, other = (o.state[p] for o, p in zip(self.optimizers, (ours, theirs), strict=True))
            if state["step"]:
                # One sequence beside the parameter, and the same one.
                assert {k for k in state if k != "y"} == {k for k in other if k != "y"}
                for key in state.keys() & {"z", "x", "momentum_buffer", "exp_avg_sq", "exp_avg"}:
                    torch.testing.assert_close(other[key], state[key], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_takes_the_steps_of_the_package(module: ModuleType, dtype: torch.dtype) -> None:
    @settings(max_examples=settings.default.max_examples // 3)
    @given(options=options, averaging=averaging, events=events)
    def live(options: dict[str, Any], averaging: dict[str, Any], events: list[tuple[Any, ...]]) -> None:
        options = options | averaging
        if options["rho"] > 0 and options["c_warmup_steps"] == 4:
            options["t0_steps"] = 6
        if options["rho"] > 0 and options["warmup_steps"] < options["c_warmup_steps"] + 2:
            options["t0_steps"] = 6
        pair = Pair(module, dtype, options)
        for event in (("steps", 2, [True]), *events, ("train",), ("steps", 3, [True])):
            pair.happen(event)
            pair.compare()
        pair.happen(("eval",))
        pair.compare()

    live()


@pytest.mark.parametrize(
    "options",
    [{"lr_decay": 0.6}, {"lr_decay": 0.6, "beta1": 0.0, "rho": 0.0, "r": 9.0}, {"rho": 1.5}],
    ids=["decay", "decay at z", "rising beta"],
)
def test_takes_the_steps_of_a_longer_life(module: ModuleType, options: dict[str, Any]) -> None:
    """So long that what begins after several warm-ups has begun."""
    pair = Pair(module, torch.float64, {"warmup_steps": 2, **options})
    for _ in range(10):
        pair.happen(("steps", 4, [True, True, False]))
        pair.compare()


def test_goes_on_to_the_same_bits_after_loading(module: ModuleType) -> None:
    ends = []
    for reload in (False, True):
        pair = Pair(module, torch.float64, {"warmup_steps": 3, "weight_decay": 0.1})
        pair.happen(("steps", 6, [True, False]))
        if reload:
            pair.happen(("eval",))
            pair.happen(("save",))
            pair.happen(("train",))
        pair.happen(("steps", 4, [True]))
        ends.append([theirs.detach().clone() for _, theirs in pair.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_closures_and_schedulers(module: ModuleType) -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = module.AMUSE([parameter], lr=0.1, direction="sgd", warmup_steps=2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    scheduler.step()
    optimizer.step(closure)
    assert optimizer.param_groups[0]["lr_t"] == 0.05


def test_a_zero_matrix_stays(module: ModuleType) -> None:
    zero = torch.zeros(3, 2)
    factor = module.orthogonalize(zero, method="quintic", steps=5, dtype=None)
    assert torch.equal(factor, zero)


def test_refuses_what_it_does_not_have(module: ModuleType) -> None:
    parameter = nn.Parameter(torch.ones(3, 2))
    build = module.AMUSE
    good = {"direction": "muon", "warmup_steps": 4}
    with pytest.raises(TypeError, match="unknown options \\['nonfinite'\\]"):
        build([parameter], **good, nonfinite="skip")
    for wrong, message in (
        ({"direction": "normuon"}, "a direction of \\['adamw', 'muon', 'sgd'\\]"),
        ({"warmup_steps": None}, "say warmup_steps"),
        ({"orthogonalize": "exact"}, "orthogonalize must be 'quintic'"),
        ({"warmup_steps": 1}, "t0_steps must be >= 2"),
        ({"beta1": 0.0}, "beta1 must be > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            build([parameter], **(good | wrong))
    optimizer = build([parameter], **good)
    with pytest.raises(TypeError, match="float32 or float64"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3, 2, dtype=torch.bfloat16))]})
    assert len(optimizer.param_groups) == 1
    optimizer.eval()
    with pytest.raises(RuntimeError, match=re.escape("call optimizer.train() first")):
        optimizer.step()


def test_needs_torch_alone_and_is_what_the_command_prints(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "amuse_optim.single_file"]
    environment = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    assert printed == single_file()
    (tmp_path / "amuse.py").write_text(printed)
    program = """
import sys

before = set(sys.modules)
import torch

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "amuse_optim":
            raise ImportError(name)

sys.meta_path.insert(0, Blocker())
from amuse import AMUSE

weight = torch.nn.Parameter(torch.eye(3))
optimizer = AMUSE([weight], direction="muon", warmup_steps=2)
(weight**3).sum().backward()
optimizer.step()
with optimizer.averaged():
    assert (weight.diagonal() < 1).all()
print("done")
"""
    environment = {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert ran.stdout == "done\n"


def test_is_short_and_formatted(tmp_path: Path) -> None:
    path = tmp_path / "amuse.py"
    path.write_text(single_file())
    assert len(single_file().splitlines()) < 300
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["format", "--check"], ["check"]):
        arguments = [*ruff, *command, "--config", str(ROOT / "pyproject.toml"), str(path)]
        ran = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout


def test_holds_the_code_of_the_package() -> None:
    """Every line of code of the equations, in order, and nothing but docstrings cut."""
    text = single_file()
    for function in (
        reference.AMUSEReference._step_parameter,
        reference._advance_schedule,
        reference.adamw,
        reference.muon,
        polynomial,
    ):
        source = re.sub(r'"""(.*?)\n.*?"""', r'"""\1"""', inspect.getsource(function), flags=re.DOTALL)
        assert source in text, function.__name__
    assert f"QUINTIC = {QUINTIC}" in text
