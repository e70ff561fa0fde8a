"""What a model must show before it is registered: gates, behavioural checks, reports."""
