"""The evidence: tasks, models, two instruments and one analysis. `docs/results.md` has what came out."""
