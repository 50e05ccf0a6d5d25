import signal
from collections.abc import Iterator

import pytest

from amuse_lab.interrupts import Interrupt


@pytest.fixture(autouse=True)
def python_handler() -> Iterator[None]:
    """Python's own handler, also where the tests run in the background of a shell, which ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_first_ctrl_c_is_a_request_and_the_second_one_acts() -> None:
    with Interrupt() as interrupt:
        assert interrupt.signal == 0
        signal.raise_signal(signal.SIGINT)
        assert interrupt.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_remembered(number: signal.Signals) -> None:
    with Interrupt(patient=True) as interrupt:
        assert interrupt.signal == 0
        for sent in (number, signal.SIGINT, signal.SIGTERM, number):
            signal.raise_signal(sent)
            assert interrupt.signal == number


def test_the_usual_handler_comes_back() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with Interrupt():
        assert all(signal.getsignal(number) != usual for number, usual in zip(numbers, before, strict=True))
    assert [signal.getsignal(number) for number in numbers] == before
