"""The chunked loss against torch's own, in value, gradients and memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from amuse_lab.bench.memory import PeakMemory
from amuse_lab.tasks.lm import loss
from amuse_lab.tasks.lm.loss import chunked_cross_entropy, head_cross_entropy

CPU = torch.device("cpu")
TOKENS, WIDTH, VOCABULARY = 37, 8, 50


def inputs(dtype: torch.dtype = torch.float32, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH).to(dtype).requires_grad_()
    weight = (scale * torch.randn(VOCABULARY, WIDTH)).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(VOCABULARY, (TOKENS,))


def reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients in float64, by torch."""
    hidden, weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    value = functional.cross_entropy(functional.linear(hidden, weight), targets)
    return value.detach(), *torch.autograd.grad(value, (hidden, weight))


@pytest.mark.parametrize("chunk", [1, 10, TOKENS - 1, TOKENS, 1000])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_value_and_gradients_are_those_of_cross_entropy(chunk: int, scale: float) -> None:
    """Logits of some thousands as well, where probabilities are 0 and 1."""
    hidden, weight, targets = inputs(scale=scale)
    value = chunked_cross_entropy(hidden, weight, targets, chunk=chunk)
    gradients = torch.autograd.grad(value, (hidden, weight))
    for ours, exact in zip((value, *gradients), reference(hidden, weight, targets), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), exact, rtol=2e-6, atol=2e-7 * exact.abs().max().item())


@pytest.mark.parametrize("chunk", [10, TOKENS])
def test_gradients_are_those_of_the_value(chunk: int) -> None:
    hidden, weight, targets = inputs(torch.float64)
    assert torch.autograd.gradcheck(
        lambda *operands: 3 * chunked_cross_entropy(*operands, targets, chunk=chunk), (hidden, weight)
    )


def test_products_are_in_autocasts_dtype_and_the_rest_in_float32() -> None:
    """The same as torch's own under autocast but for the rounding of bfloat16 gradients."""
    hidden, weight, targets = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        plain = functional.cross_entropy(functional.linear(hidden, weight).float(), targets)
        value = chunked_cross_entropy(hidden, weight, targets, chunk=10)
    torch.testing.assert_close(value, plain, rtol=1e-6, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(value, (hidden, weight)),
        torch.autograd.grad(plain, (hidden, weight)),
        strict=True,
    ):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 2**-7 * theirs.norm()


def test_low_precision_weights_get_a_loss_in_float32_and_gradients_in_kind() -> None:
    hidden, weight, targets = inputs(torch.bfloat16)
    value = chunked_cross_entropy(hidden, weight, targets, chunk=10)
    gradients = torch.autograd.grad(value, (hidden, weight))
    exact, *exact_gradients = reference(hidden, weight, targets)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=1e-2)
    for ours, theirs in zip(gradients, exact_gradients, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - theirs).norm() < 2e-2 * theirs.norm()


def test_small_gradients_do_not_vanish_in_float16() -> None:
    """A mean over many tokens divides after the products, not before, where float16 would hold zeros."""
    torch.manual_seed(0)
    tokens = 2**14
    hidden = torch.randn(tokens, 2).half().requires_grad_()
    weight = torch.randn(256, 2).half().requires_grad_()
    targets = torch.randint(256, (tokens,))
    value = chunked_cross_entropy(hidden, weight, targets, chunk=tokens // 4)
    (ours,) = torch.autograd.grad(value, weight)
    _, _, exact = reference(hidden, weight, targets)
    assert (ours - exact).norm() < 1e-2 * exact.norm()


def test_without_gradients_only_the_value_is_made() -> None:
    hidden, weight, targets = inputs()
    value = chunked_cross_entropy(hidden, weight, targets, chunk=10)
    with torch.no_grad():
        assert torch.equal(chunked_cross_entropy(hidden, weight, targets, chunk=10), value)
    frozen = chunked_cross_entropy(hidden.detach(), weight.detach(), targets, chunk=10)
    assert not frozen.requires_grad


@pytest.mark.parametrize("chunk", [10, TOKENS])
def test_second_derivatives_are_those_of_the_gradients(chunk: int) -> None:
    hidden, weight, targets = inputs(torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda *operands: 3 * chunked_cross_entropy(*operands, targets, chunk=chunk), (hidden, weight)
    )
    weight = weight.detach()
    assert torch.autograd.gradgradcheck(
        lambda hidden: chunked_cross_entropy(hidden, weight, targets, chunk=chunk), hidden
    )


def test_hessian_vector_products_by_torch_func_are_those_of_cross_entropy() -> None:
    hidden, weight, targets = (tensor.detach() for tensor in inputs())
    along = torch.ones_like(hidden), torch.linspace(-1, 1, weight.numel()).view_as(weight)

    def products(of: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
        gradient = torch.func.grad(of, argnums=(0, 1))
        _, pull = torch.func.vjp(gradient, *tensors)
        return pull(tuple(tensor.to(tensors[0].dtype) for tensor in along))

    ours = products(lambda h, w: chunked_cross_entropy(h, w, targets, chunk=10), hidden, weight)
    exact = products(
        lambda h, w: functional.cross_entropy(functional.linear(h, w), targets),
        hidden.double(),
        weight.double(),
    )
    for one, other in zip(ours, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 1e-5 * other.norm()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own doing
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_compiles_as_one_graph(backend: str) -> None:
    hidden, weight, targets = inputs()
    compiled = torch.compile(chunked_cross_entropy, backend=backend, fullgraph=True)
    found = torch.autograd.grad(compiled(hidden, weight, targets, chunk=10), (hidden, weight))
    plain = torch.autograd.grad(chunked_cross_entropy(hidden, weight, targets, chunk=10), (hidden, weight))
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other)


def test_memory_is_that_of_one_chunk() -> None:
    """Twice the logits of a chunk and the gradients, where all logits at once need theirs three times."""
    tokens, vocabulary, chunk = 2048, 2048, 64
    hidden = torch.randn(tokens, WIDTH, requires_grad=True)
    weight = torch.randn(vocabulary, WIDTH, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))

    def peak(chunked: bool) -> int:
        hidden.grad = weight.grad = None
        with PeakMemory(CPU) as measured, measured.window():
            if chunked:
                value = chunked_cross_entropy(hidden, weight, targets, chunk=chunk)
            else:
                value = functional.cross_entropy(functional.linear(hidden, weight), targets)
            value.backward()
        return measured.bytes

    gradients = 4 * WIDTH * (tokens + vocabulary)
    assert peak(chunked=True) < 2.1 * 4 * chunk * vocabulary + 3 * gradients
    assert peak(chunked=False) > 2.9 * 4 * tokens * vocabulary


def test_few_logits_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the limit the bits are those of the plain formula; above it, chunks are as large as fits."""
    hidden, weight, targets = inputs()
    shaped = hidden.unflatten(0, (1, TOKENS)), weight, targets.unsqueeze(0)
    plain = functional.cross_entropy((hidden @ weight.T), targets)
    chunks: list[int] = []

    def noted(*operands: Tensor, chunk: int) -> Tensor:
        chunks.append(chunk)
        return chunked_cross_entropy(*operands, chunk=chunk)

    monkeypatch.setattr(loss, "chunked_cross_entropy", noted)
    monkeypatch.setattr(loss, "CHUNK_ENTRIES", TOKENS * VOCABULARY)
    assert torch.equal(head_cross_entropy(*shaped), plain)
    assert chunks == []
    monkeypatch.setattr(loss, "CHUNK_ENTRIES", TOKENS * VOCABULARY - 1)
    torch.testing.assert_close(head_cross_entropy(*shaped), plain)
    assert chunks == [TOKENS - 1]
