"""GPUs, batches and token budgets: what has to divide what, and what has to fit into what."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from soup_verl.launch.preflight.hardware import Hardware
from soup_verl.launch.preflight.report import NO, Finding, judged, refused
from soup_verl.launch.preflight.run_settings import ACTOR, REF, ROLLOUT, RunSettings
from soup_verl.launch.preflight.sizing import ModelShape

GPUS, BATCH, TOKENS = "GPUs", "batch", "tokens"


def divides(topic: str, name: str, key: str, value: int, whole: int, what: str, remedy: str = "") -> Finding:
    """`value` must divide `whole`: ok or no."""
    if value > 0 and whole % value == 0:
        return judged(topic, name, True, need=f"a divisor of {whole} {what}", have=value)
    return refused(topic, name, key, value, f"a divisor of {whole} {what}", remedy)


def multiple(topic: str, name: str, key: str, value: int, whole: int, part: int, what: str) -> Finding:
    """`whole`, which the key with `value` decides, must be a multiple of `part`: ok or no."""
    if part > 0 and whole % part == 0:
        return judged(topic, name, True, need=f"a multiple of {part}", have=f"{whole} {what}")
    return refused(topic, name, key, value, f"a value that makes {whole} {what} a multiple of {part}")


def gpu_findings(run: RunSettings, hardware: Hardware, shape: ModelShape | None) -> Iterator[Finding]:
    """GPUs against tensor parallelism, FSDP and sequence parallelism."""
    world = run.world_size
    if not run.on_cpu:
        how = "the run may be meant for other nodes of a Ray cluster" if hardware.gpus < run.gpus_per_node else ""
        how = how or ("only this node was looked at" if run.nodes > 1 and not hardware.described else "")
        have = f"{hardware.gpus} here"
        need = f"{run.gpus_per_node} a node, {run.nodes} node{'s' * (run.nodes > 1)}"
        yield judged(GPUS, "GPUs", hardware.gpus >= run.gpus_per_node, need=need, have=have, how=how)
    key, pool = f"{ROLLOUT}.tensor_model_parallel_size", run.rollout_pool
    of_node, nodes = f"{pool}.n_gpus_per_node", f"{pool}.nnodes"
    remedy = f"{of_node}={run.get(of_node, 1)} x {nodes}={run.get(nodes, 1)} GPUs are shared by replicas."
    yield divides(GPUS, "GPUs a rollout replica", key, run.replica, run.rollout_gpus, "GPUs", remedy)
    if run.replica > run.get(of_node, 1):
        value = run.replica
        yield multiple(GPUS, "replica over nodes", key, value, value, run.get(of_node, 1), "GPUs of a replica")
    sp = run.sequence_parallel
    sp_key = f"{ACTOR}.ulysses_sequence_parallel_size"
    yield divides(GPUS, "sequence parallelism", sp_key, sp, world, "GPUs")
    yield divides(GPUS, "FSDP shards", f"{ACTOR}.fsdp_config.fsdp_size", run.shards, world, "GPUs")
    if shape is not None:
        yield divides(GPUS, "heads a rollout GPU", key, run.tensor_parallel, shape.heads, "attention heads")
        yield divides(GPUS, "heads and sequence parallelism", sp_key, sp, shape.heads, "attention heads")


def batch_findings(run: RunSettings) -> Iterator[Finding]:
    """Responses a step, a mini-batch and a micro-batch, as verl cuts them."""
    mini, parts, responses = run.mini_batch * run.trained, run.data_parallel, run.prompts * run.trained
    each = f"rollout.n={run.n}" if run.trained == run.n else f"soup.down_sampling.train_on={run.trained}"
    name = "responses a mini-batch"
    key = f"{ACTOR}.ppo_mini_batch_size"
    yield multiple(BATCH, name, key, run.mini_batch, mini, parts, f"= ppo_mini_batch_size x {each}")
    padding = -responses % math.lcm(parts, mini)
    how = "" if not padding else f"verl fills up with {padding} empty responses"
    need = f"a multiple of {mini} responses"
    have = f"data.train_batch_size={run.prompts} x {each} = {responses}"
    yield judged(BATCH, "responses a step", not padding, need=need, have=have, how=how)
    if mini % parts == 0:  # else there is nothing to cut
        yield from _micro_batch_findings(run, mini // parts, (responses + padding) // parts)


def _micro_batch_findings(run: RunSettings, mini_of_gpu: int, step_of_gpu: int) -> Iterator[Finding]:
    places: list[tuple[str, str, str, int]] = [
        (f"{ACTOR}.use_dynamic_bsz", f"{ACTOR}.ppo_micro_batch_size_per_gpu", "mini-batch", mini_of_gpu),
        (f"{ROLLOUT}.log_prob_use_dynamic_bsz", f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu", "step", step_of_gpu),
    ]
    if run.uses_reference:
        places.append(
            (f"{REF}.log_prob_use_dynamic_bsz", f"{REF}.log_prob_micro_batch_size_per_gpu", "step", step_of_gpu)
        )
    for dynamic, key, what, responses in places:
        size = run.get(key)
        if not run.get(dynamic, False) and size is not None:
            name = key.removeprefix("actor_rollout_ref.")
            yield divides(BATCH, name, key, size, responses, f"responses of a {what} on each GPU")


def token_findings(run: RunSettings) -> Iterator[Finding]:
    """Token budgets of training and rollout against the longest sequence."""
    places = [(f"{ACTOR}.use_dynamic_bsz", f"{ACTOR}.ppo_max_token_len_per_gpu")]
    places += [
        (f"{part}.log_prob_use_dynamic_bsz", f"{part}.log_prob_max_token_len_per_gpu")
        for part in ([ROLLOUT, REF] if run.uses_reference else [ROLLOUT])
    ]
    for dynamic, key in places:
        if run.get(dynamic, False):
            yield _holds_a_sequence(run, key)
    yield from _rollout_findings(run)
    if run.soup.planned:
        need = f"less than the response budget of {run.response_length} tokens"
        yield judged(TOKENS, "prefix", True, need=need, have=f"up to {run.longest_prefix} tokens")


def _holds_a_sequence(run: RunSettings, key: str) -> Finding:
    name, budget = key.removeprefix("actor_rollout_ref."), run.get(key, 0)
    need = -(-run.sequence // run.sequence_parallel)
    if budget >= need:
        return judged(TOKENS, name, True, need=f"{need} tokens, the longest sequence", have=budget)
    expected = f"at least {need} tokens, the longest prompt with the longest response"
    return refused(TOKENS, name, key, budget, expected, "Without it verl stops at the first such response.")


def _rollout_findings(run: RunSettings) -> Iterator[Finding]:
    length = run.get(f"{ROLLOUT}.max_model_len")
    key = f"{ROLLOUT}.max_model_len"
    if length is not None and length <= run.prompt_length:
        expected = f"more than data.max_prompt_length={run.prompt_length}: a prompt must leave room for a response"
        yield refused(TOKENS, "rollout.max_model_len", key, length, expected)
    elif length is not None:
        how = "" if length >= run.sequence else "responses to the longest prompts are cut short"
        yield judged(TOKENS, "rollout.max_model_len", not how, need=run.sequence, have=length, how=how)
    batched, seqs = run.get(f"{ROLLOUT}.max_num_batched_tokens", 0), run.get(f"{ROLLOUT}.max_num_seqs", 0)
    key = f"{ROLLOUT}.max_num_batched_tokens"
    if batched < seqs:
        expected = f"at least {ROLLOUT}.max_num_seqs={seqs}: every running response takes one token"
        yield refused(TOKENS, "rollout.max_num_batched_tokens", key, batched, expected)
        return
    need = seqs
    if not run.get(f"{ROLLOUT}.enable_chunked_prefill", True):
        need = max(seqs, length or run.sequence)
    how = "" if batched >= need else "without chunked prefill verl raises it"
    yield judged(TOKENS, "rollout.max_num_batched_tokens", not how, need=need, have=batched, how=how)


def verl_findings(config: DictConfig) -> Iterator[Finding]:
    """verl's own check of its configuration."""
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    name, need = "verl's own checks", "accepted"
    critic: Any = need_critic(config)
    try:
        validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=critic)
    except Exception as error:  # an assertion, a ValueError, or what Hydra wraps around them
        yield Finding(BATCH, name, NO, need, "", str(error), error)
    else:
        yield judged(BATCH, name, True, need=need, have=need)
