"""The models against published sizes, plain functions and other people's implementations."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import transformers
from torch import Tensor, nn

from amuse_lab.errors import ConfigError
from amuse_lab.tasks.image.models import (
    DenseNetConfig,
    ImageModelConfig,
    ResNetConfig,
    ViTConfig,
    WideResNetConfig,
)
from amuse_optim import param_groups

RESNET_50 = ResNetConfig((3, 4, 6, 3), (64, 128, 256, 512), bottleneck=True, large_stem=True)
SMALL: list[ImageModelConfig] = [
    WideResNetConfig(depth=10, width=1),
    ResNetConfig((1, 2), (4, 6)),
    ResNetConfig((2, 1), (4, 6), bottleneck=True, large_stem=True),
    DenseNetConfig((2, 1, 1), growth=4),
    ViTConfig(patch=8, width=8, depth=2, heads=2),
]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("config", "size", "classes", "millions"),
    [
        (WideResNetConfig(16, 8), 32, 10, 10.97),
        (ResNetConfig((3, 3, 3, 3), (96, 192, 384, 768)), 32, 10, 39.24),
        (DenseNetConfig((6, 12, 24, 16), 12), 32, 100, 1.04),
        (RESNET_50, 224, 1000, 25.56),
        (ViTConfig(16, 768, 12, 12), 224, 1000, 86.57),
    ],
)
def test_published_models_have_the_published_sizes(
    config: ImageModelConfig, size: int, classes: int, millions: float
) -> None:
    with torch.device("meta"):
        model = config.build((3, size, size), classes)
        assert model(torch.empty(2, 3, size, size)).shape == (2, classes)
    assert round(parameters(model) / 1e6, 2) == millions


@pytest.mark.parametrize("config", SMALL)
def test_every_parameter_gets_a_gradient_and_only_the_head_is_no_hidden_matrix(
    config: ImageModelConfig,
) -> None:
    torch.manual_seed(0)
    model = config.build((3, 32, 32), 5)
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    muon = {
        name
        for group in param_groups(model, auxiliary="sgd")
        for name, _ in group["params"]
        if group["direction"] == "muon"
    }
    matrices = {name for name, p in model.named_parameters() if p.ndim >= 2}
    assert matrices - muon == {"head.weight"} | ({"cls_token", "pos_embed"} & matrices)


@pytest.mark.parametrize("config", SMALL)
def test_images_with_channels_last_give_the_same(config: ImageModelConfig) -> None:
    torch.manual_seed(0)
    model = config.build((3, 32, 32), 5).double().eval()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    last = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(last), model(images))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WideResNetConfig(depth=12), "depth must be 4 and a multiple of 6, got 12"),
        (lambda: WideResNetConfig(depth=4), "depth must be 4 and a multiple of 6, got 4"),
        (lambda: WideResNetConfig(width=0), "width must be at least 1, got 0"),
        (lambda: ResNetConfig((1, 1), (4,)), r"widths must be one for each of the 2 stages, got \(4,\)"),
        (lambda: ResNetConfig((), ()), r"depths must be one or more numbers of at least 1, got \(\)"),
        (lambda: DenseNetConfig((2, 0)), r"depths must be .* got \(2, 0\)"),
        (lambda: ViTConfig(4, 10, 1, 3), "width must be a multiple of heads = 3, got 10"),
        (lambda: ViTConfig(5, 8, 1, 2).build((1, 28, 28), 10), "patch must be a divisor .* 28 x 28, got 5"),
    ],
)
def test_impossible_sizes_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


class Weights:
    """Hands out tensors in a fixed order, and sees that all are used."""

    def __init__(self, model: nn.Module) -> None:
        self._held: Iterator[tuple[str, Tensor]] = iter(model.state_dict().items())

    def take(self, count: int) -> list[Tensor]:
        taken: list[Tensor] = []
        while len(taken) < count:
            name, value = next(self._held)
            if not name.endswith("num_batches_tracked"):
                taken.append(value)
        return taken

    def finish(self) -> None:
        assert all(name.endswith("num_batches_tracked") for name, _ in self._held)


def normed(x: Tensor, weights: Weights) -> Tensor:
    weight, bias, mean, variance = weights.take(4)
    return F.batch_norm(x, mean, variance, weight, bias)


def unsettled(model: nn.Module) -> nn.Module:
    """Random values everywhere, so that nothing cancels."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
            if name.endswith("running_var"):
                value.abs_().add_(0.5)
    return model.double().eval()


def test_wide_resnet_against_plain_functions() -> None:
    """One block a stage, with the published details: strides in the second convolution, biases everywhere."""
    model = unsettled(WideResNetConfig(depth=10, width=1).build((3, 16, 16), 5))
    weights = Weights(model)
    x = images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    kernel, bias = weights.take(2)
    x = F.conv2d(x, kernel, bias, padding=1)
    for stage, stride in enumerate((1, 2, 2)):
        inside = F.relu(normed(x, weights))
        kernel, bias = weights.take(2)
        inside = F.relu(normed(F.conv2d(inside, kernel, bias, stride=1, padding=1), weights))
        kernel, bias = weights.take(2)
        inside = F.conv2d(inside, kernel, bias, stride=stride, padding=1)
        if stage > 0:  # 16 channels enter the first stage, which has 16 at this width
            kernel, bias = weights.take(2)
            x = F.conv2d(x, kernel, bias, stride=stride)
        x = inside + x
    x = F.relu(normed(x, weights)).mean(dim=(2, 3))
    matrix, bias = weights.take(2)
    weights.finish()
    torch.testing.assert_close(model(images), x @ matrix.T + bias)


def test_wide_resnet_has_the_published_momentum_of_the_last_norm() -> None:
    model = WideResNetConfig(16, 1).build((3, 32, 32), 10)
    momenta = [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert momenta == [0.1] * 12 + [0.9]


def test_densenet_against_plain_functions() -> None:
    model = unsettled(DenseNetConfig((2, 1), growth=4).build((3, 8, 8), 5))
    weights = Weights(model)
    x = images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    (kernel,) = weights.take(1)
    assert kernel.shape == (8, 3, 3, 3)
    x = F.conv2d(x, kernel, padding=1)
    for block, depth in enumerate((2, 1)):
        if block > 0:
            before = x.shape[1]
            x = F.relu(normed(x, weights))
            (kernel,) = weights.take(1)
            x = F.avg_pool2d(F.conv2d(x, kernel), 2)
            assert x.shape[1] == before // 2
        for _ in range(depth):
            found = F.relu(normed(x, weights))
            (kernel,) = weights.take(1)
            assert kernel.shape[0] == 16
            found = F.relu(normed(F.conv2d(found, kernel), weights))
            (kernel,) = weights.take(1)
            x = torch.cat([F.conv2d(found, kernel, padding=1), x], 1)
    x = F.relu(normed(x, weights)).mean(dim=(2, 3))
    matrix, bias = weights.take(2)
    weights.finish()
    torch.testing.assert_close(model(images), x @ matrix.T + bias)


@pytest.mark.parametrize("bottleneck", [True, False])
def test_resnet_against_transformers(bottleneck: bool) -> None:
    """Whose embedding is the large stem; theirs has the shortcut of a block first, ours last."""
    factor = 4 if bottleneck else 1
    theirs = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=4,
            hidden_sizes=[4 * factor, 6 * factor],
            depths=[2, 1],
            layer_type="bottleneck" if bottleneck else "basic",
            num_labels=5,
        )
    )
    unsettled(theirs)
    ours = ResNetConfig((2, 1), (4, 6), bottleneck=bottleneck, large_stem=True).build((3, 64, 64), 5)
    ours.double().eval()
    blocks = [block for stage in theirs.resnet.encoder.stages for block in stage.layers]
    with torch.no_grad():
        for mine, other in [
            (ours.stem, theirs.resnet.embedder),
            *((mine.layers, other.layer) for mine, other in zip(ours.blocks, blocks, strict=True)),
            *((mine.shortcut, other.shortcut) for mine, other in zip(ours.blocks, blocks, strict=True)),
            (ours.head, theirs.classifier),
        ]:
            values = list(other.state_dict().values())
            for parameter, value in zip(mine.state_dict().values(), values, strict=True):
                parameter.copy_(value)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(ours(images), theirs(images).logits)


def test_small_stem_keeps_the_resolution() -> None:
    model = ResNetConfig((1, 1, 1), (4, 6, 8)).build((1, 28, 28), 10)
    sizes: list[tuple[int, ...]] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape[1:])))
    model(torch.zeros(2, 1, 28, 28))
    assert sizes == [(4, 28, 28), (6, 14, 14), (8, 7, 7)]


def test_models_begin_as_published() -> None:
    """He's normal distribution by outgoing connections; timm's 0.02, truncated far outside."""
    torch.manual_seed(0)
    kernel = ResNetConfig((1, 1), (32, 128)).build((3, 32, 32), 10).blocks[1].layers[0][0].weight
    assert kernel.shape == (128, 32, 3, 3)
    assert kernel.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    vit = ViTConfig(patch=4, width=64, depth=1, heads=4).build((1, 28, 28), 10)
    for weight in (vit.blocks[0].attn.qkv.weight, vit.pos_embed):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not vit.cls_token.any()


def test_narrow_shortcuts_stay_in_their_memory() -> None:
    """In a process of its own, which a strided convolution in their place would crash."""
    lines = [
        "import torch",
        "from amuse_lab.tasks.image.models import ResNetConfig",
        "torch.set_num_threads(1)",
        "model = ResNetConfig((1, 1), (4, 4), large_stem=True).build((3, 224, 224), 8)",
        "for _ in range(6):",
        "    images = torch.randn(16, 3, 224, 224).to(memory_format=torch.channels_last)",
        "    model(images).sum().backward()",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
