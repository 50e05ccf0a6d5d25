"""Recipes: named functions that return a config. The command line only overrides what they return."""

from collections.abc import Mapping
from typing import Protocol

from amuse_lab.config import RunConfig
from amuse_lab.errors import unknown
from amuse_lab.recipes import image, lm, pretraining


class Recipe(Protocol):
    """A function that returns a config."""

    def __call__(self, optimizer: str = ...) -> RunConfig:
        """Return the config for an optimizer; without one, for the recipe's own choice."""


RECIPES: Mapping[str, Recipe] = {
    "shakespeare": lm.shakespeare,
    **pretraining.RECIPES,
    **image.RECIPES,
}
"""Every recipe by its name."""


def find(name: str) -> Recipe:
    """Look a recipe up.

    Args:
        name: As `amuse-lab list` prints it.

    Raises:
        ConfigError: If there is none, with the nearest name.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]
