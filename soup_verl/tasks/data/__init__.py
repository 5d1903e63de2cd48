"""Training sets and benchmarks: from their own columns to rows that verl reads."""
