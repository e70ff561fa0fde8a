"""Models that do not fit in memory twice: weights are streamed, layer by layer."""
