"""Which part of a text of the user's own is for validation."""

from dataclasses import dataclass
from pathlib import Path

from amuse_lab.errors import DataError, require

_FEW = 10_000_000  # bytes of text below which a tenth of it is for validation, above it a hundredth


@dataclass(frozen=True)
class Split:
    """Which documents are for validation, by their size in UTF-8.

    Attributes:
        fraction: Of the text that is for validation, nearly.
        cut: None holds out whole documents: one whenever what is held out is behind by more than half of it.
            A number of bytes holds out what comes after it, where the documents are too few or too unequal.
    """

    fraction: float
    cut: int | None = None

    def __post_init__(self) -> None:
        require(0 < self.fraction < 1, "--validation", "in (0, 1)", self.fraction)

    def takes(self, size: int, before: int, held: int) -> bool:
        """Return True if a document is for validation.

        Args:
            size: Of the document, in bytes.
            before: Of all documents before it.
            held: Of those before it that are for validation.
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
    """Characters of the part of a text that has about so many bytes; it ends with a line if it has one."""
    end = max(1, len(text.encode()[:size].decode(errors="ignore")))
    line = text.rfind("\n", end // 2, end) + 1
    return min(line or end, len(text) - 1) or 1
