"""Versions, approvals, policy, lineage, and the governed MLflow registry. Import from the modules."""
