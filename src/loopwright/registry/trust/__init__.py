"""Which pickled models somebody asked to be loaded, and who said yes."""
