"""A text of a few pages in place of one that a package carries."""

from amuse_lab.tasks.lm.bundled import Bundled
from amuse_lab.tasks.lm.sources import ByPosition

TEXT = b"To be, or not to be. " * 200


def tiny_text(text: bytes = TEXT) -> Bundled:
    return Bundled("a line, repeated", lambda: ByPosition([text], {"kind": "tiny"}))
