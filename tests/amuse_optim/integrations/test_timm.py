"""timm's factory makes AMUSE: its groups, its schedulers, its checkpoints."""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE, OptimizerModeError, averaged, averaged_state_dict, param_groups
from amuse_optim.integrations.timm import register
from tests.documented import code_in
from tests.timm_package import timm_in_sight

LR = 0.02


@pytest.fixture(scope="module")
def timm() -> Iterator[ModuleType]:
    with timm_in_sight() as package:
        import timm.data
        import timm.scheduler
        import timm.utils  # noqa: F401

        register()
        yield package


def vit(timm: ModuleType) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, depth=2, embed_dim=24, num_heads=2, num_classes=5
    )


def resnet(timm: ModuleType) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=5)


def convnext(timm: ModuleType) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=5)


MODELS = pytest.mark.parametrize("build", [vit, resnet, convnext])


def settings(optimizer: torch.optim.Optimizer) -> dict[Tensor, dict[str, Any]]:
    """The group of each parameter, without its parameters."""
    return {
        parameter: {key: value for key, value in group.items() if key not in ("params", "param_names")}
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@MODELS
@pytest.mark.parametrize("layer_decay", [None, 0.7])
@pytest.mark.parametrize("fallback", [(), ("*head*", "*fc.*", "pos_embed")], ids=["plain", "fallback"])
def test_groups_are_those_of_timms_muon(
    timm: ModuleType, build: Any, layer_decay: float | None, fallback: tuple[str, ...]
) -> None:
    from timm.optim.muon import _is_suitable_for_muon

    model = build(timm)
    options: dict[str, Any] = {"lr": LR, "weight_decay": 0.05, "layer_decay": layer_decay}
    options |= {"fallback_list": fallback, "fallback_no_weight_decay": bool(fallback)}
    ours = timm.optim.create_optimizer_v2(model, opt="amuse", warmup_steps=10, **options)
    theirs = settings(timm.optim.create_optimizer_v2(model, opt="muon", **options))
    assert isinstance(ours, AMUSE)
    assert settings(ours).keys() == theirs.keys() == set(model.parameters())
    decayed = scaled = 0
    for parameter, group in settings(ours).items():
        muon = theirs[parameter]
        orthogonalized = _is_suitable_for_muon(parameter) and not muon.get("use_fallback", False)
        assert group["direction"] == ("muon" if orthogonalized else "adamw")
        assert group["weight_decay"] == muon["weight_decay"]
        assert group["lr"] == pytest.approx(LR * muon.get("lr_scale", 1.0))
        assert group["momentum"] == muon["momentum"] == 0.9
        decayed += group["weight_decay"] > 0
        scaled += group["lr"] < LR
    assert 0 < decayed < len(theirs)
    assert (scaled > 0) == (layer_decay is not None)
    assert any(group.get("use_fallback") for group in theirs.values()) == bool(fallback)


@MODELS
def test_with_the_model_directions_are_the_librarys(timm: ModuleType, build: Any) -> None:
    model = build(timm)
    optimizer = timm.optim.create_optimizer_v2(
        model, opt="amuse", weight_decay=0.05, momentum=0.95, warmup_steps=10, layer_decay=0.7, model=model,
        lr_rest=0.004, betas=(0.8, 0.95),
    )  # fmt: skip
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    scales = settings(timm.optim.create_optimizer_v2(model, opt="adamw", layer_decay=0.7, weight_decay=0.05))
    for group in param_groups(model):
        for name, parameter in group["params"]:
            made = settings(optimizer)[parameter]
            assert made["direction"] == group["direction"], name
            assert {key: made[key] for key in group if key != "params"} == {
                key: value for key, value in group.items() if key != "params"
            }
            assert made["weight_decay"] == (0.05 if scales[parameter]["weight_decay"] else 0.0)
            base = 0.01 if group["direction"] == "muon" else 0.004
            assert made["lr"] == pytest.approx(base * scales[parameter]["lr_scale"])
            assert (made["auxiliary_momentum"], made["beta2"], made["momentum"]) == (0.8, 0.95, 0.95)


def test_groups_of_ones_own(timm: ModuleType) -> None:
    create = timm.optim.create_optimizer_v2
    model = vit(timm)
    options: dict[str, Any] = {"opt": "amuse", "lr": LR, "warmup_steps": 10}
    ours = settings(create(model, param_group_fn=param_groups, **options))
    assert all(
        ours[parameter]["direction"] == group["direction"]
        for group in param_groups(model)
        for _, parameter in group["params"]
    )
    kernel, bias = nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.ones(8))
    plain = create(iter([kernel, bias]), weight_decay=0.1, **options)
    assert [(g["direction"], g["weight_decay"]) for g in plain.param_groups] == [
        ("muon", 0.1),
        ("adamw", 0.1),
    ]
    groups = [{"params": kernel, "lr": 0.5, "lr_scale": 0.5, "direction": "muon", "use_fallback": True}]
    only = create(groups, **options).param_groups[0]
    assert (only["direction"], only["lr"]) == ("adamw", 0.25)


def test_what_does_not_fit_is_said(timm: ModuleType) -> None:
    create, model = timm.optim.create_optimizer_v2, vit(timm)
    with pytest.raises(TypeError, match="warmup_steps"):
        create(model, opt="amuse")
    with pytest.raises(TypeError, match="did you mean 'nesterov'"):
        create(model, opt="amuse", warmup_steps=10, nesterow=True)
    with pytest.raises(ValueError, match="model must be the model that timm makes the optimizer of"):
        create(model, opt="amuse", warmup_steps=10, model=resnet(timm))


def test_it_is_registered_once(timm: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        register()
    assert not caplog.records
    assert timm.optim.list_optimizers("amuse") == ["amuse"]
    weight = nn.Parameter(torch.ones(4, 4))
    made = timm.optim.get_optimizer_class("amuse")([weight], lr=LR, warmup_steps=10)
    assert isinstance(made, AMUSE)


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_timms_schedulers_scale_each_layer_once(timm: ModuleType, schedule: str) -> None:
    model = vit(timm)
    found = []
    for name, options in (("amuse", {"warmup_steps": 10}), ("adamw", {})):
        optimizer = timm.optim.create_optimizer_v2(model, opt=name, lr=LR, layer_decay=0.7, **options)
        scheduler, _ = timm.scheduler.create_scheduler_v2(
            optimizer, schedule, num_epochs=8, decay_epochs=2, warmup_epochs=2, warmup_lr=0.0
        )
        rates = []
        for epoch in range(8):
            scheduler.step(epoch)
            rates.append([settings(optimizer)[parameter]["lr"] for parameter in model.parameters()])
        found.append(torch.tensor(rates))
    torch.testing.assert_close(*found)
    assert len(found[0][3].unique()) > 2


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 3, 16, 16, generator=generator), torch.randint(5, (8,), generator=generator)


def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    model.train()
    for step in steps:
        images, labels = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


@pytest.mark.requirement("B9")
def test_a_run_with_timms_checkpoints_ships_x_and_resumes_to_the_same_bits(
    timm: ModuleType, tmp_path: Path
) -> None:
    def fresh() -> tuple[nn.Module, AMUSE]:
        model = vit(timm)
        optimizer = timm.optim.create_optimizer_v2(
            model, opt="amuse", lr=LR, weight_decay=0.05, warmup_steps=3, layer_decay=0.8, model=model
        )
        return model, optimizer

    model, optimizer = fresh()
    saver = timm.utils.CheckpointSaver(model, optimizer, checkpoint_dir=str(tmp_path))
    run(model, optimizer, range(6))
    x = averaged_state_dict(model, optimizer)
    with averaged(optimizer):
        best, _ = saver.save_checkpoint(epoch=0, metric=1.0)
    assert best == 1.0
    run(model, optimizer, range(6, 12))

    file = tmp_path / "checkpoint-0.pth.tar"
    shipped = vit(timm)
    timm.models.load_checkpoint(shipped, str(file))
    assert all(torch.equal(value, x[name]) for name, value in shipped.state_dict().items())

    resumed, again = fresh()
    timm.models.resume_checkpoint(resumed, str(file), optimizer=again)
    with pytest.raises(OptimizerModeError):
        run(resumed, again, range(6, 7))
    again.train()
    run(resumed, again, range(6, 12))
    assert all(map(torch.equal, resumed.parameters(), model.parameters()))


def test_the_documented_code_runs(
    timm: ModuleType,  # noqa: ARG001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code_in("docs/trainers.md", "timm"), names)
    assert (tmp_path / "checkpoint-0.pth.tar").exists()
    assert names["optimizer"].mode == "train"
    assert names["optimizer"].param_groups[0]["t"] == 3
