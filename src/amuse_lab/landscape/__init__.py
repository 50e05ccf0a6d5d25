"""The landscape of a run: what its updates have to do with the curvature of its loss."""
