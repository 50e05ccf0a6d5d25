"""Programs that the runner of the GPU command is tested with."""
