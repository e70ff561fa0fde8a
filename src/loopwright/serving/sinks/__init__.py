"""Where the prediction log goes besides the control plane: each sink at its own pace, at least once."""
