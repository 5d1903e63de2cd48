"""A run script rehearsed on a CPU: its own command, a small copy of its model, every stage from preflight to report."""
