"""Reads the Open Data Contract Standard 3: `shape` knows what may be written, the others what it means."""
