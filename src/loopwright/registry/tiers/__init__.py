"""The documents of the tiers: what a high, a medium and a low one ask, and SQL for what replaced them."""
