"""AMUSE in other packages' trainers: a module for each, which imports it; see docs/trainers.md."""
