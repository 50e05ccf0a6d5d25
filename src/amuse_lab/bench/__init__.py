"""The benchmark of one optimizer step, against the peers that are installed."""
