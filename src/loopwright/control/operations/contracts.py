"""Data contracts: their versions, what changed between two, inferring and linting them."""
