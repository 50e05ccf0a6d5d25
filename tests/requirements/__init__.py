"""Requirements that have tests of their own, and the table of them in the documentation."""
