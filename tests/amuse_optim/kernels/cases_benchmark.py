"""The benchmark of the kernel on small inputs, with a clock of its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from amuse_optim.kernels import fused
from benchmarks import gpu_kernels
from benchmarks.gpu_kernels import Shape, Times

SMALL = Shape(2, 20, 30)


def one_millisecond(function: Callable[[], object]) -> Times:
    function()
    return Times([3.0, 5.0], [1.0, 1.0])


def run(device: torch.device, out: Path | None) -> int:
    return gpu_kernels.run(device, one_millisecond, out, shapes=[SMALL], entries=2400, copied=10**5, side=100)


def test_record_and_tables(
    device: torch.device, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_kernels, "VECTORS", 3)
    assert run(device, tmp_path / "kernels.json") == 0
    record = json.loads((tmp_path / "kernels.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["kernels.json"]
    assert record["machine"]["versions"]["torch"] == torch.__version__
    assert [check["passed"] for check in record["checks"]] == [True] * 4
    # One millisecond for 0.1 MB read and written, and for 100^3 multiplications and additions.
    assert record["rates"] == {
        "copy_bytes_per_second": pytest.approx(2e8),
        "flops_per_second": pytest.approx(2e9),
    }
    assert [(row["of"], row["bytes"]) for row in record["moves"]] == [
        ("2 of 2 x 20x30, d bfloat16", 2400 * 18),
        ("2 of 2 x 20x30, d float32", 2400 * 20),
        ("3 of 768, d bfloat16", 3 * 768 * 18),
        ("3 of 768, d float32", 3 * 768 * 20),
    ]
    printed = capsys.readouterr().out
    assert "copy: 0.2 GB/s" in printed
    # 20 bytes for each of 2,400 entries in a millisecond; the copy had 200,000 bytes in that time.
    assert "2 of 2 x 20x30, d float32 1.0000 4.0000 0.0 24% 1.0000 4.0000 1.00" in " ".join(printed.split())
    assert "WRONG" not in printed


def test_a_wrong_kernel_ends_the_run(
    device: torch.device, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = fused.advance_

    def wrong_at_y(y: Any, z: Any, d: Any, scale: Any, numbers: Any) -> None:
        right(y, z, d, scale * (1.1 if numbers.decay_at == "y" else 1.0), numbers)

    monkeypatch.setattr(fused, "advance_", wrong_at_y)
    assert run(device, tmp_path / "kernels.json") == 1
    record = json.loads((tmp_path / "kernels.json").read_text())
    failed = [check["of"] for check in record["checks"] if not check["passed"]]
    assert failed == [f"6 tensors, d {name}, decay at y" for name in ("bfloat16", "float32")]
    assert "moves" not in record
    printed = capsys.readouterr()
    assert printed.out.count("WRONG") == 2
    assert printed.err == "\n2 of 4 checks failed; nothing was timed\n"
