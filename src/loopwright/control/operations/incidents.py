"""Data-quality incidents, rows in quarantine, and recomputing what is downstream."""
