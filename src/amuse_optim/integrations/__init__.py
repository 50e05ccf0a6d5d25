"""AMUSE in frameworks that train: a module for each, which imports it. docs/trainers.md shows their use."""
