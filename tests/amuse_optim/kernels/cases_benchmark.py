"""The benchmark of the kernels on small inputs, with a clock of its own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from amuse_optim.kernels import symmetric
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
    monkeypatch.setattr(symmetric, "TILINGS", symmetric.TILINGS[:1])
    monkeypatch.setattr(gpu_kernels, "VECTORS", 3)
    assert run(device, tmp_path / "kernels.json") == 0
    record = json.loads((tmp_path / "kernels.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["kernels.json"]
    assert record["machine"]["versions"]["torch"] == torch.__version__
    assert all(check["passed"] for check in record["checks"])
    assert len(record["checks"]) == 4 * 2 + 2 * 2
    # One millisecond for 0.1 MB read and written, and for 100^3 multiplications and additions.
    assert record["rates"] == {
        "copy_bytes_per_second": pytest.approx(2e8),
        "flops_per_second": pytest.approx(2e9),
    }
    assert [(row["of"], row["amount"]) for row in record["moves"]] == [
        ("2 of 2 x 20x30, d bfloat16", 2400 * 18),
        ("2 of 2 x 20x30, d float32", 2400 * 20),
        ("3 of 768, d bfloat16", 3 * 768 * 18),
        ("3 of 768, d float32", 3 * 768 * 20),
    ]
    gram, polynomial = 2 * (2 * 20 * 20 * 30), 2 * (2 * 20 * 20 * 20)
    assert [(row["kernel"], row["amount"], len(row["tilings"])) for row in record["products"]] == [
        ("gram", gram, 1),
        ("polynomial", polynomial, 1),
        ("five steps", 5 * (gram + polynomial + gram), 0),
    ]
    printed = capsys.readouterr().out
    assert "copy: 0.2 GB/s, bfloat16 product: 0.0 TFLOP/s" in printed
    # 20 bytes for each of 2,400 entries in a millisecond; the copy had 200,000 bytes in that time.
    assert "move 2 of 2 x 20x30, d float32 1.0000 4.0000 0.0 24% 1.0000 4.0000 1.00" in " ".join(
        printed.split()
    )
    assert "WRONG" not in printed


def test_a_wrong_kernel_ends_the_run(
    device: torch.device, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = symmetric.commuting_product
    monkeypatch.setattr(symmetric, "commuting_product", lambda p, q: right(p, q) * 1.1)
    assert run(device, tmp_path / "kernels.json") == 1
    record = json.loads((tmp_path / "kernels.json").read_text())
    assert [check["kernel"] for check in record["checks"] if not check["passed"]] == ["commuting product"] * 2
    assert "moves" not in record
    printed = capsys.readouterr()
    assert printed.out.count("WRONG") == 2
    assert printed.err == "\n2 of 12 checks failed; nothing was timed\n"


def test_what_a_kernel_does_not_write_is_noticed(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_written(x: torch.Tensor, right: Callable[..., torch.Tensor] = symmetric.gram) -> torch.Tensor:
        result = right(x)
        result[:, 0, 1] = torch.nan
        return result

    monkeypatch.setattr(symmetric, "gram", half_written)
    failed = [check.kernel for check in gpu_kernels.product_checks(SMALL, device) if not check.passed]
    assert failed == ["gram", "gram, tall"] * 2
