"""Alembic migrations of the ledger's tables; MLflow's tables in the same database are MLflow's business."""
