"""Incidents: what broke in the data, who is hit by it, and what became of it."""
