"""Which part of a text of the user's own is for validation."""

from dataclasses import dataclass
from pathlib import Path

from amuse_lab.errors import DataError, require

_FEW = 10_000_000  # bytes of text below which a tenth of it is for validation, above it a hundredth


@dataclass(frozen=True)
class Split:
    """Which documents are for validation, by their size in UTF-8.

    Attributes:
        fraction: Approximate fraction of the text, in bytes, that is for validation.
        cut: With None whole documents are held out: a document is if the bytes held out would otherwise fall
            short of `fraction` by at least half its size. With a number, all text after so many bytes is held
            out, for texts with too few documents or documents of too unequal sizes.
    """

    fraction: float
    cut: int | None = None

    def __post_init__(self) -> None:
        require(0 < self.fraction < 1, "--validation", "in (0, 1)", self.fraction)

    def takes(self, size: int, before: int, held: int) -> bool:
        """Return True if a document is for validation.

        Args:
            size: Size of the document, in bytes.
            before: Size of all documents before it, in bytes.
            held: Size of those before it that are for validation, in bytes.
        """
        return self.fraction * (before + size) - held >= size / 2


def split_of(sizes: list[int], fraction: float | None, path: Path) -> Split:
    """Choose a split for documents of these sizes: whole ones if they make up about the right share."""
    total = sum(sizes)
    if total < 2:
        raise DataError(f"{path} must hold text to train on and to validate with, but has {total} bytes")
    if fraction is None:
        fraction = 0.1 if total <= _FEW else 0.01
    split = Split(fraction)
    before = held = 0
    for size in sizes:
        held += size if split.takes(size, before, held) else 0
        before += size
    if fraction / 2 <= held / total <= min(2 * fraction, (1 + fraction) / 2):
        return split
    return Split(fraction, cut=min(total - 1, max(1, round(total * (1 - fraction)))))


def end_of_part(text: str, size: int) -> int:
    """Return how many characters make about `size` bytes of a text, up to the end of a line if possible."""
    end = max(1, len(text.encode()[:size].decode(errors="ignore")))
    line = text.rfind("\n", end // 2, end) + 1
    return min(line or end, len(text) - 1) or 1
