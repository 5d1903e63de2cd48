"""GPU memory, host memory and disk that the run will take: estimates, so they only warn."""

from __future__ import annotations

from collections.abc import Iterator

from soup_verl.launch.preflight import sizing
from soup_verl.launch.preflight.hardware import Hardware
from soup_verl.launch.preflight.report import Finding, fits, judged
from soup_verl.launch.preflight.run_settings import ACTOR, MODEL, ROLLOUT, RunSettings
from soup_verl.launch.preflight.sizing import NOTHING, Amount, ModelShape

TOPIC = "memory (estimates)"
HOST_SPARE = 0.1
"""Share of the host memory left to Ray's object store, data workers and the processes themselves."""
GPU_SPARE = 0.08
"""Share of a GPU left to CUDA, NCCL and what the allocator loses."""


def memory_findings(run: RunSettings, hardware: Hardware, shape: ModelShape) -> Iterator[Finding]:
    """Phases of a GPU, the rollout engine's cache, the host."""
    note = "" if run.nodes == 1 or hardware.described else "; only this node was looked at"
    if run.on_cpu:
        need = _on_cpu(run, shape) + history(run, shape) + synced_policy(run, shape)
        yield fits(TOPIC, "host memory", need, hardware.host_bytes, spare=HOST_SPARE, where=" available")
        return
    if hardware.gpu_bytes == 0:
        need = training(run, shape)
        yield judged(TOPIC, "GPU while training", False, need=need, have="no GPU here", how=need.formula)
    else:
        yield from _gpu_findings(run, hardware, shape, note)
    need = history(run, shape) + synced_policy(run, shape) + offloaded(run, shape)
    yield fits(TOPIC, "host memory a node", need, hardware.host_bytes, spare=HOST_SPARE, where=f" available{note}")


def _gpu_findings(run: RunSettings, hardware: Hardware, shape: ModelShape, note: str) -> Iterator[Finding]:
    where = f" a GPU{note}"
    yield fits(TOPIC, "GPU while training", training(run, shape), hardware.gpu_bytes, spare=GPU_SPARE, where=where)
    yield fits(TOPIC, "GPU while rolling out", rolling_out(run, hardware, shape), hardware.gpu_bytes, where=where)
    yield _cache_finding(run, hardware, shape)


def _trainable(run: RunSettings, shape: ModelShape) -> int:
    """With LoRA gradients and moments are those of the adapters, small enough to leave out."""
    return 0 if run.get(f"{MODEL}.lora_rank", 0) > 0 else shape.params


def master_weights(run: RunSettings, shape: ModelShape) -> Amount:
    """One GPU's shard, as the trainer keeps it."""
    return sizing.weights("weights", shape.params, element_bytes=run.actor_bytes, shards=run.shards)


def optimizer(run: RunSettings, shape: ModelShape) -> Amount:
    """One GPU's shard of Adam's two moments."""
    params = _trainable(run, shape)
    return sizing.weights("Adam", params, element_bytes=run.actor_bytes, copies=2, shards=run.shards)


def training(run: RunSettings, shape: ModelShape) -> Amount:
    """One GPU at its fullest during the update."""
    gradients = sizing.weights("gradients", _trainable(run, shape), element_bytes=run.actor_bytes, shards=run.shards)
    return master_weights(run, shape) + gradients + optimizer(run, shape) + _working(run, shape) + _asleep(run, shape)


def _working(run: RunSettings, shape: ModelShape) -> Amount:
    tokens = run.training_tokens
    checkpointing = bool(run.get(f"{MODEL}.enable_gradient_checkpointing", True))
    fused = bool(run.get(f"{MODEL}.use_fused_kernels", False))  # these never hold all logits
    return (
        sizing.gathered(shape, element_bytes=run.compute_bytes)
        + sizing.activations(shape, tokens, element_bytes=run.compute_bytes, checkpointing=checkpointing)
        + (NOTHING if fused else sizing.logits(shape, tokens))
    )


def _asleep(run: RunSettings, shape: ModelShape) -> Amount:
    """What the rollout engine keeps while the trainer works."""
    if run.get(f"{ROLLOUT}.free_cache_engine", True):
        return NOTHING
    return sizing.rollout_weights(shape, element_bytes=run.rollout_bytes, tensor_parallel=run.tensor_parallel)


def rolling_out(run: RunSettings, hardware: Hardware, shape: ModelShape) -> Amount:
    """What the rollout engine takes of a GPU, and what the trainer leaves there if it is the same one."""
    share = run.get(f"{ROLLOUT}.gpu_memory_utilization", 0.5)
    engine = sizing.product("rollout engine", (share, "gpu_memory_utilization"), (hardware.gpu_bytes, "bytes"))
    if run.rolls_out_apart:
        return engine
    kept = NOTHING if run.get(f"{ACTOR}.fsdp_config.param_offload", False) else master_weights(run, shape)
    if not run.get(f"{ACTOR}.fsdp_config.optimizer_offload", False):
        kept += optimizer(run, shape)
    return engine + kept


def _cache_finding(run: RunSettings, hardware: Hardware, shape: ModelShape) -> Finding:
    """Tokens that fit beside the rollout engine's weights, against those of all responses under way."""
    tensor_parallel = run.tensor_parallel
    token = sizing.kv_token(shape, element_bytes=run.rollout_bytes, tensor_parallel=tensor_parallel)
    weights = sizing.rollout_weights(shape, element_bytes=run.rollout_bytes, tensor_parallel=tensor_parallel)
    room = hardware.gpu_bytes * run.get(f"{ROLLOUT}.gpu_memory_utilization", 0.5) - weights.bytes
    tokens = max(0, int(room // token.bytes))
    replicas = max(1, run.rollout_gpus // run.replica)
    running = min(run.get(f"{ROLLOUT}.max_num_seqs", 1), -(-run.prompts * run.n // replicas))
    return judged(
        TOPIC,
        "KV cache of a replica",
        tokens >= run.sequence,
        need=f"{run.sequence:,} tokens, one full sequence; {running} at once: {running * run.sequence:,}",
        have=f"{tokens:,} tokens: {tokens / max(1, run.sequence):,.1f} full sequences at once, the rest waits",
        how=f"{token.formula} = {token.bytes:,} bytes, beside {weights.formula} = {weights}",
    )


def offloaded(run: RunSettings, shape: ModelShape) -> Amount:
    """Host memory a node of what FSDP keeps there."""
    need, fsdp = NOTHING, f"{ACTOR}.fsdp_config"
    if run.get(f"{fsdp}.param_offload", False):
        need += master_weights(run, shape).times(run.gpus_per_node, "GPUs a node")
    if run.get(f"{fsdp}.optimizer_offload", False):
        need += optimizer(run, shape).times(run.gpus_per_node, "GPUs a node")
    return need + _reference(run, shape)


def _reference(run: RunSettings, shape: ModelShape) -> Amount:
    """verl keeps the reference policy in host memory, always."""
    if not run.uses_reference or run.get(f"{MODEL}.lora_rank", 0) > 0:
        return NOTHING
    share = sizing.weights("reference policy", shape.params, element_bytes=run.actor_bytes, shards=run.shards)
    return share.times(run.gpus_per_node, "GPUs a node")


def history(run: RunSettings, shape: ModelShape) -> Amount:
    """Host memory of the history, on the node that has most."""
    soup = run.soup
    trainable, shards = _trainable(run, shape), run.shards
    if run.uses_snapshots:
        on_host = run.on_cpu or run.get(f"{ACTOR}.fsdp_config.param_offload", False)
        return sizing.snapshot_buffer(
            trainable,
            capacity=soup.snapshot.capacity,
            element_bytes=run.rollout_bytes,
            laid_out_bytes=run.serving_bytes if on_host else 0,
            shards=shards,
            gpus_per_node=run.gpus_per_node,
        )
    if run.unlearns:
        current = sizing.weights("current policy", trainable, element_bytes=run.actor_bytes, shards=shards)
        return current.times(run.gpus_per_node, "GPUs a node")
    if run.uses_replay:
        return sizing.replay_store(soup.replay.capacity_tokens)
    if not soup.planned:
        return NOTHING
    return sizing.pending_prefixes(
        steps=max(soup.lookahead.ages), prompts=run.prompts, mixed=run.mixed, longest=run.longest_prefix
    )


def synced_policy(run: RunSettings, shape: ModelShape) -> Amount:
    """Host memory a node of the weights that the engines of two pools have, by which verl's separate_async computes the
    old log-probs of every mini-batch; in all but the first the newer ones are there meanwhile, too."""
    if not run.has_two_pools or run.get("algorithm.rollout_correction.bypass_mode", False):
        return NOTHING
    copies = 1 if run.get("trainer.v1.separate_async.parameter_sync_step", 1) == 1 else 2
    share = sizing.weights(
        "the engines' policy",
        _trainable(run, shape),
        element_bytes=run.actor_bytes,
        copies=copies,
        shards=run.shards,
    )
    return share.times(run.gpus_per_node, "GPUs a node")


def _on_cpu(run: RunSettings, shape: ModelShape) -> Amount:
    """All ranks and replicas share the host's memory, and the rollout engine does not sleep."""
    cache = run.get(f"{ROLLOUT}.engine_kwargs.vllm.kv_cache_memory_bytes", 0)
    rank = training(run, shape) + sizing.product("KV cache", (cache, "bytes"))
    return rank.times(run.world_size, "ranks") + _reference(run, shape)


def disk_findings(run: RunSettings, hardware: Hardware, shape: ModelShape, steps: int) -> Iterator[Finding]:
    """Checkpoints against free disk.

    Args:
        steps: steps of the run.
    """
    every = run.get("trainer.save_freq", -1)
    saves = -(-steps // every) if every > 0 else 0
    kept = max(run.get("trainer.max_actor_ckpt_to_keep", saves), 2)  # the last is there until the next is whole
    need = checkpoints(run, shape, min(saves, kept + (run.soup.keep_best is not None)))
    where = " free at trainer.default_local_dir"
    if not saves:
        yield judged(TOPIC, "disk", True, need="no checkpoints: trainer.save_freq=-1", have="")
        return
    yield fits(TOPIC, "disk", need, hardware.disk_bytes, spare=0.02, where=where)


def checkpoints(run: RunSettings, shape: ModelShape, kept: int) -> Amount:
    """This many checkpoints of a run."""
    contents = run.get(f"{ACTOR}.checkpoint.save_contents", ["model", "optimizer", "extra"])
    need = NOTHING
    for name, copies, size in (
        ("model", 1, run.actor_bytes),
        ("optimizer", 2, run.actor_bytes),
        ("hf_model", 1, sizing.GENERATION_BYTES),
    ):
        params = _trainable(run, shape) if name == "optimizer" else shape.params
        if name in contents and params:
            need += sizing.product(name, (kept, "checkpoints"), (params, "parameters"), (copies * size, "bytes"))
    return need + _stored_history(run, shape, kept)


def _stored_history(run: RunSettings, shape: ModelShape, kept: int) -> Amount:
    """Tokens are int32 ids and float32 log-probs on disk."""
    soup, times = run.soup, (kept, "checkpoints")
    if run.uses_snapshots:
        policies = [
            (soup.snapshot.capacity, "policies"),
            (_trainable(run, shape), "parameters"),
            (run.rollout_bytes, "bytes"),
        ]
        return sizing.product("kept policies", times, *policies)
    if run.uses_replay:
        return sizing.product("replay store", times, (soup.replay.capacity_tokens, "tokens"), (8, "bytes"))
    if not soup.planned or run.unlearns:
        return NOTHING
    waiting = [(max(soup.lookahead.ages), "steps"), (run.prompts, "prompts"), (run.mixed, "mixed responses")]
    return sizing.product("pending prefixes", times, *waiting, (run.longest_prefix, "tokens"), (8, "bytes"))
