import json
import subprocess
from pathlib import Path

import pytest
import torch

from amuse_lab.environment import cpu_capabilities, describe, git_state, peak_flops, peak_memory_bytes

CPU = torch.device("cpu")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_describes_versions_machine_and_seed() -> None:
    described = json.loads(json.dumps(describe(device=CPU, seed=3)))
    assert described["versions"]["torch"] == torch.__version__
    assert described["versions"]["amuse-optim"]
    assert described["threads"] == 1
    assert described["world_size"] == 1
    assert described["seed"] == 3
    assert described["device"] == "cpu"
    assert described["command"]
    assert describe(device=CPU, seed=3, world_size=4)["world_size"] == 4


def test_products_that_are_rounded_otherwise_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def product() -> str:
        return str(describe(device=CPU, seed=0)["machine"]["float32_product"])

    usual = product()
    assert usual == product()
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: torch.mm(a.double(), b.double()).float())
    assert product() != usual


def test_git_state_of_a_checkout(tmp_path: Path) -> None:
    source, sibling = tmp_path / "src" / "one" / "module.py", tmp_path / "src" / "two" / "module.py"
    for path in (source, sibling):
        path.parent.mkdir(parents=True)
        path.write_text("")
    assert git_state(source) is None
    git(tmp_path, "init", "--quiet")
    assert git_state(source) is None  # inside a repository, but not of it
    git(tmp_path, "add", "src")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "runs.jsonl").write_text("")  # what a run writes is no change of the sources
    assert git_state(source) == {"commit": commit, "dirty": False}
    sibling.write_text("changed")
    assert git_state(source) == {"commit": commit, "dirty": True}


def test_peak_memory_is_in_bytes() -> None:
    assert 10**7 < peak_memory_bytes(CPU) < 10**12


def test_capabilities_are_torchs_where_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    assert cpu_capabilities() == {"avx2": True}
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert cpu_capabilities() == {}


@pytest.mark.parametrize(
    ("name", "expected"), [("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("Abacus 3000", None)]
)
def test_peak_of_a_gpu_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, expected: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(torch.device("cuda")) == expected
    assert peak_flops(CPU) is None
