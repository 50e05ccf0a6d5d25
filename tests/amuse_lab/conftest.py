from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from amuse_lab.config import RunConfig
from amuse_lab.recipes.lm import shakespeare
from amuse_lab.tasks.lm.bundled import BUNDLED
from amuse_lab.tasks.lm.model import ModelConfig
from amuse_lab.tasks.lm.task import LanguageModelConfig
from tests.amuse_lab.tiny_text import tiny_text

TINY_MODEL = ModelConfig(n_embd=16, n_head=2, n_layer=1, context=16, mlp_multiple=8)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., RunConfig]:
    """Makes the Shakespeare recipe tiny, on a short text of its own, with its runs below tmp_path."""
    monkeypatch.setitem(BUNDLED, "tiny", tiny_text())
    monkeypatch.setenv("AMUSE_LAB_DATA", str(tmp_path / "data"))
    task = LanguageModelConfig(model=TINY_MODEL, data="tiny", batch=2, eval_windows=4, sample_length=5)

    def make(optimizer: str = "amuse", **changes: object) -> RunConfig:
        config = replace(
            shakespeare(optimizer), task=task, steps=4, eval_every=2, log_every=1, runs=tmp_path / "runs"
        )
        return replace(config, **changes)

    return make
