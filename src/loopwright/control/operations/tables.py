"""Tables and their versions: differences, what may be vacuumed, documents about the data."""
