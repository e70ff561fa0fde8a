"""Kinds of sources and of formats, one file each; `data.source` puts them together."""
