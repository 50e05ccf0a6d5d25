"""The programs in docs/coming_over.md run as they stand."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from amuse_optim import AMUSE

PAGE = Path(__file__).parents[2] / "docs" / "coming_over.md"
BLOCKS = dict(re.findall(r"## ([\w' ]+)\n(?:(?!\n## ).)*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL))


def test_every_program_is_found() -> None:
    assert list(BLOCKS) == ["AdamW", "Muon", "schedulefree", "The authors' code"]
    assert PAGE.read_text().count("```python") == len(BLOCKS)


@pytest.mark.parametrize("section", BLOCKS)
def test_programs_run(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if section == "The authors' code":
        torch.save(a_checkpoint(), "main.pt")
    names: dict[str, Any] = {}
    exec(compile(BLOCKS[section], str(PAGE), "exec"), names)
    optimizer = names["optimizer"]
    assert isinstance(optimizer, AMUSE)
    for parameter in names["model"].parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    steps = {"AdamW": 101, "Muon": 1, "schedulefree": 21, "The authors' code": 7}
    assert [group["t"] for group in optimizer.param_groups] == [steps[section]] * len(optimizer.param_groups)


def a_checkpoint() -> dict[str, Any]:
    """Six steps of the released optimizer within its warm-up of 12, by their layout alone."""
    shapes = {"0.weight": (16, 8), "1.weight": (4, 16)}
    group = {"k": 6, "base_lr": 0.01, "lr": 0.005, "beta1": 0.6, "warmup_steps": 12, "weight_decay": 0.05}
    group |= {"weight_sum": 0.01**2 / 144 * 91, "ckp1": 36 / 91}  # squares of 1 to 6
    adamw = {"update_type": "adamw", "use_muon": False, "beta2": 0.999, "eps": 1e-10, "params": [0]}
    muon = {"update_type": "muon", "use_muon": True, "momentum": 0.95, "aux_update_type": "adamw"}
    state = {
        0: {"z": torch.ones(shapes["1.weight"]), "exp_avg_sq": torch.ones(shapes["1.weight"])},
        1: {"z": torch.ones(shapes["0.weight"]), "momentum_buffer": torch.ones(shapes["0.weight"])},
    }
    return {
        "model": {name: torch.ones(shape) for name, shape in shapes.items()},
        "optimizer": {"state": state, "param_groups": [group | adamw, group | muon | {"params": [1]}]},
        "scheduler": None,
        "itr": 6,
    }
