"""Versions of tables: what they hold, how two differ, how long they are kept."""
