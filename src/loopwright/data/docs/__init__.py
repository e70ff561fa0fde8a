"""Documents about the data, for people: HTML pages that need nothing else, no script, no server."""
