"""The rule by which whole documents are held out, written down a second time."""

from collections.abc import Sequence
from fractions import Fraction


def held_out(texts: Sequence[str], fraction: float) -> list[bool]:
    """Which documents are for validation: whenever what is missing is at least half of the next one."""
    chosen = []
    missing = Fraction(0)
    for text in texts:
        size = len(text.encode())
        missing += Fraction(fraction).limit_denominator(1000) * size
        chosen.append(2 * missing >= size)
        missing -= size if chosen[-1] else 0
    return chosen


def parts(texts: Sequence[str], fraction: float) -> dict[str, list[str]]:
    chosen = held_out(texts, fraction)
    return {
        "train": [text for text, validation in zip(texts, chosen, strict=True) if not validation],
        "validation": [text for text, validation in zip(texts, chosen, strict=True) if validation],
    }
