"""Ctrl-C as a request."""

import signal
from types import FrameType, TracebackType
from typing import Self


class Interrupt:
    """Inside, the first Ctrl-C only sets `requested`, for a loop to read; the second one acts as usual.

    Attributes:
        requested: Whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.requested = False

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._usual)

    def __enter__(self) -> Self:
        self._usual = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._usual)
