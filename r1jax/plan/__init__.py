"""What a run needs, computed from its config alone: no array is created."""
