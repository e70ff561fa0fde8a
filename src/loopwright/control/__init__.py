"""The control plane: one operation per act, reachable as a function, over HTTP and from the command line."""
