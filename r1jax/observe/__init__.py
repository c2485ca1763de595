"""What a run tells: the terminal, metrics, samples, the ledger, curves. ``README.md`` explains every metric."""
