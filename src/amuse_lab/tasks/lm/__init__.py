"""Language modelling on bytes."""
