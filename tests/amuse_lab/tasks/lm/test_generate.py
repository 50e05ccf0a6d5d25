import torch

from amuse_lab.tasks.lm.generate import generate
from amuse_lab.tasks.lm.model import Llama
from tests.amuse_lab.conftest import TINY_MODEL


def draw(length: int, seed: int, temperature: float = 1.0) -> torch.Tensor:
    torch.manual_seed(0)
    model = Llama(TINY_MODEL)
    prompt = torch.tensor([1, 2, 3])
    generator = torch.Generator().manual_seed(seed)
    return generate(model, prompt, length=length, temperature=temperature, generator=generator)


def test_continues_beyond_the_context() -> None:
    tokens = draw(40, seed=0)
    assert tokens.shape == (43,)
    assert tokens[:3].tolist() == [1, 2, 3]


def test_depends_on_its_generator_alone() -> None:
    assert torch.equal(draw(20, seed=5), draw(20, seed=5))
    assert not torch.equal(draw(20, seed=5), draw(20, seed=6))


def test_low_temperature_takes_the_likeliest_token() -> None:
    assert torch.equal(draw(10, seed=1, temperature=1e-4), draw(10, seed=2, temperature=1e-4))
