"""Ctrl-C and SIGTERM as requests."""

import signal
from types import FrameType, TracebackType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Context manager: the first Ctrl-C or SIGTERM only sets `signal`, which a loop reads; the second acts.

    Args:
        patient: Whether the second one and all others do nothing either. torchrun passes on to its processes
            what the terminal has sent them already, and ends them itself if they take too long.

    Attributes:
        signal: The number of the first signal; 0 while there was none.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.signal = 0
        self._patient = patient

    @property
    def requested(self) -> bool:
        """Whether there was one."""
        return self.signal != 0

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
