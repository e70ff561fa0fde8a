"""Feature views: definitions, materialisation, online reads, statistics, parity."""
