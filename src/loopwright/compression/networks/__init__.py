"""Steps on torch modules: pruning, distillation, training with rounding, factors. All of them need torch."""
