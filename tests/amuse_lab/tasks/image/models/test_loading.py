"""Starting from weights: those of a run, and a vision transformer in timm's names."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from amuse_lab.errors import ConfigError, DataError
from amuse_lab.tasks.image.models import ResNetConfig, ViTConfig
from amuse_lab.tasks.image.models.loading import load_weights

VIT = ViTConfig(patch=8, width=12, depth=2, heads=3)


def vit(classes: int = 5, seed: int = 7) -> nn.Module:
    torch.manual_seed(seed)
    return VIT.build((3, 32, 32), classes)


def peer() -> transformers.ViTForImageClassification:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        num_labels=5,
        layer_norm_eps=1e-6,
    )
    model = transformers.ViTForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def in_names_of_timm(model: transformers.ViTForImageClassification) -> dict[str, Tensor]:
    """What timm calls the weights of the same model."""
    theirs = {name.removeprefix("vit."): value.clone() for name, value in model.state_dict().items()}
    sources = {
        "patch_embed.proj": ["embeddings.patch_embeddings.projection"],
        "norm": ["layernorm"],
        "head": ["classifier"],
    }
    for block in (0, 1):
        here, there = f"blocks.{block}", f"layers.{block}"
        sources |= {
            f"{here}.norm1": [f"{there}.layernorm_before"],
            f"{here}.attn.qkv": [f"{there}.attention.{part}_proj" for part in "qkv"],
            f"{here}.attn.proj": [f"{there}.attention.o_proj"],
            f"{here}.norm2": [f"{there}.layernorm_after"],
            f"{here}.mlp.fc1": [f"{there}.mlp.fc1"],
            f"{here}.mlp.fc2": [f"{there}.mlp.fc2"],
        }
    renamed = {
        f"{name}.{end}": torch.cat([theirs.pop(f"{part}.{end}") for part in parts])
        for name, parts in sources.items()
        for end in ("weight", "bias")
    }
    renamed["cls_token"] = theirs.pop("embeddings.cls_token")
    renamed["pos_embed"] = theirs.pop("embeddings.position_embeddings")
    assert not theirs
    return renamed


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return in_names_of_timm(peer())


def test_weights_in_timm_s_names_compute_what_they_compute_elsewhere(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    save_file(weights, tmp_path / "vit.safetensors")
    model = vit().eval()
    load_weights(model, tmp_path / "vit.safetensors", new_head=False)
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model(images), peer()(images).logits, atol=1e-5, rtol=1e-4)


def test_masked_autoencoder_with_a_new_head(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """It has a decoder and no classifier, in half precision."""
    encoder = {name: value.half() for name, value in weights.items() if not name.startswith("head.")}
    decoder = {"mask_token": torch.zeros(1, 1, 6), "decoder_blocks.0.norm1.weight": torch.zeros(6)}
    save_file(encoder | decoder, tmp_path / "mae.safetensors")
    model, untrained = vit(classes=3), vit(classes=3)
    load_weights(model, tmp_path / "mae.safetensors", new_head=True)
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        expected = untrained.state_dict()[name] if name.startswith("head.") else encoder[name].float()
        assert torch.equal(value, expected), name


def test_a_head_of_other_classes_can_be_passed_over(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, tmp_path / "vit.safetensors")
    model = vit(classes=8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = (
        r"^init_from must be weights of this model, but in .*vit.safetensors head.weight is \(5, 12\) there "
        r"and \(8, 12\) here; head.bias is \(5,\) there and \(8,\) here; --task.new-head starts the "
        r"classifier anew$"
    )
    with pytest.raises(ConfigError, match=expected):
        load_weights(model, tmp_path / "vit.safetensors", new_head=False)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    load_weights(model, tmp_path / "vit.safetensors", new_head=True)
    assert torch.equal(model.state_dict()["head.weight"], before["head.weight"])
    assert torch.equal(model.state_dict()["norm.bias"], weights["norm.bias"])


def test_other_models_are_refused_with_what_is_different(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    del weights["norm.bias"]
    weights["fc_norm.weight"] = torch.zeros(12)
    save_file(weights, tmp_path / "vit.safetensors")
    with pytest.raises(ConfigError, match=r"norm.bias is missing there; fc_norm.weight is unknown here$"):
        load_weights(vit(), tmp_path / "vit.safetensors", new_head=False)
    resnet = ResNetConfig((1,), (4,)).build((3, 32, 32), 5)
    with pytest.raises(ConfigError, match=r"; and \d+ more; --task.new-head"):
        load_weights(resnet, tmp_path / "vit.safetensors", new_head=False)


def test_weights_and_statistics_of_a_run(tmp_path: Path) -> None:
    trained = ResNetConfig((1,), (4,)).build((3, 32, 32), 5)
    trained(torch.randn(2, 3, 32, 32))
    state = {name: value.contiguous() for name, value in trained.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    fresh = ResNetConfig((1,), (4,)).build((3, 32, 32), 5)
    load_weights(fresh, tmp_path / "model.safetensors", new_head=False)
    assert all(torch.equal(state[name], value) for name, value in fresh.state_dict().items())


@pytest.mark.parametrize("content", [None, b"", b"\x80\x02}q\x00.", b"\xff" * 100])
def test_files_that_are_no_safetensors_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^init_from: cannot read {path} as safetensors: ") as caught:
        load_weights(vit(), path, new_head=False)
    assert "\n" not in str(caught.value)
