"""Studies: optimizers compared at every horizon, each tuned with the same number of trials."""
