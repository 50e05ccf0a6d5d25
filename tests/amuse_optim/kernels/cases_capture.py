"""The kernel inside captured CUDA graphs, and what it asks of the host: on a GPU alone."""

import copy
import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE, kernels, param_groups
from amuse_optim.averaging import StepNumbers
from amuse_optim.kernels import fused

SIZES = [5, 2000, 0, *(3 + i for i in range(150))]  # more than one launch writes into a table
NOW = StepNumbers(lr=0.02, weight_decay=0.05, decay_at="z", beta=0.7, c=0.01, beta_next=0.71)


def random(device: torch.device) -> list[Tensor]:
    return [torch.randn(size, device=device) for size in SIZES]


def test_captured_moves_replay_among_each_other_and_ordinary_ones(device: torch.device) -> None:
    """With updates in each graph's own memory, and coefficients that change on the device."""
    y, z, source = random(device), random(device), random(device)
    expected_y, expected_z = [each.clone() for each in y], [each.clone() for each in z]
    other = random(device), random(device), random(device)
    c = torch.tensor(NOW.c, device=device, dtype=torch.float64)
    now = replace(NOW, c=c)
    fused.advance_(*other, 1.0, now)  # compiles

    graphs = []
    for factor in (1.0, 2.0, 3.0):
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            fused.advance_(y, z, [factor * each for each in source], 1.0, now)
    gc.collect()  # and what the host had of the captures is overwritten
    kept = [torch.full((5 * len(SIZES),), -1).pin_memory() for _ in range(8)]
    for step in range(1, 10):
        c.fill_(1.0 / step)
        for each in source:
            each.normal_()
        fused.advance_(*other, 1.0, NOW)
        graphs[step % 3].replay()
        updates = [(1.0 + step % 3) * each for each in source]
        fused.advance_(expected_y, expected_z, updates, 1.0, replace(now, c=c.clone()))
        for ours, expected in zip([*y, *z], [*expected_y, *expected_z], strict=True):
            assert torch.equal(ours, expected)
    assert all(bool((each == -1).all()) for each in kept)


class Trained:
    """A model whose gradients stay where they are, and its optimizer."""

    def __init__(self, device: torch.device) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(32, 48), nn.Linear(48, 16), nn.LayerNorm(16), nn.Linear(16, 3)
        ).to(device)
        options: dict[str, Any] = {"capturable": True, "nonfinite": "ignore", "weight_decay": 0.1}
        options["orthogonalize_dtype"] = torch.float32
        self.optimizer = AMUSE(param_groups(self.model), lr=0.02, warmup_steps=2, **options)
        self.make_gradients()

    def make_gradients(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def load(self, step: int) -> None:
        for i, parameter in enumerate(self.model.parameters()):
            generator = torch.Generator().manual_seed(100 * step + i)
            assert parameter.grad is not None
            parameter.grad.copy_(torch.randn(parameter.shape, generator=generator))

    def step(self, number: int) -> None:
        self.load(number)
        self.optimizer.step()

    def warm_up(self, steps: int) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for step in range(steps):
                self.step(step)
        torch.cuda.current_stream().wait_stream(stream)

    def captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.optimizer.step()
        return graph

    def close(self, expected: "Trained") -> None:
        for ours, theirs in zip(self.model.parameters(), expected.model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def plain(device: torch.device, steps: int, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """So many steps without the kernel."""
    with monkeypatch.context() as patch:
        patch.setenv(kernels.SWITCH, "0")
        expected = Trained(device)
        for step in range(steps):
            expected.step(step)
    return expected


def test_steps_may_be_captured_any_number_of_times(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kernels.enabled(device)
    ours = Trained(device)
    ours.warm_up(3)
    graphs = [ours.captured() for _ in range(3)]
    for step in range(3, 9):
        ours.load(step)
        graphs[step % 3].replay()
    ours.step(9)  # an ordinary one
    ours.load(10)
    graphs[0].replay()
    ours.close(plain(device, 11, monkeypatch))


def test_optimizers_may_follow_each_other_in_the_same_memory(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plain(device, 5, monkeypatch)
    for _ in range(3):
        ours = Trained(device)
        ours.warm_up(3)
        graph = ours.captured()
        for step in range(3, 5):
            ours.load(step)
            graph.replay()
        ours.close(expected)
        del ours, graph
        gc.collect()


def test_copies_and_new_storage_between_captures(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Trained(device)
    first.warm_up(3)
    kept = first.captured()
    other = copy.deepcopy(first)
    other.make_gradients()  # which are not copied
    graph = other.captured()
    for step in range(3, 5):
        for each, captured in ((first, kept), (other, graph)):
            each.load(step)
            captured.replay()
    for parameter in other.model.parameters():
        parameter.data = parameter.data.clone()
    other.step(5)
    again = other.captured()
    other.load(6)
    again.replay()
    first.close(plain(device, 5, monkeypatch))
    other.close(plain(device, 7, monkeypatch))

    restored = Trained(device)
    restored.model.load_state_dict(other.model.state_dict())
    restored.optimizer.load_state_dict(other.optimizer.state_dict())
    restored.step(7)
    graph = restored.captured()
    restored.load(8)
    graph.replay()
    restored.close(plain(device, 9, monkeypatch))


def test_the_host_does_not_wait_for_the_device(device: torch.device) -> None:
    lists = random(device), random(device), random(device)
    held = replace(NOW, c=torch.tensor(0.5, device=device))
    for numbers in (NOW, held):
        fused.advance_(*lists, 1.0, numbers)  # compiles
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for numbers in (NOW, held):
            assert fused.takes(*lists, 1.0, numbers)
            fused.advance_(*lists, 1.0, numbers)
    finally:
        torch.cuda.set_sync_debug_mode("default")
