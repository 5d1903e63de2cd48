"""The evidence: tasks, models, two instruments and one analysis. `docs/results.md` says what came out."""
