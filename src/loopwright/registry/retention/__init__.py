"""How long versions are kept, and the one way they go."""

from loopwright.registry.retention.deletion import (
    Standing,
    delete_version,
    deleted_at,
    drop_bytes,
    standing,
    standings,
)

__all__ = ["Standing", "delete_version", "deleted_at", "drop_bytes", "standing", "standings"]
