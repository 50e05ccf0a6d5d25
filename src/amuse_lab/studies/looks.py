"""How each optimizer looks in figures: colour, marker and line, told apart without colour too."""

from dataclasses import dataclass

from amuse_lab.studies.study import Entry, Study

BAND = "#e4e4e4"
GREY = "#b8b8b8"


@dataclass(frozen=True)
class Look:
    """The look of an optimizer.

    Attributes:
        color: Colour of the line and its markers, as #rrggbb.
        marker: Name of a marker, a key of `MARKERS`.
        dash: Lengths of lines and gaps in points; empty for a solid line.
        width: Width of the line in points.
    """

    color: str
    marker: str
    dash: tuple[float, ...] = ()
    width: float = 1.5


MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "down": "v", "cross": "X"}
"""Markers by their names, as matplotlib writes them."""

# The colours of Okabe and Ito (2008), which people with any common colour vision tell apart, dark violet
# and brown; black and greys are left to the optimizers that are told where they end.
FREE = (
    Look("#d55e00", "circle", width=2.4),
    Look("#0072b2", "square", (6, 2)),
    Look("#009e73", "triangle", (6, 2, 1.5, 2)),
    Look("#cc79a7", "diamond", (1.5, 1.5)),
    Look("#e69f00", "down", (9, 2)),
    Look("#56b4e9", "cross", (4, 1.5, 1.5, 1.5, 1.5, 1.5)),
    Look("#4b2e83", "circle", (3, 2)),
    Look("#8c510a", "square", (1.5, 3)),
)
SCHEDULED = (
    Look("#000000", "circle"),
    Look("#4d4d4d", "square", (6, 2)),
    Look("#808080", "triangle", (1.5, 1.5)),
    Look("#666666", "diamond", (6, 2, 1.5, 2)),
)


def look(study: Study, entry: Entry) -> Look:
    """Return the look of an optimizer, the same in all figures: by its place among those of its kind."""
    known = SCHEDULED if entry.scheduled else FREE
    alike = [each.name for each in study.entries if each.scheduled == entry.scheduled]
    return known[alike.index(entry.name) % len(known)]


SHADES = ("#e69f00", "#56b4e9", "#009e73", "#0072b2", "#000000", "#cc79a7")
"""Colours of horizons; but for the last they grow darker, so that their order is seen without colour."""
