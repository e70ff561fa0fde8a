"""Reads contracts as a careful colleague would: what is wrong, doubtful or left out, before any row is judged."""
