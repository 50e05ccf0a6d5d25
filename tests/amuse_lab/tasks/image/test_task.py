import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amuse_lab.config import RunConfig
from amuse_lab.errors import ConfigError, DataError
from amuse_lab.optimizers import SGD, Amuse
from amuse_lab.parallel import ALONE, Processes
from amuse_lab.progress import Silence
from amuse_lab.resume import check_changes
from amuse_lab.tasks.image.data import dataset as kinds
from amuse_lab.tasks.image.data.dataset import Dataset
from amuse_lab.tasks.image.data.decoding import Job, Pixels
from amuse_lab.tasks.image.data.sets import DATASETS
from amuse_lab.tasks.image.models import ResNetConfig, ViTConfig, WideResNetConfig
from amuse_lab.tasks.image.task import FineTuningConfig, ImageConfig, ImageTask
from amuse_lab.train import train
from amuse_lab.trainer import Trainer
from tests.amuse_lab.tasks.image.originals import random_images

Sets = Mapping[str, Dataset]
CPU = torch.device("cpu")
MODEL = ResNetConfig((1, 1), (4, 6))


def image_config(data: str = "cifar10", **changes: object) -> ImageConfig:
    return replace(ImageConfig(model=MODEL, data=data, batch=8, refresh_batches=3, workers=1), **changes)


def build(config: ImageConfig, seed: int = 0) -> ImageTask:
    task = config.build(seed=seed, device=CPU)
    assert isinstance(task, ImageTask)
    return task


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left | right)


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "svhn", "mnist", "mnist-5k", "imagenet"])
def test_batches_are_pure_functions_of_seed_and_step(prepared: Sets, data: str) -> None:
    config = image_config(data, folder=None if data != "mnist-5k" else "data/mnist-5k")
    config = replace(config, batch=4)
    task, again, other = build(config), build(config), build(config, seed=1)
    images, labels = task.batch(5)
    assert images.shape == (4, *prepared[data].shape)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    for step in (2, 5):
        for found, expected in zip(again.batch(step), task.batch(step), strict=True):
            assert torch.equal(found, expected)
    parts = [task.batch(5, rows) for rows in (slice(0, 1), slice(1, 4))]
    assert torch.equal(torch.cat([part[0] for part in parts]), images)
    assert torch.equal(torch.cat([part[1] for part in parts]), labels)
    assert not torch.equal(other.batch(5)[0], images)
    assert not torch.equal(task.batch(5 + len(task._order.images))[0], images)


@pytest.mark.usefixtures("prepared")
def test_training_never_sees_what_is_held_out() -> None:
    task = build(image_config())
    seen = {int(image) for step in range(40) for image in task._order.visits(step).images}
    held_out = set(task._held_out.tolist())
    assert len(held_out) == 20
    assert seen == set(range(60)) - held_out
    assert set(build(image_config(), seed=5)._held_out.tolist()) == held_out
    statistics = {int(image) for step in range(40) for image in task._refresh_order.visits(step).images}
    assert statistics == seen


@pytest.mark.usefixtures("prepared")
def test_labels_belong_to_their_images() -> None:
    """The images of this set are random, so each image as it is tells which one it was."""
    task = build(image_config("mnist", batch=40))
    pixels = torch.from_numpy(random_images(80, 28, 28, 1))[:, 14, 8:20, 0].float() / 255
    images, labels = task.batch(0)
    restored = images[:, 0] * 0.3081 + 0.1307
    for image, label in zip(restored, labels.tolist(), strict=True):
        windows = image.unfold(1, 12, 1).flatten(0, 1)  # every row at every shift
        distances = (windows[:, None] - pixels).abs().amax(-1)
        assert distances.min() < 1e-4
        assert int(distances.min(dim=0).values.argmin()) % 10 == label


@pytest.mark.parametrize("part", ["_training", "_test"])
@pytest.mark.usefixtures("prepared")
def test_a_fingerprint_is_that_of_the_labels(part: str) -> None:
    task, changed = build(image_config()), build(image_config())
    assert task.fingerprint == build(image_config(), seed=1).fingerprint
    source = getattr(changed, part)
    source.labels = source.labels.copy()
    source.labels[7] += 1
    assert changed.fingerprint != task.fingerprint


class Scores(nn.Module):
    """Sees the class in nothing but the mean brightness; has statistics that would disturb everything."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 10)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.norm(images).square().mean((2, 3)))
        return scores


def reference_statistics(task: ImageTask, count: int) -> tuple[Tensor, Tensor]:
    """Mean over batches of each batch's mean and unbiased variance, in float64."""
    batches = [task._augmented(task._refresh_order, number)[0].double() for number in range(count)]
    per_channel = [batch.transpose(0, 1).flatten(1) for batch in batches]
    return (
        torch.stack([values.mean(1) for values in per_channel]).mean(0),
        torch.stack([values.var(1) for values in per_channel]).mean(0),
    )


@pytest.mark.usefixtures("prepared")
def test_evaluation_has_statistics_of_the_present_parameters() -> None:
    task = build(image_config())
    model = Scores().eval()
    mean, variance = reference_statistics(task, 3)
    with task.refreshed(model):
        torch.testing.assert_close(model.norm.running_mean.double(), mean, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(model.norm.running_var.double(), variance, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        model.norm.running_mean.fill_(1e6)
    with task.refreshed(model):
        torch.testing.assert_close(model.norm.running_mean.double(), mean, atol=1e-6, rtol=1e-5)
    assert (model.norm.running_mean == 1e6).all()


@pytest.mark.usefixtures("prepared")
def test_statistics_have_images_and_changes_of_their_own() -> None:
    task = build(image_config())
    for step in range(3):
        trained, refreshed = task._order.visits(step), task._refresh_order.visits(step)
        assert trained.images.tolist() != refreshed.images.tolist()
        assert trained.stream != refreshed.stream


@pytest.mark.usefixtures("prepared")
def test_statistics_of_training_come_back_bit_for_bit() -> None:
    task = build(image_config())
    model = task._config.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        task.loss(model, task.batch(step)).backward()
        optimizer.step()
    before = bits(model)
    state = torch.get_rng_state()
    model.eval()
    with task.refreshed(model):
        task.evaluate(model, full=True)
        task.test(model)
    assert same(bits(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in model.modules())

    def fail() -> None:
        with task.refreshed(model):
            assert not same(bits(model), before)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert same(bits(model), before)


def test_measures_are_those_of_the_formulas(prepared: Sets) -> None:
    task = build(image_config())
    model = Scores().eval()
    mean, variance = reference_statistics(task, 3)
    dataset = prepared["cifar10"]
    pixels = torch.from_numpy(random_images(80, 32, 32, 3)).permute(0, 3, 1, 2).double() / 255
    shape = (3, 1, 1)
    images = (pixels - torch.tensor(dataset.mean).view(shape)) / torch.tensor(dataset.std).view(shape)
    normed = (images - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
    features = normed.square().mean((2, 3))
    logits = features @ model.head.weight.double().T + model.head.bias.double()
    labels = torch.arange(80) % 10
    with task.refreshed(model):
        validated, tested = task.evaluate(model, full=True), task.test(model)
    for measured, chosen in ((validated, task._held_out), (tested, np.arange(60, 80))):
        losses = F.cross_entropy(logits[chosen], labels[chosen])
        hits = (logits[chosen].argmax(1) == labels[chosen]).double().mean()
        loss, accuracy = measured.values()
        assert loss == pytest.approx(losses.item(), rel=1e-5)
        assert accuracy == hits.item()
    assert (list(validated), list(tested)) == (["loss", "accuracy"], ["test_loss", "test_accuracy"])


@pytest.mark.usefixtures("prepared")
def test_sets_without_a_test_set_have_nothing_to_test() -> None:
    task = build(image_config("mnist-5k", folder="data/mnist-5k"))
    assert task.test(task._config.build_model()) == {}


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.usefixtures("prepared")
def test_processes_share_an_evaluation(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The sum over all of them of what each has is what one process has alone."""
    monkeypatch.setattr("amuse_lab.tasks.image.task._EVALUATION_BATCH", 3)
    task = build(image_config())
    model = Scores().eval()
    parts: list[Tensor] = []

    def keep(_: Processes, values: Tensor) -> Tensor:
        parts.append(values.clone())
        return values

    monkeypatch.setattr(Processes, "sum", keep)
    expected = task.evaluate(model, full=True, processes=ALONE)
    whole = parts.pop()
    for index in range(count):
        task.evaluate(model, full=True, processes=Processes(index, count))
    assert expected["loss"] == pytest.approx(whole[0].item() / 20)
    torch.testing.assert_close(torch.stack(parts).sum(0), whole)


@pytest.mark.usefixtures("prepared")
def test_losses_are_mean_cross_entropy() -> None:
    task = build(image_config())
    model = Scores()
    batch = task.batch(0)
    logits = model(batch[0]).double()
    expected = -logits.log_softmax(1)[torch.arange(8), batch[1]].mean()
    assert task.loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.usefixtures("prepared")
def test_models_in_bfloat16_are_given_bfloat16() -> None:
    task = build(image_config())
    model = task._config.build_model().bfloat16()
    seen: list[torch.dtype] = []
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    loss = task.loss(model, task.batch(0))
    loss.backward()
    assert loss.dtype == torch.float32
    assert task.evaluate(model.eval(), full=True)["loss"] > 0
    assert set(seen) == {torch.bfloat16}


@pytest.mark.usefixtures("prepared")
def test_sampled_labels_are_those_the_model_believes_in() -> None:
    """The expected loss on them is the entropy of what the model predicts."""
    task = build(image_config())
    model = Scores()
    batch = (task.batch(0)[0], torch.full((8,), -1))
    predicted = model(batch[0]).double().log_softmax(1)
    entropy = -(predicted.exp() * predicted).sum(1).mean().item()
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(2000, 8, 1, generator=generator)
    losses = torch.tensor([task.sampled_loss(model, batch, each).item() for each in uniforms])
    assert losses.mean().item() == pytest.approx(entropy, abs=4 * losses.std().item() / math.sqrt(2000))


@pytest.mark.usefixtures("prepared")
def test_operations_are_counted() -> None:
    """By hand: twice the entries of a kernel for each place, and three times that with the way back."""
    task = build(image_config("mnist", model=ResNetConfig((1, 1), (4, 6))))
    forward = 28 * 28 * 9 * (1 * 4 + 4 * 4 + 4 * 4) + 14 * 14 * (9 * 4 * 6 + 9 * 6 * 6 + 4 * 6) + 6 * 10
    assert task.flops_per_unit == 3 * 2 * forward
    tokens, width = 17, 8
    task = build(image_config("cifar10", model=ViTConfig(patch=8, width=width, depth=1, heads=2)))
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    assert task.flops_per_unit == 6 * (16 * 3 * 64 * width + block + width * 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"refresh_batches": 0}, "refresh_batches must be at least 1, got 0"),
        ({"eval_images": 0}, "eval_images must be at least 1, got 0"),
        ({"workers": 0}, "workers must be None or at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        image_config(**changes)


def test_an_unknown_data_set_is_refused_with_the_nearest(tmp_path: Path) -> None:
    config = image_config(data="cifar", folder=str(tmp_path))
    for act in (lambda: config.check(1), config.build_model, lambda: build(config)):
        with pytest.raises(DataError, match=f"unknown data set 'cifar', and {tmp_path} holds no.*'cifar10'"):
            act()


@pytest.mark.usefixtures("prepared")
def test_statistics_are_computed_once_for_the_same_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last two sets of parameters are remembered, to the bit; a change of one number is noticed."""
    task, fresh = build(image_config()), build(image_config())
    model = task._config.build_model().eval()
    weight = next(model.parameters())
    asked: list[int] = []
    usual = task._training.augmented
    monkeypatch.setattr(task._training, "augmented", lambda *given: (asked.append(1), usual(*given))[1])

    def statistics(of: ImageTask) -> dict[str, Tensor]:
        with torch.no_grad(), of.refreshed(model):
            return bits(model)

    def set_to(value: float) -> None:
        with torch.no_grad():
            weight.view(-1)[0] = value

    computed = []
    for value in (0.5, 0.25, 0.5, 0.25, 0.125, 0.5):
        set_to(value)
        before = bits(model)
        asked.clear()
        assert same(statistics(task), statistics(fresh))
        assert same(bits(model), before)
        computed.append(len(asked))
        fresh = build(image_config())
    assert computed == [3, 3, 0, 0, 3, 3]


@pytest.mark.usefixtures("prepared")
def test_evaluations_during_training_have_a_limit_and_the_final_one_has_none() -> None:
    """The same images at every call, evenly spread; all of them are what the mean over all of them is of."""
    seen: list[int] = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return torch.zeros(len(images), 10)

    task = build(image_config(eval_images=7))
    for full, count in ((False, 7), (True, 20)):
        seen.clear()
        assert task.evaluate(Counting(), full=full)["loss"] == pytest.approx(math.log(10))
        assert sum(seen) == count


def test_too_few_images_to_hold_some_out_are_refused(prepared: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "cifar10", replace(prepared["cifar10"], validation=60))
    with pytest.raises(ConfigError, match="validation must be less than the 60 training images, got 60"):
        build(image_config())


@pytest.mark.usefixtures("prepared")
def test_a_model_starts_from_given_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.manual_seed(3)
    trained = image_config().build_model()
    save_file(trained.state_dict(), path)
    config = image_config(init_from=str(path))
    assert same(config.build_model().state_dict(), trained.state_dict())
    anew = replace(config, data="cifar100", new_head=True).build_model().state_dict()
    assert anew["head.weight"].shape == (100, 6)
    assert torch.equal(anew["stem.0.weight"], trained.state_dict()["stem.0.weight"])
    with pytest.raises(ConfigError, match=r"head.weight is \(10, 6\) there and \(100, 6\) here"):
        replace(config, data="cifar100").build_model()


@pytest.mark.usefixtures("prepared")
def test_fine_tuning_needs_weights() -> None:
    config = FineTuningConfig(model=MODEL, data="cifar10", batch=8)
    with pytest.raises(ConfigError, match=r"init_from must be a safetensors file .*, got None"):
        config.check(1)
    missing = replace(config, init_from="nowhere.safetensors")
    with pytest.raises(DataError, match=r"init_from: nowhere\.safetensors must be .*, but is not there"):
        missing.check(1)
    with pytest.raises(DataError, match=r"init_from: cannot read nowhere\.safetensors"):
        missing.build_model()


@pytest.mark.usefixtures("prepared")
def test_an_evaluation_in_the_loop_changes_nothing(tmp_path: Path) -> None:
    """With AMUSE at y: neither parameters, nor statistics, nor the steps after it."""
    config = RunConfig(
        recipe="test",
        task=image_config(model=WideResNetConfig(depth=10, width=1)),
        optimizer=Amuse(auxiliary="sgd", lr=0.1, warmup_steps=2),
        steps=6,
        runs=tmp_path,
    )

    def run(evaluating: bool) -> Iterator[dict[str, Tensor]]:
        trainer = Trainer.build(config, ALONE, CPU)
        for _ in range(5):
            trainer.advance(look=False)
            if evaluating:
                at_x, at_y = trainer.evaluate()
                assert trainer.step == 1 or at_x != at_y  # x is y in the first step
            yield bits(trainer.model)

    for plain, evaluated in zip(run(False), run(True), strict=True):
        assert same(plain, evaluated)


@pytest.mark.parametrize("ema", [None, 0.5])
@pytest.mark.usefixtures("prepared")
def test_what_a_run_leaves_is_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float | None
) -> None:
    """The shipped model has the measured loss as it is, without another look at the training images."""
    tests: list[int] = []
    test = ImageTask.test

    def counted(task: ImageTask, model: nn.Module, **given: Processes) -> dict[str, float]:
        tests.append(1)
        return test(task, model, **given)

    monkeypatch.setattr(ImageTask, "test", counted)
    task = image_config()
    optimizer = (
        SGD(lr=0.1, warmup_steps=0, ema=ema) if ema else Amuse(auxiliary="sgd", lr=0.1, warmup_steps=2)
    )
    config = RunConfig(
        recipe="test",
        task=task,
        optimizer=optimizer,
        steps=6,
        eval_every=2,
        device="cpu",
        runs=tmp_path / "runs",
    )
    outcome = train(config, Silence())
    assert tests == [1]
    shipped = task.build_model()
    shipped.load_state_dict(load_file(outcome.folder / "model.safetensors"))
    measured = build(task)
    validated, tested = (
        kind(shipped.eval()) for kind in (partial(measured.evaluate, full=True), measured.test)
    )
    summary = outcome.summary
    assert summary["val_loss"] == pytest.approx(validated["loss"], rel=1e-6)
    assert (summary["val_accuracy"], summary["test_accuracy"]) == (
        validated["accuracy"],
        tested["test_accuracy"],
    )
    assert summary["test_loss"] == pytest.approx(tested["test_loss"], rel=1e-6)
    assert summary["val_loss_y"] != summary["val_loss"]


@pytest.mark.usefixtures("prepared")
def test_a_new_head_without_weights_is_a_wrong_request() -> None:
    with pytest.raises(ConfigError, match="new_head must be given together with init_from, got True"):
        image_config(new_head=True).build(seed=0, device=CPU)


class Announced:
    """A decoder that keeps what it is asked for and what it is told of."""

    def __init__(self, size: int, workers: int) -> None:  # noqa: ARG002
        self.size = size
        self.asked: list[tuple[Job, ...]] = []
        self.announced: list[list[tuple[Job, ...]]] = []

    def __call__(self, jobs: Sequence[Job], upcoming: Iterable[Sequence[Job]] = ()) -> Pixels:
        self.asked.append(tuple(jobs))
        self.announced.append([tuple(each) for each in upcoming])
        return np.zeros((len(jobs), self.size, self.size, 3), np.uint8)


@pytest.mark.usefixtures("prepared")
def test_what_a_process_is_going_to_ask_for_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "Decoder", Announced)
    monkeypatch.setattr("amuse_lab.tasks.image.task._EVALUATION_BATCH", 2)
    task = build(image_config("imagenet", batch=4))
    decoder = task._training._decoder
    for step in range(4):
        task.batch(step, slice(2, 4))
    for step in range(2):
        assert decoder.announced[step] == decoder.asked[step + 1 : step + 3]
    assert all(len(jobs) == 2 for jobs in decoder.asked)
    decoder.asked.clear()
    decoder.announced.clear()
    with torch.no_grad():
        task.evaluate(task._config.build_model().eval(), full=True)
    assert decoder.announced == [decoder.asked[1:2], []]


def test_only_the_number_of_decoding_processes_may_change_in_a_run() -> None:
    config = RunConfig(recipe="test", task=image_config(), optimizer=SGD(lr=0.1, warmup_steps=0), steps=6)
    check_changes(config, replace(config, task=replace(config.task, workers=7)))
    with pytest.raises(ConfigError, match=r"task\.batch must stay 8 when a run goes on, got 4"):
        check_changes(config, replace(config, task=replace(config.task, batch=4)))
