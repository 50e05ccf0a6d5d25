"""Groups as frameworks and users make them: names, groups without names, numbers of other kinds."""

import copy
import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn

from amuse_optim import AMUSE, AMUSEReference, param_groups


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def trained(model: nn.Module) -> AMUSE:
    optimizer = AMUSE(param_groups(model), warmup_steps=4)
    for step in range(3):
        optimizer.zero_grad()
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        model(inputs).square().mean().backward()
        optimizer.step()
    return optimizer


class Inside(nn.Module):
    """A wrapper that calls what it wraps `attribute`."""

    def __init__(self, attribute: str) -> None:
        super().__init__()
        self.add_module(attribute, network())
        self.attribute = attribute


@pytest.mark.requirement("B1", "B13")
@pytest.mark.parametrize(
    "wrapper", ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]
)
@pytest.mark.parametrize("wrapped_first", [True, False])
def test_what_wraps_a_model_does_not_matter_to_its_state(wrapper: str, wrapped_first: bool) -> None:
    plain, wrapped = network(), nn.ModuleDict({"generator": Inside(wrapper)})
    inner = wrapped["generator"].get_submodule(wrapper)

    def groups(outer: bool) -> list[dict[str, Any]]:
        found = param_groups(inner if outer else plain)
        names = {p: name for name, p in (wrapped.named_parameters() if outer else plain.named_parameters())}
        prefix = "" if outer else "generator."
        return [{**g, "params": [(prefix + names[p], p) for _, p in g["params"]]} for g in found]

    source = AMUSE(groups(wrapped_first), warmup_steps=4)
    for group in source.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    source.step()
    target = AMUSE(groups(not wrapped_first), warmup_steps=4)
    target.load_state_dict(source.state_dict())
    kept = [
        [optimizer.state[p]["z"] for group in optimizer.param_groups for p in group["params"]]
        for optimizer in (source, target)
    ]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*kept, strict=True))


def renamed(names: str, saved: str) -> None:
    """Load state saved under some one-letter names into parameters of others."""
    source, target = (
        AMUSE([{"params": [(n, nn.Parameter(torch.ones(2))) for n in each]}], direction="sgd", warmup_steps=2)
        for each in (saved, names)
    )
    target.load_state_dict(source.state_dict())


@pytest.mark.requirement("B6", "B13")
def test_only_parameters_that_changed_places_are_refused() -> None:
    renamed("abc", "xyz")
    renamed("abc", "bcd")  # every name is another parameter's in a longer model: a shift, no exchange
    for names in ("bac", "bca", "xcb"):
        with pytest.raises(ValueError, match="in the order they were saved in"):
            renamed("abc", names)


@pytest.mark.requirement("B6", "B13")
def test_parameters_that_changed_places_between_groups_are_refused() -> None:
    def optimizer(first: str, second: str) -> AMUSE:
        groups = [{"params": [(name, nn.Parameter(torch.ones(2)))]} for name in (first, second)]
        return AMUSE(groups, direction="sgd", warmup_steps=2)

    with pytest.raises(ValueError, match="parameter 'b' where the optimizer has 'a'"):
        optimizer("a", "b").load_state_dict(optimizer("b", "a").state_dict())


@pytest.mark.requirement("B7", "B14")
@pytest.mark.parametrize("kind", [AMUSE, AMUSEReference])
def test_groups_with_and_without_names_stand_side_by_side(kind: Any) -> None:
    model, scale, late = network(), nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(3))
    optimizer = kind([*param_groups(model), {"params": [scale], "direction": "adamw"}], warmup_steps=4)
    optimizer.add_param_group({"params": late, "direction": "sgd"})
    optimizer.add_param_group({"params": [("other", nn.Parameter(torch.zeros(1)))], "direction": "sgd"})
    names = [group.get("param_names") for group in optimizer.param_groups]
    assert names == [["0.weight"], ["0.bias", "2.weight", "2.bias"], None, None, ["other"]]
    for parameter in (scale, late):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert late.ne(0).all()
    if kind is AMUSE:
        again = copy.deepcopy(optimizer)
        again.load_state_dict(optimizer.state_dict())
        assert [group.get("param_names") for group in again.param_groups] == names


@pytest.mark.requirement("B7", "B9", "B14")
@pytest.mark.filterwarnings("ignore")  # of Lightning, about loaders and devices
def test_lightning_thaws_a_backbone(tmp_path: Any) -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

        def training_step(self, x: torch.Tensor, _: int) -> torch.Tensor:
            return self.head(self.backbone(x)).square().mean()

        def configure_optimizers(self) -> AMUSE:
            return AMUSE(param_groups(self), warmup_steps=4, direction="adamw")

    module = Module()
    before = module.backbone.weight.detach().clone()
    loader = torch.utils.data.DataLoader([torch.randn(8, 6) for _ in range(4)], batch_size=None)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=1)],
    )
    trainer.fit(module, loader)
    optimizer = trainer.optimizers[0]
    assert [group["t"] for group in optimizer.param_groups][-1] == 4  # the backbone's, of the second epoch
    assert not torch.equal(module.backbone.weight, before)


@pytest.mark.requirement("B12", "B14")
def test_a_group_may_have_a_name_and_nothing_else_that_nobody_reads() -> None:
    group = {"params": [nn.Parameter(torch.ones(2))], "direction": "sgd", "name": "decoder"}
    optimizer = AMUSE([group], warmup_steps=2)
    assert optimizer.param_groups[0]["name"] == "decoder"
    assert optimizer.state_dict()["param_groups"][0]["name"] == "decoder"
    with pytest.raises(ValueError, match=r"unknown parameter group key 'lr_mult'.*nothing would read it"):
        AMUSE([{**group, "lr_mult": 2.0}], warmup_steps=2)


@pytest.mark.requirement("B3", "B14")
@pytest.mark.parametrize(
    "lr", [np.float64(0.25), np.float32(0.25), torch.tensor(0.25), torch.tensor([0.25]), np.int64(1)]
)
def test_numbers_of_other_kinds_are_numbers(lr: Any) -> None:
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    options: dict[str, Any] = {
        "direction": "sgd",
        "warmup_steps": np.int64(2),
        "weight_decay": np.float32(0.5),
    }
    optimizer, plain = AMUSE([p], lr, **options), AMUSE([q], float(lr), **options)
    for step in range(4):
        if step == 2:  # as a scheduler sets it
            optimizer.param_groups[0]["lr"] = lr * 0.5
            plain.param_groups[0]["lr"] = float(lr) * 0.5
        p.grad, q.grad = torch.ones(2), torch.ones(2)
        optimizer.step()
        plain.step()
    assert torch.equal(p, q)
    assert type(optimizer.param_groups[0]["warmup_steps"]) is int
    stored = io.BytesIO()
    torch.save(optimizer.state_dict(), stored)
    stored.seek(0)
    plain.load_state_dict(torch.load(stored, weights_only=True))
    assert float(plain.param_groups[0]["lr"]) == float(lr) * 0.5


@pytest.mark.requirement("A13", "B14")
def test_a_tensor_of_one_element_is_the_learning_rate_of_a_captured_step() -> None:
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    lr = torch.tensor([0.25])
    options: dict[str, Any] = {"direction": "sgd", "warmup_steps": 2}
    captured = AMUSE([p], lr, **options, nonfinite="ignore", capturable=True)
    plain = AMUSE([q], 0.25, **options)
    for step in range(4):
        if step == 2:
            lr.fill_(0.5)
            plain.param_groups[0]["lr"] = 0.5
        p.grad, q.grad = torch.ones(2), torch.ones(2)
        captured.step()
        plain.step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=0)


@pytest.mark.requirement("B12", "B14")
def test_errors_are_of_the_kinds_of_torchs_own_optimizers() -> None:
    def weight() -> nn.Parameter:
        return nn.Parameter(torch.ones(2))

    p, options = weight(), {"direction": "sgd", "warmup_steps": 2}
    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (
            p,
            {},
            TypeError,
            "params argument given to the optimizer should be an iterable of Tensors or dicts",
        ),
        ([], {}, ValueError, "empty parameter list"),
        ([{"params": p}, {"params": p}], {}, ValueError, "some parameters appear in more than one"),
        ([p], {"lr": torch.tensor([0.001, 0.001])}, ValueError, "Tensor lr must be 1-element"),
        ([p], {"lr": -0.1}, ValueError, "lr must be finite and >= 0"),
        ([p], {"lr": np.array([0.1])}, TypeError, "lr must be a Python number"),
        ([("weight", p), weight()], {}, ValueError, "all optimizer params should be with/without names"),
        ([p * 2], {}, ValueError, "non-leaf"),
        ([1.0], {}, TypeError, "params must be tensors"),
    ]
    for params, more, error, message in cases:
        with pytest.raises(error, match=message):
            AMUSE(params, **options, **more)
    optimizer = AMUSE([p], **options)
    for group, error in (([weight()], TypeError), ({"lr": 0.1}, ValueError)):
        with pytest.raises(error, match="param"):
            optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        repr(optimizer)
