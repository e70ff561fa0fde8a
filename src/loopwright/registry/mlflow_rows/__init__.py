"""What clients' calls look up in MLflow's own rows."""
