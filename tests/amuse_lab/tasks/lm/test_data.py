import pytest
import torch

from amuse_lab.tasks.lm.data import Corpus, training_windows, validation_windows
from amuse_lab.tasks.lm.plays import plays


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.of(plays())


def test_split_is_by_position_and_disjoint(corpus: Corpus) -> None:
    text = plays()
    assert bytes(corpus.train.tolist()) == text[:4_460_787]
    assert bytes(corpus.validation.tolist()) == text[4_460_787:]


def test_orders_0_and_1_need_the_stated_bits(corpus: Corpus) -> None:
    train, validation = corpus.train.long(), corpus.validation.long()
    single = torch.bincount(train, minlength=256).double() + 1e-9
    bits = -(single / single.sum()).log2()[validation].mean()
    assert round(bits.item(), 2) == 4.78
    pairs = torch.bincount(train[:-1] * 256 + train[1:], minlength=65_536).double().view(256, 256) + 1e-2
    bits = -(pairs / pairs.sum(1, keepdim=True)).log2()[validation[:-1], validation[1:]].mean()
    assert round(bits.item(), 2) == 3.65


def test_batch_is_a_pure_function_of_seed_and_step() -> None:
    tokens = torch.arange(250, dtype=torch.uint8)

    def draw(seed: int, step: int) -> torch.Tensor:
        return training_windows(tokens, seed=seed, step=step, batch=8, length=10)

    first = draw(0, 7)
    torch.manual_seed(123)
    assert torch.equal(first, draw(0, 7))
    assert not torch.equal(first, draw(0, 8))
    assert not torch.equal(first, draw(1, 7))


def test_training_windows_are_contiguous_and_reach_both_ends() -> None:
    tokens = torch.arange(20, dtype=torch.uint8)
    windows = training_windows(tokens, seed=0, step=0, batch=500, length=5)
    assert windows.shape == (500, 5)
    assert (windows.diff(dim=1) == 1).all()
    assert windows.min() == 0
    assert windows.max() == 19


def test_targets_of_validation_windows_tile_the_text() -> None:
    tokens = torch.arange(103, dtype=torch.uint8)
    windows = validation_windows(tokens, length=11)
    assert windows[:, 1:].flatten().tolist() == list(range(1, 101))


def test_some_validation_windows_are_spread_evenly() -> None:
    tokens = torch.arange(103, dtype=torch.uint8)
    assert validation_windows(tokens, length=11, limit=5)[:, 0].tolist() == [0, 20, 40, 60, 80]
    assert len(validation_windows(tokens, length=11, limit=99)) == 10
