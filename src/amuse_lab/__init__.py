"""The laboratory of amuse-optim: trains, compares, records."""
