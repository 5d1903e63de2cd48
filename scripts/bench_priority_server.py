"""In the rollout server of `bench_priority.py`: when each request came, got its first token and ended.

The engine's policy is `priority` throughout; in odd steps every request gets the same one, which is first come, first
served. verl empties the engine's cache of prompts once before each step.
"""

import json
import os
import sys
import time

from bench_priority import by_priority

step = 0


def counting(reset):
    async def counted(engine, *args, **kwargs):
        global step
        step += 1
        return await reset(engine, *args, **kwargs)

    return counted


def timed(generate):
    async def noted(engine, *args, priority=0, **kwargs):
        request = {"step": step, "prefix": bool(priority), "came": time.monotonic()}
        async for output in generate(engine, *args, priority=priority if by_priority(step) else 0, **kwargs):
            request.setdefault("began", time.monotonic())
            yield output
        with open(os.environ["BENCH_REQUESTS"], "a") as file:
            file.write(json.dumps(request | {"ended": time.monotonic()}) + "\n")

    return noted


if engine := sys.modules.get("vllm.v1.engine.async_llm"):
    engine.AsyncLLM.reset_prefix_cache = counting(engine.AsyncLLM.reset_prefix_cache)
    engine.AsyncLLM.generate = timed(engine.AsyncLLM.generate)
