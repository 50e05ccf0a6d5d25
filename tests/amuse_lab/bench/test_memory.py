import pytest
import torch

from amuse_lab.bench.memory import PeakMemory, state_bytes

CPU = torch.device("cpu")
KIB = 256  # float32 numbers in one


def test_the_peak_counts_temporaries_inside_the_window_only() -> None:
    outside = torch.ones(50 * KIB)
    with PeakMemory(CPU) as peak:
        outside.clone()
        with peak.window():
            first = torch.ones(3 * KIB)
            second = first.clone()
            del first
            torch.ones(2 * KIB)
            del second
        outside.clone()
    assert peak.bytes == 6 * 1024


def test_what_was_kept_before_the_window_counts_too() -> None:
    with PeakMemory(CPU) as peak:
        kept = torch.ones(4 * KIB)
        with peak.window():
            kept.clone()
    assert peak.bytes == 8 * 1024
    with PeakMemory(CPU) as peak:
        also = torch.ones(4 * KIB)
        with peak.window():
            pass
    assert peak.bytes == also.nbytes


def test_releasing_makes_room() -> None:
    with PeakMemory(CPU) as peak:
        old = torch.ones(8 * KIB)
        with peak.window():
            del old
            new = torch.ones(5 * KIB)
            new.clone()
    assert peak.bytes == 10 * 1024


def test_temporaries_inside_a_kernel_count() -> None:
    low = torch.ones(64 * KIB, dtype=torch.bfloat16)
    with PeakMemory(CPU) as peak, peak.window():
        torch.linalg.vector_norm(low, dtype=torch.float32)
    assert peak.bytes >= 64 * 1024 * 4 // 4


def test_a_failure_inside_passes_through() -> None:
    with pytest.raises(ValueError, match="inside"), PeakMemory(CPU), torch.no_grad():
        raise ValueError("inside")


def test_state_is_counted_once_and_at_any_depth() -> None:
    parameter = torch.nn.Parameter(torch.ones(10))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    shared = torch.ones(10)
    optimizer.state[parameter] = {
        "nested": {"a": shared, "b": [torch.ones(5, dtype=torch.bfloat16)]},
        "again": shared,
        "count": 3,
    }
    assert state_bytes([optimizer]) == 40 + 10
