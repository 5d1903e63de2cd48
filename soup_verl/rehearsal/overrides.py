"""What a rehearsal changes in a run's command: sizes, places and the platform. Everything else is the script's own."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soup_verl.launch.preflight.run_settings import ACTOR, MODEL, REF, ROLLOUT, RunSettings
from soup_verl.method.mixing import mixed_sessions
from soup_verl.records.settings import flatten

PROMPTS, RESPONSES, RESPONSE_TOKENS = 2, 4, 24  # a step, a prompt, a response
BATCHES = 6  # of the training data; 2 where history begins with a prompt's second visit
VALIDATION_ROWS, VALIDATION_RESPONSES = 2, 2  # of a benchmark, of a row
AS_ON_GPU = (f"{ACTOR}.strategy", f"{MODEL}.use_remove_padding", f"{MODEL}.enable_gradient_checkpointing")
"""What the platform changes and a CPU can do: it stays the script's."""


@dataclass(frozen=True)
class Plan:
    """Steps of the rehearsed run.

    Args:
        first: the first step with prefixes; 1 for a run without any.
        steps: of the run; the last three have prefixes.
        checkpoint: the step whose checkpoint is resumed.
    """

    first: int

    @property
    def steps(self) -> int:
        return self.first + 2

    @property
    def checkpoint(self) -> int:
        return max(2, self.first)


def plan(run: RunSettings, batches: int) -> Plan:
    """When history begins with ages of 1 and `batches` an epoch."""
    if not run.soup.planned:
        return Plan(first=1)
    if run.soup.source == "replay":
        return Plan(first=batches + 1)
    return Plan(first=3 if run.soup.source == "snapshot" and not run.soup.warm_start else 2)


def batches(run: RunSettings) -> int:
    """How many an epoch shall have."""
    return 2 if run.uses_replay else BATCHES


def sizes(run: RunSettings, the_plan: Plan, *, prompt_tokens: int, vocab: int, hidden: int) -> dict[str, Any]:
    """The scaled-down sizes.

    Args:
        run: the script's own settings.
        prompt_tokens: of the longest prompt.
        vocab, hidden: of the small model.
    """
    sequence = prompt_tokens + RESPONSE_TOKENS
    mini_batch = 1 if run.mini_batch < run.prompts else PROMPTS
    return {
        "data.train_batch_size": PROMPTS,
        "data.max_prompt_length": prompt_tokens,
        "data.max_response_length": RESPONSE_TOKENS,
        f"{ACTOR}.ppo_mini_batch_size": mini_batch,
        f"{ACTOR}.ppo_max_token_len_per_gpu": 2 * sequence,
        f"{ACTOR}.fsdp_config.fsdp_size": -1,
        f"{ACTOR}.ulysses_sequence_parallel_size": 1,
        f"{ROLLOUT}.n": responses(run),
        f"{ROLLOUT}.max_model_len": sequence,
        f"{ROLLOUT}.tensor_model_parallel_size": 1,
        f"{ROLLOUT}.data_parallel_size": 1,
        f"{ROLLOUT}.pipeline_model_parallel_size": 1,
        f"{ROLLOUT}.val_kwargs.n": min(VALIDATION_RESPONSES, run.get(f"{ROLLOUT}.val_kwargs.n", 1)),
        # verl sends a weight in one piece.
        f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes": max(16, (vocab * hidden * 4 >> 20) + 1),
        "trainer.nnodes": 1,
        "trainer.n_gpus_per_node": 1,
        "trainer.total_training_steps": the_plan.steps,
        "trainer.total_epochs": the_plan.steps,
        "trainer.val_before_train": True,
        "trainer.test_freq": -1,
        "trainer.save_freq": the_plan.checkpoint,
        **_micro_batches(run),
        **_down_sampling(run),
        **_history(run),
    }


def responses(run: RunSettings) -> int:
    """Of a prompt: few, but enough for a mixed one."""
    fraction = max(run.soup.mixed_fraction, run.soup.mixed_fraction_schedule.final or 0)
    enough = (n for n in range(RESPONSES, run.n) if not run.soup.mixing or mixed_sessions(n=n, mixed_fraction=fraction))
    return next(enough, run.n)


def _micro_batches(run: RunSettings) -> dict[str, Any]:
    keys = [f"{ACTOR}.ppo_micro_batch_size_per_gpu"]
    keys += [f"{part}.log_prob_micro_batch_size_per_gpu" for part in (ROLLOUT, REF)]
    return {key: 1 for key in keys if run.get(key) is not None}


def _down_sampling(run: RunSettings) -> dict[str, Any]:
    """The same share of the responses, but two at least."""
    if run.soup.down_sampling.train_on is None:
        return {}
    return {"soup.down_sampling.train_on": max(2, responses(run) * run.trained // run.n)}


def _history(run: RunSettings) -> dict[str, Any]:
    """Ages, prefix lengths and schedules that short runs and responses have room for."""
    soup, found = run.soup, dict[str, Any]()
    if not soup.planned:
        return found
    if soup.source == "lookahead":
        found["soup.lookahead.age"] = 1
    if soup.source == "snapshot":
        found["soup.snapshot.every"] = 1
    lengths = soup.prefix_length
    if lengths.unit == "tokens":
        room = (RESPONSE_TOKENS - 1) // (4 if soup.position == "middle" else 2)
        given = {"low": lengths.low, "high": lengths.high, "schedule.final": lengths.schedule.final}
        found |= {f"soup.prefix_length.{k}": min(v, room) for k, v in given.items() if v is not None}
    total = run.get("trainer.total_training_steps")
    if lengths.schedule.shape != "constant" and lengths.schedule.steps is None:
        found["soup.prefix_length.schedule.steps"] = total  # the steps that are rehearsed are the run's first
    if soup.mixed_fraction_schedule.shape != "constant":
        if not mixed_sessions(n=responses(run), mixed_fraction=soup.mixed_fraction):
            found["soup.mixed_fraction_schedule.steps"] = 2  # it begins without prefixes
        elif soup.mixed_fraction_schedule.steps is None:
            found["soup.mixed_fraction_schedule.steps"] = total
    return found


def places(run: RunSettings, folder: Path, *, model: Path, train: list[str], val: list[str]) -> dict[str, Any]:
    """Everything that is read or written is the rehearsal's own."""
    written = ("rollout_data_dir", "validation_data_dir")
    return {
        "data.train_files": train,
        "data.val_files": val,
        f"{MODEL}.path": str(model),
        "trainer.default_local_dir": str(folder / "run"),
        "trainer.resume_mode": "auto",
        "trainer.logger": ["console", "file"],  # no tracker hears of it
        **{f"trainer.{key}": str(folder / key) for key in written if run.get(f"trainer.{key}") is not None},
    }


def not_exercised(run: RunSettings) -> dict[str, Any]:
    """Switches that wait for right answers, which a random model does not give."""
    found: dict[str, Any] = {}
    if run.get("algorithm.filter_groups.enable"):
        found["algorithm.filter_groups.enable"] = False  # no group would ever be kept
    if run.uses_replay and run.soup.when in ("saturated", "medium"):
        found["soup.when"] = "always"  # no prompt would be mixed at its second visit
    if run.uses_replay and run.soup.replay.choice in ("latest_right", "surest_right", "balanced"):
        found["soup.replay.choice"] = "latest"
    if run.soup.start_at_solved_rate is not None:
        found["soup.start_at_solved_rate"] = None
    return found


def as_on_gpu(run: RunSettings, platform: Mapping[str, Any]) -> dict[str, Any]:
    """
    Args:
        platform: the content of the GPU platform's file, which the CPU's stands in for.
    """
    return {key: run.get(key) for key in (*AS_ON_GPU, *flatten(platform))}


def hidden_settings(platform: Mapping[str, Any], composed: RunSettings, *, decided: Collection[str]) -> dict[str, Any]:
    """Settings of the platform's file that the script's own settings hide.

    Args:
        platform: the file's content.
        composed: script and platform together.
        decided: keys that have their value already.
    """
    return {
        key: value
        for key, value in flatten(platform).items()
        if key not in decided and "${" not in str(value) and composed.get(key) != value
    }


def assignment(key: str, value: Any) -> str:
    """`KEY=VALUE` as Hydra reads it."""
    return f"{key}={_text(value)}"


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, str) and not re.fullmatch(r"[\w./-]+", value):
        return "'" + value.replace("'", "\\'") + "'"
    return str(value)
