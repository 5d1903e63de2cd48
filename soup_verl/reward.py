"""The reward by the name that verl is given, `pkg://soup_verl.reward`: see soup_verl/tasks/reward.py."""

from soup_verl.tasks.reward import compute_score

__all__ = ["compute_score"]
