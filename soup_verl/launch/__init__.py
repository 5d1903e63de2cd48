"""From a configuration to a finished run: checks, preflight, processes, series of runs."""

from omegaconf import OmegaConf


def _share_of(whole: float, share: float) -> int:
    return max(1, round(whole * share))


def _quotient(whole: int, part: int) -> int:
    return whole // part


def _with_pool(ranks: int, nodes: int, per_node: int) -> int:
    return ranks + nodes * per_node


def _cpu_executor(engine_ranks: int) -> str:
    return "uni" if engine_ranks == 1 else "mp"


# ${share_of:${data.max_response_length},0.2}: whole tokens, at least 1. OmegaConf has no arithmetic, and every process
# that resolves a run's settings has imported something of this room.
OmegaConf.register_new_resolver("share_of", _share_of, replace=True)
# ${with_pool:RANKS,NODES,PER_NODE}: the ranks of the trainer and those of a rollout pool of its own.
OmegaConf.register_new_resolver("with_pool", _with_pool, replace=True)
# ${quotient:WHOLE,PART}: rounded down.
OmegaConf.register_new_resolver("quotient", _quotient, replace=True)
# ${cpu_executor:RANKS}: vLLM's name of what runs an engine of so many ranks on a CPU; the single-process one waits for
# ever for ranks that nobody starts.
OmegaConf.register_new_resolver("cpu_executor", _cpu_executor, replace=True)
