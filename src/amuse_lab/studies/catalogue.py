"""The studies that the laboratory ships."""

from collections.abc import Callable, Mapping

from amuse_lab.errors import unknown
from amuse_lab.studies.mnist import mnist_anytime
from amuse_lab.studies.shakespeare import shakespeare_anytime, shakespeare_fresh
from amuse_lab.studies.study import Study

STUDIES: Mapping[str, Callable[[], Study]] = {
    "shakespeare-anytime": shakespeare_anytime,
    "shakespeare-fresh": shakespeare_fresh,
    "mnist-anytime": mnist_anytime,
}
"""All studies by name."""


def find(name: str) -> Study:
    """Return the study of this name.

    Raises:
        ConfigError: If there is none.
    """
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    return STUDIES[name]()
