"""Guided tours of the whole loop on data that comes with a package."""
