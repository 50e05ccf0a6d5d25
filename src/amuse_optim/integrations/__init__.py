"""AMUSE inside other packages' trainers; each module imports its package, and nothing else imports them."""
