"""Ways to ask for predictions: each file turns bytes into checked rows, and answers into bytes."""
