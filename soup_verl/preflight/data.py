"""The data files: columns, rows, prompts as the model will see them, and how many steps they make."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soup_verl.config import ConfigError
from soup_verl.preflight.report import NO, Finding, judged, refused
from soup_verl.preflight.run_settings import ROLLOUT, RunSettings
from soup_verl.prompt_builder import prompt_builder

TOPIC = "data"
SAMPLED_ROWS = {"train": 1000, "val": 250}
"""Rows of which the prompts are tokenized, spread evenly over the files."""
AGENT_COLUMN = "agent_name"
"""verl: a row's own agent loop, where the files have this column."""
SHOWN_ROWS = 2
SHOWN_CHARACTERS = 1500
VALIDATION_SHARE = 0.1
"""Of the training's responses, how many those of all validations may be."""


@dataclass(frozen=True)
class Split:
    """Rows of the training or validation files.

    Args:
        rows: how many there are, before any are dropped.
        columns: those that every file has.
        prompts: row number -> prompt, of the rows that were looked at.
        agents: what the rows have for an agent loop, as Python writes it; empty where no file has that column.
    """

    rows: int
    columns: frozenset[str]
    prompts: Mapping[int, Any]
    agents: frozenset[str]


@dataclass(frozen=True)
class Data:
    """What the data files say: findings, the first training prompts rendered, steps of the run."""

    findings: Sequence[Finding] = ()
    prompts: Sequence[str] = ()
    steps: int = 0


def look_at_data(run: RunSettings, tokenizer: Any, model_type: str | None = None) -> Data:
    """Read both splits.

    Args:
        tokenizer: one with a chat template; None leaves prompts alone.
        model_type: by which verl's prompt builder is chosen.
    """
    findings: list[Finding] = []
    prompts: list[str] = []
    builder = None
    if tokenizer is not None:
        template_args = run.get("data.apply_chat_template_kwargs", {})
        builder = prompt_builder(tokenizer, model_type=model_type, template_args=template_args)
    steps = run.get("trainer.total_training_steps", 0)
    for split in SAMPLED_ROWS:
        try:
            found = read_split(run, split)
        except ConfigError as error:
            findings.append(Finding(TOPIC, f"{split} files", NO, "readable rows", "", str(error), error))
            continue
        if found is None:
            findings.append(judged(TOPIC, f"{split} files", False, need="local files", have="remote: not looked at"))
            continue
        findings += _column_findings(run, split, found)
        dropped = 0.0
        texts: list[str] = []
        if builder is not None:
            dropped, texts = _look_at_prompts(run, split, found, builder, findings)
        if split == "train":
            findings += _agent_findings(run, found)
            prompts = texts
            batches = _batches(run, found.rows, dropped)
            steps = steps_of_run(run, batches)
            findings += _step_findings(run, found, dropped, batches, steps)
        else:
            findings += validation_findings(run, _kept(run, split, found.rows, dropped), steps)
    shown = [t if len(t) <= SHOWN_CHARACTERS else f"{t[:SHOWN_CHARACTERS]} ..." for t in prompts]
    return Data(findings, shown, steps)


def read_split(run: RunSettings, split: str) -> Split | None:
    """The files of `data.train_files` or `data.val_files`; None if one of them is remote.

    Raises:
        ConfigError: a row that is not JSON, with its number.
    """
    key = f"data.{split}_files"
    files = run.get(key, [])
    files = files if isinstance(files, Sequence) and not isinstance(files, str) else [files]
    if any("://" in str(file) for file in files):
        return None
    prompt_key = run.get("data.prompt_key", "prompt")
    tables = [_read_file(key, Path(str(file)).expanduser(), prompt_key) for file in files]
    rows = sum(len(prompts) for _, prompts, _ in tables)
    stride = -(-rows // SAMPLED_ROWS[split]) or 1
    found, start = {}, 0
    for _, prompts, _ in tables:
        for i in range(-start % stride, len(prompts), stride):
            found[start + i] = prompts[i].as_py() if hasattr(prompts[i], "as_py") else prompts[i]
        start += len(prompts)
    agents = frozenset.union(*(agents for _, _, agents in tables))
    if agents and not all(agents for _, _, agents in tables):
        agents |= {repr(None)}  # verl's in the rows of a file without the column
    return Split(rows, frozenset.intersection(*(columns for columns, _, _ in tables)), found, agents)


def _read_file(key: str, path: Path, prompt_key: str) -> tuple[frozenset[str], Any, frozenset[str]]:
    """Columns; the prompts: a list, or an Arrow column of which only what is looked at becomes Python objects; agent
    loops, as in `Split`."""
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        columns = frozenset(pq.read_schema(path).names)
        table = pq.read_table(path, columns=[prompt_key, *(columns & {AGENT_COLUMN})])
        agents = table[AGENT_COLUMN].unique().to_pylist() if AGENT_COLUMN in columns else []
        return columns, table[prompt_key], frozenset(map(repr, agents))
    rows = list(_json_rows(key, path))
    columns = frozenset.intersection(*(frozenset(row) for row in rows)) if rows else frozenset()
    agents = [row.get(AGENT_COLUMN) for row in rows] if any(AGENT_COLUMN in row for row in rows) else []
    return columns, [row.get(prompt_key) for row in rows], frozenset(map(repr, agents))


def _json_rows(key: str, path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(key, str(path), f"JSON in every line, not {line[:60]!r} in line {number}") from error
        if not isinstance(row, dict):
            raise ConfigError(key, str(path), f"an object in every line, not {line[:60]!r} in line {number}")
        yield row


def _column_findings(run: RunSettings, split: str, found: Split) -> list[Finding]:
    """verl reads two columns for the reward; a reward loop of one's own may do without them."""
    wanted = [run.get("data.prompt_key", "prompt"), run.get("data.reward_fn_key", "data_source"), "reward_model"]
    missing = [name for name in wanted if name not in found.columns]
    how = "" if not missing else f"{', '.join(missing)} missing: verl's reward managers read them"
    need, have = ", ".join(wanted), ", ".join(sorted(found.columns))
    return [judged(TOPIC, f"{split} columns", not missing, need=need, have=have, how=how)]


def _agent_findings(run: RunSettings, found: Split) -> Iterator[Finding]:
    """A row's own agent loop goes before `rollout.agent.default_agent_loop`, and only `soup_agent` mixes."""
    if run.soup.mixing and (others := sorted(found.agents - {repr("soup_agent")})):
        key = "data.train_files"
        expected = f"soup_agent in every row of the column {AGENT_COLUMN}, not {', '.join(others)}"
        remedy = "Drop the column, or set soup.mixed_fraction=0."
        yield refused(TOPIC, "train agent loops", key, run.get(key), expected, remedy)


def _look_at_prompts(
    run: RunSettings, split: str, found: Split, builder: Any, findings: list[Finding]
) -> tuple[float, list[str]]:
    """Render and measure; adds to `findings`.

    Returns:
        Share of prompts over the limit, and the first prompts as text.
    """
    try:
        prompts = [token_ids(builder, run, split, row, prompt) for row, prompt in found.prompts.items()]
    except ConfigError as error:
        findings.append(Finding(TOPIC, f"{split} prompts", NO, "chat messages", "", str(error), error))
        return 0.0, []
    if not prompts:
        return 0.0, []
    lengths = [len(ids) for ids in prompts]
    limit = run.get("data.max_prompt_length", 0)
    share = sum(length > limit for length in lengths) / len(lengths)
    dropped = run.get("data.filter_overlong_prompts", False)
    fate = "are dropped" if dropped else "lose their beginning: set data.filter_overlong_prompts=true"
    findings.append(
        judged(
            TOPIC,
            f"{split} prompt length",
            share == 0 or (dropped and share < 1),
            need=f"at most data.max_prompt_length={limit} tokens",
            have=f"longest {max(lengths)}, median {sorted(lengths)[len(lengths) // 2]}; {share:.1%} over",
            how=f"of {len(lengths)} of {found.rows} rows" + (f"; longer ones {fate}" if share else ""),
        )
    )
    shown = [builder.tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in prompts[:SHOWN_ROWS]]
    return (share if dropped else 0.0), shown


def token_ids(builder: Any, run: RunSettings, split: str, row: int, prompt: Any) -> list[int]:
    """The tokens that a response to `prompt` continues, from verl's own builder.

    Raises:
        ConfigError: the prompt is no list of text messages, or the template refuses it; names the row.
    """
    key = f"data.{split}_files"
    if not (isinstance(prompt, list) and prompt and all(_is_text_message(m) for m in prompt)):
        expected = f"a list of messages with role and text in every row, not {str(prompt)[:80]!r} in row {row}"
        raise ConfigError(key, run.get(key), expected)
    try:
        return builder.build_initial_tokens(prompt)
    except Exception as error:  # a template may refuse anything
        raise ConfigError(key, run.get(key), f"prompts that the chat template takes; row {row}: {error}") from error


def _is_text_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(k), str) for k in ("role", "content"))


def _kept(run: RunSettings, split: str, rows: int, dropped: float) -> int:
    limit = run.get(f"data.{split}_max_samples", -1)
    return round((min(rows, limit) if limit > 0 else rows) * (1 - dropped))


def _batches(run: RunSettings, rows: int, dropped: float) -> int:
    return _kept(run, "train", rows, dropped) // run.prompts


def steps_of_run(run: RunSettings, batches: int) -> int:
    """Steps, with `batches` an epoch."""
    steps = batches * run.get("trainer.total_epochs", 1)
    return min(steps, run.get("trainer.total_training_steps", steps))


def _step_findings(run: RunSettings, found: Split, dropped: float, batches: int, steps: int) -> Iterator[Finding]:
    """Batches an epoch, steps of the run, and whether history has time to be used."""
    kept = _kept(run, "train", found.rows, dropped)
    if batches == 0 and len(found.prompts) == found.rows:  # otherwise `dropped` is an estimate
        expected = f"at most the {kept} training prompts that there are"
        yield refused(TOPIC, "batches", "data.train_batch_size", run.prompts, expected)
        return
    have = f"{batches} batches an epoch, {steps} steps"
    how = f"{kept} prompts / {run.prompts} a batch, {kept % run.prompts} left over"
    yield judged(TOPIC, "batches", batches > 0, need="at least 1", have=have, how=how)
    name = "steps with history"
    if run.soup.mixing and run.soup.source == "lookahead":
        age = max(run.soup.lookahead.ages)
        need = f"more steps than soup.lookahead.age={age}"
        yield judged(TOPIC, name, steps > age, need=need, have=max(0, steps - age))
    if run.uses_replay:
        need = f"more steps than one epoch of {batches}: replay starts at a prompt's second visit"
        yield judged(TOPIC, name, steps > batches, need=need, have=max(0, steps - batches))


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
