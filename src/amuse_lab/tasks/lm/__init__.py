"""Language modelling on bytes or byte-pair tokens."""
