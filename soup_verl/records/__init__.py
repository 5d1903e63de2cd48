"""What a run writes for people, metrics and samples, and what its settings are."""
