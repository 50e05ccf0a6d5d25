"""The sweep over models of other packages: what it says of one model, and its table."""

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import routing_sweep
from benchmarks.routing_table import table


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(4, 8, 6))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(4, 8))


def model() -> nn.Module:
    parts = {
        "embed": nn.Embedding(9, 8),
        "experts": Experts(),
        "narrow": nn.Linear(8, 3),
        "missed": nn.Linear(8, routing_sweep.LABELS),
        "lm_head": nn.Linear(8, routing_sweep.LABELS),
    }
    return nn.ModuleDict(parts)


def test_facts_name_heads_tables_and_what_is_to_be_judged() -> None:
    assert routing_sweep.facts(model()) == {
        "guessed": False,
        "heads": ["lm_head"],
        "auxiliary": ["experts.gate_up_proj_bias"],
        "doubts": ["experts.gate_up_proj stacked", "missed as many as labels", "narrow 3x8"],
    }


def test_collected_lines_become_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> nn.Module:
        raise ImportError("needs another package")

    models = [("small", "one", model), ("alike", "two", model), ("alike", "three", refused)]
    monkeypatch.setattr(routing_sweep, "timm_models", lambda: iter(models))
    monkeypatch.setattr(routing_sweep, "_without_compiled_operators", lambda: None)
    routing_sweep.collect("timm", tmp_path / "timm.jsonl")
    records = [routing_sweep.json.loads(line) for line in (tmp_path / "timm.jsonl").read_text().splitlines()]
    assert records[2]["error"] == "ImportError: needs another package"
    lines = table(records, "torch 2", 13).splitlines()
    assert "| timm | 2 | 3 | 2 | 2 | 0 |" in lines
    assert lines[-1].startswith("| alike, small | 2 (1 not built) | `lm_head` | `gate_up_proj_bias` | ")
    for verdict in (
        "experts, each a matrix: right",
        "a width that is equal by chance: right",
        "small hidden",
    ):
        assert verdict in lines[-1]
