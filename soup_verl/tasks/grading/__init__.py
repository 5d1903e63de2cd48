"""When two answers are the same: plain Python, and math-verify in processes with limits."""
