"""What a run tells: the terminal, metrics, samples, the ledger, curves, the report. ``README.md`` explains every metric."""
