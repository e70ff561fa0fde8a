"""Pure numpy statistics: drift distances, mergeable profiles, sequential tests, bootstrap, metrics."""
