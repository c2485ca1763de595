"""The decoder, its cache, multi-token prediction and log-probabilities."""
