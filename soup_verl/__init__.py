"""SOUP for verl: token-level single-sample mix-policy reinforcement learning (arXiv 2601.21476)."""

__version__ = "0.1.0"
