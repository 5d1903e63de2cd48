"""The data files: columns, rows, prompts as the model will see them, and how many steps they make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from soup_verl.launch.preflight.files import AGENT_COLUMN, SAMPLED_ROWS, Split, read_split
from soup_verl.launch.preflight.images import media_findings
from soup_verl.launch.preflight.prompts import SampledPrompt, builder_of, sampled_prompts, shown
from soup_verl.launch.preflight.report import NO, Finding, judged, refused
from soup_verl.launch.preflight.rows import row_findings
from soup_verl.launch.preflight.run_settings import ROLLOUT, RunSettings
from soup_verl.method.checks import ConfigError
from soup_verl.method.history.response_store import RESPONSE_BYTES
from soup_verl.method.sections import NEEDS_ONE_TURN, SINGLE_TURN

TOPIC = "data"
SHOWN_ROWS = 2
SHOWN_CHARACTERS = 1500
VALIDATION_SHARE = 0.1
"""Of the training's responses, how many those of all validations may be."""
STORED_SHARE = 0.25
"""Of the longest response, how long responses may be on average for replay's store to hold an epoch of them."""


@dataclass(frozen=True)
class Data:
    """What the data files say: findings, the first training prompts rendered, steps of the run; the rows that could be
    read."""

    findings: Sequence[Finding] = ()
    prompts: Sequence[str] = ()
    steps: int = 0
    splits: Mapping[str, Split] = field(default_factory=dict)


def look_at_data(run: RunSettings, tokenizer: Any, model_type: str | None = None, processor: Any = None) -> Data:
    """Read both splits.

    Args:
        tokenizer: one with a chat template; None leaves prompts alone.
        model_type: by which verl's prompt builder is chosen.
        processor: of a model that takes images.
    """
    findings: list[Finding] = []
    prompts: list[str] = []
    splits: dict[str, Split] = {}
    builder = builder_of(run, tokenizer, model_type, processor) if tokenizer is not None else None
    steps = run.get("trainer.total_training_steps", 0)
    for split in SAMPLED_ROWS:
        try:
            found = read_split(run, split)
        except ConfigError as error:
            findings.append(Finding(TOPIC, f"{split} files", NO, "readable rows", "", str(error), error))
            continue
        if found is None:
            have = "remote, or of data.custom_cls: not looked at"
            findings.append(judged(TOPIC, f"{split} files", False, need="local files", have=have))
            continue
        splits[split] = found
        findings += row_findings(run, split, found)
        dropped, exact = 0.0, True
        texts: list[str] = []
        if builder is not None:
            dropped, exact, texts = _look_at_prompts(run, split, found, builder, processor, findings)
        if split == "train":
            findings += _agent_findings(run, found)
            findings += media_findings(run, found, processor)
            prompts = texts
            batches = _batches(run, found.rows, dropped)
            steps = steps_of_run(run, batches)
            findings += _step_findings(run, found, dropped, batches, steps, exact=exact)
        else:
            findings += validation_findings(run, _kept(run, split, found.rows, dropped), steps)
    cut = [t if len(t) <= SHOWN_CHARACTERS else f"{t[:SHOWN_CHARACTERS]} ..." for t in prompts]
    return Data(findings, cut, steps, splits)


def _agent_findings(run: RunSettings, found: Split) -> Iterator[Finding]:
    """A row's own agent loop goes before `rollout.agent.default_agent_loop`."""
    key, agents, setting = "data.train_files", found.agents(), run.soup.single_turn_setting
    known = set(map(repr, SINGLE_TURN)) if setting else agents - {"None", "''"}
    if run.soup.mixing and (others := sorted(agents - known)):
        which = f"{' or '.join(SINGLE_TURN)} with {setting}" if setting else "an agent loop"
        expected = f"{which} in every row of the column {AGENT_COLUMN}, not {', '.join(others)}"
        yield refused(
            TOPIC, "train agent loops", key, run.get(key), expected, NEEDS_ONE_TURN if setting else "Drop the column."
        )


def _look_at_prompts(
    run: RunSettings, split: str, found: Split, builder: Any, processor: Any, findings: list[Finding]
) -> tuple[float, bool, list[str]]:
    """Render and measure prompts; adds to `findings`.

    Returns:
        Share of prompts that verl drops, whether all were measured, and the first prompts as text.
    """
    try:
        prompts = list(sampled_prompts(run, split, found, builder, processor))
    except ConfigError as error:
        findings.append(Finding(TOPIC, f"{split} prompts", NO, "chat messages", "", str(error), error))
        return 0.0, True, []
    if not prompts:
        return 0.0, True, []
    limit, dropped = run.get("data.max_prompt_length", 0), run.get("data.filter_overlong_prompts", False)
    share = sum(len(prompt.token_ids) > limit for prompt in prompts) / len(prompts)
    findings.append(_length_finding(run, split, found, prompts, share))
    with_images = [p for p in prompts if p.images and len(p.token_ids) > limit]
    if with_images and not dropped:
        first = with_images[0]
        expected = f"at least {len(first.token_ids)}, the tokens of {split} row {first.row} from 0 with its images"
        remedy = "verl ends a run at a longer one: raise it, shrink images, or set data.filter_overlong_prompts=true."
        findings.append(refused(TOPIC, f"{split} images' tokens", "data.max_prompt_length", limit, expected, remedy))
    exact = found.rows == len(prompts)
    if share == 1 and dropped and exact and split == "val":  # of training, batches says so
        expected = f"at least one prompt of at most data.max_prompt_length={limit} tokens"
        findings.append(refused(TOPIC, "val prompts", "data.val_files", run.get("data.val_files"), expected))
    first_ones = [prompt for prompt in prompts if not dropped or len(prompt.token_ids) <= limit][:SHOWN_ROWS]
    return (share if dropped else 0.0), exact, [shown(prompt, builder, processor) for prompt in first_ones]


def _length_finding(
    run: RunSettings, split: str, found: Split, prompts: Sequence[SampledPrompt], share: float
) -> Finding:
    """Of the prompts, of which `share` are over the limit."""
    lengths = sorted(len(prompt.token_ids) for prompt in prompts)
    dropped = run.get("data.filter_overlong_prompts", False)
    fate = "are dropped" if dropped else "lose their beginning: set data.filter_overlong_prompts=true"
    return judged(
        TOPIC,
        f"{split} prompt length",
        share == 0 or (dropped and share < 1),
        need=f"at most data.max_prompt_length={run.get('data.max_prompt_length', 0)} tokens",
        have=f"longest {lengths[-1]}, median {lengths[len(lengths) // 2]}; {share:.1%} over",
        how=f"of {len(lengths)} of {found.rows} rows" + (f"; longer ones {fate}" if share else ""),
    )


def _kept(run: RunSettings, split: str, rows: int, dropped: float) -> int:
    limit = run.get(f"data.{split}_max_samples", -1)
    return round((min(rows, limit) if limit > 0 else rows) * (1 - dropped))


def _batches(run: RunSettings, rows: int, dropped: float) -> int:
    return _kept(run, "train", rows, dropped) // run.prompts


def steps_of_run(run: RunSettings, batches: int) -> int:
    """Steps, with `batches` an epoch."""
    steps = batches * run.get("trainer.total_epochs", 1)
    return min(steps, run.get("trainer.total_training_steps", steps))


def _step_findings(
    run: RunSettings, found: Split, dropped: float, batches: int, steps: int, *, exact: bool
) -> Iterator[Finding]:
    """Batches an epoch, steps of the run, and whether history has time to be used. `dropped` may be an estimate."""
    kept = _kept(run, "train", found.rows, dropped)
    if batches == 0 and (exact or dropped == 0):
        expected = f"at most the {kept} training prompts that there are"
        yield refused(TOPIC, "batches", "data.train_batch_size", run.prompts, expected)
        return
    have = f"{batches} batches an epoch, {steps} steps"
    how = f"{kept} prompts / {run.prompts} a batch, {kept % run.prompts} left over"
    yield judged(TOPIC, "batches", batches > 0, need="at least 1", have=have, how=how)
    asked = run.get("trainer.total_training_steps")
    if asked is not None and steps < asked:
        need = f"trainer.total_training_steps={asked}"
        have = f"{steps} in trainer.total_epochs={run.get('trainer.total_epochs', 1)}"
        how = "the run ends there, its last step saved and validated; raise trainer.total_epochs for more"
        yield judged(TOPIC, "steps asked for", False, need=need, have=have, how=how)
    name = "steps with history"
    if run.soup.mixing and run.soup.source == "lookahead":
        age = max(run.soup.lookahead.ages)
        need = f"more steps than soup.lookahead.age={age}"
        yield judged(TOPIC, name, steps > age, need=need, have=max(0, steps - age))
    if run.uses_replay:
        need = f"more steps than one epoch of {batches}: replay starts at a prompt's second visit"
        yield judged(TOPIC, name, steps > batches, need=need, have=max(0, steps - batches))
        yield _store_finding(run, kept)


def _store_finding(run: RunSettings, prompts: int) -> Finding:
    """Whether `replay` has a prompt's responses still when it comes again: an epoch of other prompts comes between."""
    replay, mixed = run.soup.replay, round(run.n * run.soup.mixed_fraction)
    responses = prompts * max(1, min(replay.per_prompt, run.n - mixed))
    most, each = replay.capacity_tokens // RESPONSE_BYTES, replay.capacity_tokens // max(1, responses)
    good = responses <= most and each >= STORED_SHARE * run.response_length
    return judged(
        TOPIC,
        "replay store",
        good,
        need=f"room for an epoch's {responses} on-policy responses, which may have {run.response_length} tokens each",
        have=f"soup.replay.capacity_tokens={replay.capacity_tokens}: {most} responses, {each} tokens for each of those",
        how="the least used go first" + ("" if good else "; raise it, for 10 bytes of host memory a token"),
    )


def validation_findings(run: RunSettings, prompts: int, steps: int) -> Iterator[Finding]:
    """Responses of all validations against those of training, which have the same token budget.

    Where responses are as long in both, their quotient is an upper bound of validation's time over training's: a
    validation only samples and grades, while a training step goes on to compute log-probs and to update.

    Args:
        run: the settings.
        prompts: of a validation.
        steps: of the run; verl validates before the first (`trainer.val_before_train`), at every multiple of
            `trainer.test_freq` and at the last.
    """
    every, n = run.get("trainer.test_freq", -1), run.get(f"{ROLLOUT}.val_kwargs.n", 1)
    times = int(run.get("trainer.val_before_train", True)) + (-(-steps // every) if every > 0 else 0)
    trained, validated = steps * run.prompts * run.n, times * prompts * n
    if run.get("trainer.val_only", False) or not (trained and validated):
        return
    good = validated <= VALIDATION_SHARE * trained
    yield judged(
        TOPIC,
        "validation",
        good,
        need=f"at most {VALIDATION_SHARE:.0%} of training's {steps} x {run.prompts} x {run.n} = {trained} responses",
        have=f"{times} validation{'s' * (times > 1)} x {prompts} prompts x {n} = {validated} responses, "
        f"{validated / trained:.1%}",
        how="bounds validation's time over training's if responses are as long: training updates besides"
        + ("" if good else f"; raise trainer.test_freq={every} or lower {ROLLOUT}.val_kwargs.n={n}"),
    )
