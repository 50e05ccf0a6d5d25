import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_lab.config import RunConfig
from amuse_lab.errors import DataError, TrainingError
from amuse_lab.optimizers import Sophia
from amuse_lab.parallel import ALONE, Processes
from amuse_lab.progress import Silence
from amuse_lab.tasks.lm.bundled import BUNDLED
from amuse_lab.tasks.lm.task import LanguageModelTask
from amuse_lab.timing import Stopwatch
from amuse_lab.train import train
from amuse_lab.trainer import Trainer
from tests.amuse_lab.tiny_text import tiny_text

Make = Callable[..., RunConfig]
CPU = torch.device("cpu")


@pytest.fixture
def wide(tiny: Make) -> Make:
    """The tiny run with a batch of 6."""
    return lambda optimizer="amuse", **changes: tiny(
        optimizer, **{"task": replace(tiny().task, batch=6)} | changes
    )


def trainer(config: RunConfig, processes: Processes = ALONE) -> Trainer:
    return Trainer.build(config, processes, CPU)


def gradients(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients that the optimizer is given in the first step."""
    learning = trainer(config)
    found: dict[str, Tensor] = {}

    def step() -> None:
        found.update({name: p.grad.clone() for name, p in learning.model.named_parameters()})

    monkeypatch.setattr(learning.optimizer, "step", step)
    learning.advance(look=True)
    return learning.take_losses(), found


@pytest.mark.parametrize("micro_batch", [1, 4, 6, 100])
@pytest.mark.parametrize("clip", [None, 0.01])
def test_microbatches_add_up_to_the_mean_over_the_batch(
    wide: Make, monkeypatch: pytest.MonkeyPatch, micro_batch: int, clip: float | None
) -> None:
    """Also where the last microbatch is smaller; and clipping sees the whole gradient."""
    config = wide(clip=clip)
    reference = trainer(config)
    model = reference.model.double()
    windows = reference.task.batch(0)
    expected = reference.task.loss(model, windows)
    expected.backward()
    if clip is not None:
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad *= clip / norm
    loss, found = gradients(replace(config, micro_batch=micro_batch), monkeypatch)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name].double(), parameter.grad, rtol=1e-4, atol=1e-8)


def test_no_forward_is_larger_than_a_microbatch(wide: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = LanguageModelTask.loss
    sizes: list[int] = []

    def spy(task: LanguageModelTask, model: nn.Module, batch: Any) -> Tensor:
        sizes.append(len(batch[0]))
        return usual(task, model, batch)

    monkeypatch.setattr(LanguageModelTask, "loss", spy)
    trainer(wide(micro_batch=4)).advance(look=True)
    assert sizes == [4, 2]


class Recorded(Processes):
    """One of several processes; sums are taken by hand."""

    def sum(self, values: Tensor) -> Tensor:
        return values


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("full", [True, False])
def test_processes_divide_an_evaluation(tiny: Make, count: int, full: bool) -> None:
    """Their parts add up to what one process measures, with as many forwards on each of them."""
    config = replace(tiny().task, eval_windows=7)
    task = config.build(seed=0, device=CPU)
    model = config.build_model()
    forwards: list[int] = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    parts, calls = [], []
    for index in range(count):
        forwards.clear()
        parts.append(task.evaluate(model, full=full, processes=Recorded(index, count))["loss"])
        calls.append(len(forwards))
    assert sum(parts) == pytest.approx(task.evaluate(model, full=full)["loss"], rel=1e-6)
    assert len(set(calls)) == 1


@pytest.mark.parametrize(("precision", "weights"), [("amp-bf16", torch.float32), ("bf16", torch.bfloat16)])
def test_low_precision_computes_in_bfloat16(tiny: Make, precision: str, weights: torch.dtype) -> None:
    seen: list[torch.dtype] = []
    learning = trainer(tiny(precision=precision))
    projection = learning.model.get_submodule("blocks.0.mlp.projection")
    projection.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    learning.advance(look=True)
    learning.evaluate()
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in learning.model.parameters()} == {weights}
    plain = trainer(tiny())
    plain.advance(look=True)
    assert learning.take_losses() == pytest.approx(plain.take_losses(), rel=1e-2)


def test_compiling_changes_no_result(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the backend that runs the traced operations as they are: inductor takes a minute."""
    compiled: list[nn.Module] = []

    def compile_eagerly(module: nn.Module) -> None:
        compiled.append(module)
        usual(module, backend="eager")

    usual = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", compile_eagerly)
    fast, plain = trainer(tiny(compile=True)), trainer(tiny())
    assert compiled == [fast.model]
    for _ in range(2):
        fast.advance(look=True)
        plain.advance(look=True)
    assert fast.take_losses() == pytest.approx(plain.take_losses(), rel=1e-5)
    assert fast.sample() == plain.sample()
    assert fast.state_dict()["model"].keys() == plain.state_dict()["model"].keys()


def test_curvature_is_estimated_when_it_is_wanted(tiny: Make) -> None:
    """On labels from the model, before the step's own gradient, the same again from the same seed."""

    def observed(micro_batch: int | None) -> list[Tensor]:
        learning = trainer(tiny(micro_batch=micro_batch))
        found: list[Tensor] = []
        calls: list[str] = []

        class Curious:
            wants_curvature = property(lambda _: "observe" not in calls)

            def watch(self) -> None:
                calls.append("watch")

            def observe_curvature(self) -> None:
                calls.append("observe")
                found.append(parameter.grad.clone())

            def step(self) -> None:
                calls.append("step")
                found.append(parameter.grad.clone())

            def zero_grad(self) -> None:
                learning.model.zero_grad()

        parameter = learning.model.get_parameter("embedding.weight")
        learning.optimizer = Curious()
        learning.advance(look=True)
        learning.advance(look=True)
        assert calls == ["observe", "watch", "step", "watch", "step"]
        return found

    curvature, first, second = observed(None)
    assert not torch.equal(curvature, first)
    torch.testing.assert_close(observed(None), [curvature, first, second], rtol=0, atol=0)
    torch.testing.assert_close(observed(1)[1], first)


def test_sampled_labels_follow_the_model(tiny: Make) -> None:
    """The gradient of the loss on its own labels vanishes in the mean (Bartlett), on given ones not."""
    config = tiny().task
    task, model = config.build(seed=0, device=CPU), config.build_model()
    generator = torch.Generator().manual_seed(0)
    batch = task.batch(0)
    weight = model.norm.weight
    total = torch.zeros_like(weight)
    for _ in range(400):
        uniforms = torch.rand(batch[1].shape, generator=generator)
        (gradient,) = torch.autograd.grad(task.sampled_loss(model, batch, uniforms), weight)
        total += gradient / 400
    (given,) = torch.autograd.grad(task.loss(model, batch), weight)
    assert total.norm() < 0.1 * given.norm()


def test_a_run_goes_on_with_its_own_data_only(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte of the text is enough to tell; a checkpoint that does not tell is taken at its word."""
    config = tiny("amuse")
    first = train(replace(config, steps=2), Silence())
    other = tiny_text(b"To be, or not to be. " * 199 + b"To be, or not to be! ")
    before = {path: path.read_bytes() for path in first.folder.glob("*.*")}
    with monkeypatch.context() as changed:
        changed.setitem(BUNDLED, "tiny", other)
        changed.setenv("AMUSE_LAB_DATA", str(config.runs / "data"))
        with pytest.raises(DataError, match=r"^the data is not what this run began with: [^\n]+$"):
            train(config, Silence(), resume=first.folder)
        assert {path: path.read_bytes() for path in first.folder.glob("*.*")} == before
        elsewhere = trainer(config)
    train(config, Silence(), resume=first.folder)

    learning = trainer(config)
    learning.advance(look=True)
    state = learning.state_dict()
    untouched = [parameter.clone() for parameter in elsewhere.model.parameters()]
    with pytest.raises(DataError):
        elsewhere.load_state_dict(state)
    assert elsewhere.step == 0
    assert all(map(torch.equal, elsewhere.model.parameters(), untouched))
    del state["data"]
    elsewhere.load_state_dict(state)
    assert elsewhere.step == 1


def sampled_gradients(config: RunConfig, processes: Processes = ALONE, step: int = 0) -> list[Tensor]:
    """Gradients of the mean loss on sampled labels, one process's part."""
    learning = trainer(config)
    learning._processes = processes  # without the others, whose gradients DDP would wait for
    learning.step = step
    learning._accumulate(learning._sampled_loss())
    return [parameter.grad for parameter in learning.model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("micro_batch", [None, 1, 2])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_labels_are_the_same_whoever_samples_them(wide: Make, count: int, micro_batch: int | None) -> None:
    config = wide(micro_batch=micro_batch)
    parts = [sampled_gradients(config, Processes(index, count)) for index in range(count)]
    for whole, *of_processes in zip(sampled_gradients(wide()), *parts, strict=True):
        torch.testing.assert_close(sum(of_processes) / count, whole, rtol=1e-4, atol=1e-7)


def test_every_step_and_seed_samples_other_labels(wide: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same batch, so that nothing else makes the difference."""
    usual, config = LanguageModelTask.batch, wide()
    monkeypatch.setattr(LanguageModelTask, "batch", lambda task, _, rows: usual(task, 0, rows))
    first, again, later = (sampled_gradients(config, step=step)[0] for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert (later - first).norm() > 0.1 * first.norm()
    learning = trainer(config)
    kept = []
    for seed in (0, 1):
        learning.config = replace(config, seed=seed)
        learning.model.zero_grad()
        learning._accumulate(learning._sampled_loss())
        kept.append(learning.model.get_parameter("embedding.weight").grad.clone())
    assert (kept[1] - kept[0]).norm() > 0.1 * kept[0].norm()


def test_curvature_leaves_no_gradients_behind(wide: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that wants curvature is taken with the gradients of one that wants none."""
    sophia = Sophia(lr=0.01, warmup_steps=2, curvature_batch=96)
    config = wide("adamw", clip=None)
    assert trainer(replace(config, optimizer=sophia)).optimizer.wants_curvature
    expected = gradients(config, monkeypatch)
    found = gradients(replace(config, optimizer=sophia), monkeypatch)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_curvature_counts_tokens(tiny: Make) -> None:
    """Squared gradients times the tokens of a batch are the Gauss-Newton diagonal of the head, in the mean.

    For logits W h it is the mean over tokens of p (1 - p) times h squared.
    """
    task = tiny().task
    config = tiny(task=replace(task, model=replace(task.model, tied=False)))
    learning = trainer(config)
    model, weight = learning.model, learning.model.head_weight
    squared, exact = torch.zeros_like(weight), torch.zeros_like(weight, dtype=torch.float64)
    for step in range(60):
        learning.step = step
        learning._accumulate(learning._sampled_loss())
        squared += weight.grad.square()
        model.zero_grad()
        with torch.no_grad():
            hidden = model.hidden(learning.task.batch(step)[0]).flatten(0, 1).double()
            p = (hidden @ weight.double().T).softmax(-1)
            exact += (p * (1 - p)).T @ hidden.square() / len(hidden)
    assert learning.task.units_per_step == 32
    assert exact.sum().item() == pytest.approx(32 * squared.sum().item(), rel=0.05)


@pytest.mark.parametrize("act", ["advance", "state_dict"])
def test_losses_that_nobody_has_looked_at_are_not_lost(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """On a GPU they stay there until a line or a checkpoint wants them."""
    usual = LanguageModelTask.loss

    def looked(factors: list[float]) -> list[float]:
        following = iter(factors)
        monkeypatch.setattr(LanguageModelTask, "loss", lambda *given: usual(*given) * next(following))
        learning = trainer(tiny("adamw"))
        learning._always_looks = False
        for _ in range(3):
            learning.advance(look=False)
        assert learning.losses == []
        if act == "advance":
            learning.advance(look=True)
        else:
            learning.state_dict()
        return learning.losses

    count = 4 if act == "advance" else 3
    each = trainer(tiny("adamw"))
    for _ in range(count):
        each.advance(look=True)
    assert looked([1.0] * 4) == each.losses
    with pytest.raises(TrainingError, match=r"^the training loss of step 2 is nan"):
        looked([1.0, math.nan, 1.0, 1.0])


def test_parts_of_the_time_add_up(tiny: Make) -> None:
    learning = trainer(tiny())
    for _ in range(3):
        learning.advance(look=True)
    parts = learning.clock.read()
    assert set(parts) == {"data", "forward_backward", "optimizer"}
    assert all(seconds > 0 for seconds in parts.values())


def test_a_stopwatch_counts_laps(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter((1.0, 3.0, 4.0, 10.0, 10.5))
    monkeypatch.setattr("time.perf_counter", lambda: next(moments))
    watch = Stopwatch(CPU)
    watch.start()
    watch.lap("a")
    watch.lap("b")
    watch.start()
    watch.lap("a")
    assert watch.read() == {"a": 2.5, "b": 1.0}


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU; test_parts_of_the_time_add_up is the CPU's"
)
def test_a_gpu_is_measured_in_its_own_time(tiny: Make) -> None:
    learning = Trainer.build(tiny(device="cuda", precision="amp-bf16"), ALONE, torch.device("cuda"))
    for _ in range(3):
        learning.advance(look=False)
    assert learning.losses == []
    parts = learning.clock.read()
    assert set(parts) == {"data", "forward_backward", "optimizer"}
    assert all(seconds > 0 for seconds in parts.values())
    learning.advance(look=True)
    assert len(learning.losses) == 4
