"""What every row must have, in all of them: a chat as its prompt, and what verl's reward managers read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from soup_verl.launch.preflight.files import Split
from soup_verl.launch.preflight.report import Finding, judged, refused
from soup_verl.launch.preflight.run_settings import ROLLOUT, RunSettings
from soup_verl.method.sections import SINGLE_TURN
from soup_verl.tasks.data.datasets import DATASETS
from soup_verl.tasks.domains import MATHEMATICS, domain_name, domain_of
from soup_verl.tasks.reward_function import FUNCTION, is_ours

TOPIC = "data"
SCORED_BY_VERL = (*SINGLE_TURN, "tool_agent")
"""Agent loops whose responses verl's reward managers score; others may come with a reward."""


def row_findings(run: RunSettings, split: str, found: Split) -> Iterator[Finding]:
    """The columns, then the first row of every fault."""
    wanted = [run.get("data.prompt_key", "prompt"), run.get("data.reward_fn_key", "data_source"), "reward_model"]
    missing = [name for name in wanted if name not in found.columns]
    needed = managers_read_rows(run)
    if missing and needed:
        expected = f"the columns {', '.join(wanted)}, not only {', '.join(sorted(found.columns))}"
        yield refused(TOPIC, f"{split} columns", f"data.{split}_files", run.get(f"data.{split}_files"), expected)
        return
    how = "" if not missing else f"{', '.join(missing)} missing: verl's reward managers read them"
    need, have = ", ".join(wanted), ", ".join(sorted(found.columns))
    yield judged(TOPIC, f"{split} columns", not missing, need=need, have=have, how=how)
    if split == "train":
        yield from _benchmarks(run, found)
    if not missing:
        yield from _faults(run, split, found, check_reward=needed)


def _benchmarks(run: RunSettings, found: Split) -> Iterator[Finding]:
    """Data sets for validation only, by the names that `soup_verl.prepare_data` writes."""
    source = run.get("data.reward_fn_key", "data_source")
    sources = found.table.unique(source) if source in found.columns else []
    names = sorted(name for name in sources if name in DATASETS and DATASETS[name].is_benchmark)
    if names:
        how = "its numbers would say nothing any more; give it as data.val_files"
        yield judged(
            TOPIC, "train benchmarks", False, need="no benchmark in data.train_files", have=", ".join(names), how=how
        )


def managers_read_rows(run: RunSettings) -> bool:
    """Whether responses are scored by verl's reward managers, which call the reward function on a row's gold."""
    source = run.get("reward.reward_manager.source", "register")
    agent = run.get(f"{ROLLOUT}.agent.default_agent_loop", SCORED_BY_VERL[0])
    return source == "register" and agent in SCORED_BY_VERL


def _faults(run: RunSettings, split: str, found: Split, *, check_reward: bool) -> Iterator[Finding]:
    """One finding for each kind of fault, with its first row and how many there are."""
    function = "reward.custom_reward_function"
    ours = is_ours(run.get(f"{function}.path"), run.get(f"{function}.name", FUNCTION))
    faults: dict[str, list[tuple[int, str]]] = {}
    for kind, row, said in _of_rows(run, found, check_reward=check_reward, ours=ours):
        faults.setdefault(kind, []).append((row, said))
    for kind, rows in faults.items():
        (first, said), key = rows[0], f"data.{split}_files"
        expected = f"{EXPECTED[kind]}; row {first} from 0 has {said}"
        remedy = f"So {len(rows)} of {found.rows} rows: mend or drop them (soup_verl.prepare_data does)."
        yield refused(TOPIC, f"{split} {kind}", key, run.get(key), expected, remedy)


EXPECTED = {
    "prompt": "a list of messages with role and text in every row",
    "reward_model": "a struct with ground_truth in every reward_model",
    "extra_info": "a struct, or null, in every extra_info",
    "gold": "an answer that the reward can compare with in every row",
}


def _of_rows(run: RunSettings, found: Split, *, check_reward: bool, ours: bool) -> Iterator[tuple[str, int, str]]:
    """(kind, row, what it has) of every fault."""
    for row in _rows_without_messages(found, run.get("data.prompt_key", "prompt")):
        yield "prompt", row, "none, or one without text"
    known: dict[str, str] = {}
    source = run.get("data.reward_fn_key", "data_source")
    for row, (_, reward_model, extra) in enumerate(found.rewarded(range(found.rows), source)):
        if extra is not None and not isinstance(extra, Mapping):
            yield "extra_info", row, f"{type(extra).__name__} {str(extra)[:60]!r}"
        elif not check_reward:
            continue
        elif not isinstance(reward_model, Mapping) or "ground_truth" not in reward_model:
            yield "reward_model", row, f"{type(reward_model).__name__} {str(reward_model)[:60]!r}"
        elif ours:
            read = READ_OF_EXTRA if domain_name(extra) == MATHEMATICS else sorted(extra or {})
            gold = repr([reward_model["ground_truth"], *map((extra or {}).get, read)])
            if gold not in known:
                known[gold] = _gold_fault(reward_model["ground_truth"], extra)
            if known[gold]:
                yield "gold", row, known[gold]


READ_OF_EXTRA = ("alt_answers", "tolerance", "is_multiple_answer", "unit")
"""By mathematics; another domain may read any field."""


def _gold_fault(gold: Any, extra: Mapping[str, Any] | None) -> str:
    try:
        domain_of(extra).check_row("", gold, extra)
    except ValueError as error:
        return str(error).split(" of a row of ")[0]
    return ""


def _rows_without_messages(found: Split, column: str) -> Iterator[int]:
    """Rows whose prompt is null or empty, or has a message without role or text; nothing where prompts are no lists of
    messages of text at all, which the sample of prompts shows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    start = 0
    for chunk in found.table.with_format("arrow").select_columns([column]).iter(batch_size=10_000):
        prompts = chunk.column(0).combine_chunks()
        kind = prompts.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
            return
        if not {"role", "content"} <= {field.name for field in kind.value_type}:
            return
        bad = set(pc.indices_nonzero(pc.equal(pc.fill_null(pc.list_value_length(prompts), 0), 0)).to_pylist())
        messages, parents = pc.list_flatten(prompts), pc.list_parent_indices(prompts)
        for name in ("role", "content"):
            bad |= set(pc.filter(parents, pc.is_null(pc.struct_field(messages, name))).to_pylist())
        yield from (start + row for row in sorted(bad))
        start += len(prompts)
