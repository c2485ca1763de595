"""The optimizer, the training state and the jitted update."""
