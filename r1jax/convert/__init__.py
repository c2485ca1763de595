"""Other people's checkpoints and ours. Nobody else knows their tensor names."""
