"""Turns Ctrl-C and SIGTERM into a request to stop, which the training loop reads."""

import signal
from types import FrameType, TracebackType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Context manager: the first Ctrl-C or SIGTERM only sets `signal`; the second has its usual effect.

    Args:
        patient: Whether later signals have no effect either. Under torchrun a process gets the same signal
            twice, from the terminal and from torchrun, which kills processes that take too long.

    Attributes:
        signal: The number of the first signal; 0 while there was none.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.signal = 0
        self._patient = patient

    def _request(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or number
        if not self._patient:
            self._restore()

    def _restore(self) -> None:
        for number, usual in self._usual.items():
            signal.signal(number, usual)

    def __enter__(self) -> Self:
        self._usual = {number: signal.signal(number, self._request) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
