"""From a configuration to a finished run: checks, preflight, processes, series of runs."""

from omegaconf import OmegaConf


def _share_of(whole: float, share: float) -> int:
    return max(1, round(whole * share))


# ${share_of:${data.max_response_length},0.2}: whole tokens, at least 1. OmegaConf has no arithmetic, and every process
# that resolves a run's settings has imported something of this room.
OmegaConf.register_new_resolver("share_of", _share_of, replace=True)
