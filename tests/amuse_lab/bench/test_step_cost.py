"""What a step may ask of torch, in numbers that are the same on every machine."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import nn

from amuse_lab.bench.counting import OperationCounter
from amuse_lab.bench.memory import PeakMemory
from amuse_lab.bench.naive import Naive
from amuse_lab.bench.sizes import SIZES, gradients
from amuse_lab.tasks.lm.model import Llama, ModelConfig
from amuse_optim import AMUSE, param_groups


def ready(model: nn.Module, **options: object) -> AMUSE:
    """An optimizer that has taken two steps."""
    optimizer = AMUSE(param_groups(model), lr=1e-3, warmup_steps=2, weight_decay=0.1, **options)
    _with_gradients(model)
    for _ in range(2):
        optimizer.step()
    return optimizer


def _with_gradients(model: nn.Module) -> None:
    parameters = list(model.parameters())
    for parameter, gradient in zip(parameters, gradients(parameters, 0), strict=True):
        parameter.grad = gradient


def counted(step: Callable[[], object]) -> OperationCounter:
    with OperationCounter() as counter:
        step()
    return counter


def llama(depth: int) -> Llama:
    return Llama(ModelConfig(n_embd=32, n_head=2, n_layer=depth, context=16, vocabulary=64, mlp_multiple=32))


@pytest.mark.requirement("D2")
def test_products_moved_elements_and_operations_of_a_step() -> None:
    """Of the 0.9 M Llama, against the naive form: the same polynomial of the singular values for less."""
    model = SIZES["1m"].build()
    ours = counted(ready(model).step)
    groups = [{**group, "params": [p for _, p in group["params"]]} for group in param_groups(model)]
    naive = Naive(groups, lr=1e-3, weight_decay=0.1)
    naive.step()
    theirs = counted(naive.step)

    # Per matrix of m x n, in units of 2 m^2 n and 2 m^3, the plain form needs 10 and 5. The Gram form, from
    # n = 1.5 m on, forms A and multiplies by it three times each, 6; and 5 squares and 3 for each pair, 11.
    expected = 0
    for group in param_groups(model):
        for _, parameter in group["params"] if group["direction"] == "muon" else ():
            m, n = sorted(parameter.shape)
            expected += 2 * (6 * m * m * n + 11 * m**3 if n >= 1.5 * m else 10 * m * m * n + 5 * m**3)
    assert ours.flops == expected
    assert ours.flops < 0.9 * theirs.flops
    assert ours.elements < 0.56 * theirs.elements
    assert ours.operations - ours.views < 0.3 * (theirs.operations - theirs.views)


def test_other_devices_form_no_product_that_a_cpu_does_not() -> None:
    """There the range is not looked at, because the host would wait; it is made safe beforehand."""
    flops = []
    for device in ("cpu", "meta"):
        model = llama(2).to(device)
        optimizer = AMUSE(param_groups(model), lr=1e-3, warmup_steps=2, nonfinite="ignore")
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        flops.append(counted(optimizer.step).flops)
    assert flops[0] == flops[1] > 0


@pytest.mark.requirement("D1")
def test_the_number_of_operations_does_not_grow_with_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tiles and batches are not cut to a processor's cache."""
    buckets = importlib.import_module("amuse_optim.buckets")
    orthogonalize = importlib.import_module("amuse_optim.orthogonalize")
    monkeypatch.setattr(buckets, "CHUNK_ENTRIES_ON_CPU", buckets.CHUNK_ENTRIES)
    monkeypatch.setattr(orthogonalize, "BATCH_ENTRIES_ON_CPU", orthogonalize.BATCH_ENTRIES)
    counters = [counted(ready(llama(depth)).step) for depth in (2, 12)]
    operations = [counter.operations - counter.views for counter in counters]
    assert operations[0] == operations[1]
    assert operations[0] <= 160


@pytest.mark.requirement("D5")
def test_memory_of_a_step_with_30_million_parameters() -> None:
    model = SIZES["30m"].build()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    optimizer = ready(model)
    with PeakMemory(torch.device("cpu")) as peak, peak.window():
        optimizer.step()
    assert 0 < peak.bytes <= parameters
