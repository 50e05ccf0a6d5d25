"""Where the time of a step goes, without making the device wait."""

import time

import torch


class Stopwatch:
    """Adds up the seconds of each part of the steps.

    On a GPU the marks are CUDA events, evaluated in `read()`: they measure when the device reaches a mark,
    not when the mark is enqueued.

    Args:
        device: Device that the steps compute on.

    Attributes:
        seconds: Seconds of each part; on a GPU up to the last `read()`.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self.seconds: dict[str, float] = {}
        self._mark: float | torch.cuda.Event = 0.0
        self._unread: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def _now(self) -> "float | torch.cuda.Event":
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self) -> None:
        """Begin to measure."""
        self._mark = self._now()

    def lap(self, part: str) -> None:
        """Count the time since the last mark as this part's, and set the next mark."""
        before, self._mark = self._mark, self._now()
        if isinstance(before, float) and isinstance(self._mark, float):
            self._add(part, self._mark - before)
        else:
            assert not isinstance(before, float)
            assert not isinstance(self._mark, float)
            self._unread.append((part, before, self._mark))

    def _add(self, part: str, seconds: float) -> None:
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def read(self) -> dict[str, float]:
        """Return the seconds of each part so far; waits for a GPU."""
        if self._unread:
            torch.cuda.synchronize()
            for part, start, end in self._unread:
                self._add(part, start.elapsed_time(end) / 1000)
            self._unread.clear()
        return dict(self.seconds)
