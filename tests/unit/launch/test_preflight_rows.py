"""Preflight on the files that people have: verl's loader decides what is read, and a fault is refused with its row."""

import json
import os
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from soup_verl.launch.preflight import golds, look_at_data
from soup_verl.launch.preflight.files import read_split
from soup_verl.launch.preflight.golds import gold_findings
from tests.unit import preflight_files as files
from tests.unit.preflight_settings import by_name, look_at_rows, run_with

FUNCTION = "reward.custom_reward_function"
AGENT = "actor_rollout_ref.rollout.agent.default_agent_loop"
OURS = {f"{FUNCTION}.path": "pkg://soup_verl.reward", f"{FUNCTION}.name": "compute_score"}


@pytest.fixture(scope="module")
def tokenizer():
    return files.byte_tokenizer()


def rows(count=16, **changes):
    return [files.row(i=i) | changes for i in range(count)]


def lines(found):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found).encode()


# ---- what verl's loader reads ----


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.jsonl", b"\xef\xbb\xbf" + lines(rows())),
        ("separators.jsonl", lines([files.row("a\u2028b\u0085c\x0cd\u2029")] * 16)),
        ("windows.jsonl", lines(rows()).replace(b"\n", b"\r\n")),
        ("blank_lines.jsonl", lines(rows()).replace(b"\n", b"\n\n")),
        ("array.json", json.dumps(rows(), indent=1).encode()),
        ("array.jsonl", json.dumps(rows()).encode()),
    ],
)
def test_what_verl_reads_is_accepted(tmp_path, tokenizer, name, content):
    (tmp_path / name).write_bytes(content)
    data, found = look_at_rows(tmp_path / name, tokenizer, OURS)
    assert [f.name for f in found.values() if f.verdict == "no"] == []
    assert found["batches"].have == "1 batches an epoch, 2 steps" and data.prompts[0].startswith("<s>user:")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("index", ["9a9b6eb4-a1cb-49d1-8c1e-62eaf2f74079", None, {"row": None}])
def test_an_index_may_be_anything(tmp_path, tokenizer, suffix, index):
    found = rows(extra_info={"index": index, "split": "train"})
    path = files.write_rows(tmp_path / f"d.{suffix}", [*found[:8], *rows(8, extra_info=None)])
    _, seen = look_at_rows(path, tokenizer, OURS)
    assert [f.name for f in seen.values() if f.verdict == "no"] == []


def test_indexes_of_two_kinds_in_one_file_are_read(tmp_path, tokenizer):
    path = tmp_path / "d.jsonl"
    path.write_bytes(lines([files.row(i=i) for i in range(8)] + rows(8, extra_info={"index": "uuid"})))
    assert [f for f in look_at_rows(path, tokenizer, OURS)[1].values() if f.verdict == "no"] == []


WITHOUT_MIXING = {"soup.mixed_fraction": 0}
PLANNED = ({}, "Prefixes are sampled with text and images alone: set soup.mixed_fraction=0")
INTERRUPTED = (
    {"soup.source": "inflight", "soup.mixed_fraction": 1},
    "Nothing but text has been tried with soup.source=inflight",
)
SOURCES = [PLANNED, INTERRUPTED]


@pytest.mark.parametrize(
    ("key", "column", "setting", "source", "why"),
    [
        ("image", "images", {}, *INTERRUPTED),
        ("image", "shots", {"data.image_key": "shots"}, *INTERRUPTED),
        ("video", "videos", {}, *INTERRUPTED),
        ("video", "videos", {}, *PLANNED),
        ("audio", "audios", {}, *PLANNED),
        ("audio", "clips", {"data.audio_key": "clips"}, *PLANNED),
    ],
)
def test_rows_of_more_than_text_are_refused_where_anything_is_mixed(
    tmp_path, tokenizer, key, column, setting, source, why
):
    found = rows(8, **{column: [{"bytes": b"x", "path": None}]}) + rows(8, **{column: []}) + rows(1, **{column: None})
    path = files.write_rows(tmp_path / "d.parquet", found)
    seen = look_at_rows(path, tokenizer, OURS | setting | source)[1]
    (refused,) = [f for f in seen.values() if f.verdict == "no"]
    assert str(refused.error).startswith(
        f"data.{key}_key={column!r}: expected a column without any with soup.mixed_fraction above 0"
    )
    assert "8 of 17 rows" in str(refused.error) and why in str(refused.error)
    on_policy = look_at_rows(path, tokenizer, OURS | setting | WITHOUT_MIXING)[1]
    assert [f for f in on_policy.values() if f.verdict == "no"] == []


PARTS = [{"role": "user", "content": [{"type": "text", "text": "2+2="}, {"type": "image", "image": "a.png"}]}]


@pytest.mark.parametrize(("source", "why"), SOURCES)
@pytest.mark.parametrize("name", ["d.parquet", "d.jsonl"])
@pytest.mark.parametrize("is_read", [True, False])
def test_prompts_of_parts_are_refused_where_anything_is_mixed(tmp_path, tokenizer, name, is_read, source, why):
    text = rows(8) if name == "d.jsonl" else []  # a parquet column is of one type
    path = files.write_rows(tmp_path / name, text + rows(prompt=PARTS))
    given = tokenizer if is_read else None
    seen = look_at_rows(path, given, OURS | source)[1]
    (refused,) = [f for f in seen.values() if f.verdict == "no"]
    assert str(refused.error).startswith(
        "data.prompt_key='prompt': expected a column without messages that are lists of"
    )
    assert f"16 of {len(text) + 16} rows" in str(refused.error) and why in str(refused.error)
    on_policy = look_at_rows(path, given, OURS | WITHOUT_MIXING)[1]
    assert [f for f in on_policy.values() if f.verdict == "no"] == []


def test_shards_by_their_pattern_are_one_set(tmp_path, tokenizer):
    for i in range(2):
        files.write_rows(tmp_path / f"train-{i}.parquet", rows())
    assert look_at_rows(f"{tmp_path}/*.parquet", tokenizer, OURS)[1]["batches"].have.startswith("2 batches")


def refusal(tmp_path, tokenizer, content, name="d.jsonl", changes=None):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        files.write_rows(path, content)
    data = look_at_data(run_with({**OURS, **(changes or {}), "data.train_files": str(path)}), tokenizer)
    errors = [str(f.error) for f in data.findings if f.error is not None and "train" in f.name]
    assert len(errors) == 1 and errors[0].startswith(f"data.train_files={str(path)!r}: expected "), errors
    return errors[0]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("d.jsonl", lines(rows()) + b'{"prompt": [\n', "row 17 is not JSON"),
        ("d.json", b'[{"prompt": ', "an array that is not JSON"),
        ("d.jsonl", b'{"prompt": "\xff"}\n', "row 1 is not JSON"),
        ("d.jsonl", b"", "holds no rows"),
        ("d.parquet", b"PAR1", "a file that verl's loader can read"),
    ],
)
def test_what_verl_cannot_read_is_refused_with_its_row(tmp_path, tokenizer, name, content, told):
    assert told in refusal(tmp_path, tokenizer, content, name)


def test_an_empty_parquet_file_is_refused(tmp_path, tokenizer):
    pq.write_table(pa.Table.from_pylist(rows(1)).slice(0, 0), tmp_path / "empty.parquet")
    content = (tmp_path / "empty.parquet").read_bytes()
    assert "it holds no rows" in refusal(tmp_path, tokenizer, content, "d.parquet")


def test_files_whose_columns_do_not_fit_together_are_refused(tmp_path, tokenizer):
    one = files.write_rows(tmp_path / "one.parquet", rows())
    other = files.write_rows(tmp_path / "other.parquet", rows(data_source=7))
    both = {"data.train_files": [str(one), str(other)], "data.val_files": str(one)}
    error = str(by_name(look_at_data(run_with(both), tokenizer).findings)["train files"].error)
    assert error.startswith("data.train_files=[") and "columns are of the same types" in error


def test_a_dataset_class_of_ones_own_reads_what_it_likes(tmp_path, tokenizer):
    changes = {"data.custom_cls.path": "mine.py", "trainer.total_training_steps": 3}
    data, found = look_at_rows(tmp_path / "d.odd", tokenizer, changes)
    assert found["train files"].verdict == "warning" and data.steps == 3


# ---- what every row must have ----


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"reward_model": "{'ground_truth': '4'}"}, "a struct with ground_truth in every reward_model; row 0 from 0"),
        ({"reward_model": {"style": "rule"}}, "a struct with ground_truth in every reward_model; row 0 from 0"),
        ({"extra_info": '{"index": 3}'}, "a struct, or null, in every extra_info; row 0 from 0"),
    ],
)
def test_columns_of_another_type_are_refused(tmp_path, tokenizer, suffix, bad, told):
    error = refusal(tmp_path, tokenizer, rows(**bad), f"d.{suffix}")
    assert told in error and "So 16 of 16 rows" in error


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"reward_model": None}, "row 1021 from 0 has NoneType"),
        ({"prompt": None}, "row 1021 from 0 has none"),
        ({"prompt": []}, "row 1021 from 0 has none"),
        ({"prompt": [{"role": "user", "content": None}]}, "row 1021 from 0 has none, or one without text"),
        ({"reward_model": {"style": "rule", "ground_truth": ""}}, "row 1021 from 0 has ground_truth=''"),
        ({"reward_model": {"style": "rule", "ground_truth": "$ $"}}, "row 1021 from 0 has ground_truth='$ $'"),
        ({"reward_model": {"style": "rule", "ground_truth": None}}, "row 1021 from 0 has ground_truth=None"),
        ({"extra_info": {"index": 1, "tolerance": -1.0}}, "row 1021 from 0 has extra_info.tolerance=-1.0"),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_one_bad_row_among_many_is_found_outside_of_any_sample(tmp_path, tokenizer, bad, told, suffix):
    """As row 265 of dsr_sub, whose gold is empty: the run would end at the step that draws it."""
    found = rows(1500)
    found[1021] |= bad
    error = refusal(tmp_path, tokenizer, found, f"d.{suffix}")
    assert told in error and "So 1 of 1500 rows: mend or drop them" in error


def test_a_gold_of_nan_is_none(tmp_path, tokenizer):
    content = lines(rows(16, reward_model={"ground_truth": 1.5})).replace(b"1.5", b"NaN", 1)
    assert "row 0 from 0 has ground_truth=nan" in refusal(tmp_path, tokenizer, content)


def test_golds_of_another_reward_are_its_own_business(tmp_path, tokenizer):
    path = files.write_rows(tmp_path / "d.parquet", rows(reward_model={"style": "model", "ground_truth": ""}))
    other = {f"{FUNCTION}.path": "mine.py", f"{FUNCTION}.name": "score"}
    assert [f for f in look_at_rows(path, tokenizer, other)[1].values() if f.verdict == "no"] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"reward.reward_manager.source": "importlib"},
        {"actor_rollout_ref.rollout.agent.default_agent_loop": "swe_agent"},
    ],
)
def test_whoever_scores_without_verls_managers_may_have_other_columns(tmp_path, tokenizer, changes):
    path = files.write_rows(tmp_path / "d.parquet", rows(reward_model="text"))
    found = look_at_rows(path, tokenizer, changes | {"soup.mixed_fraction": 0})[1]
    assert [f for f in found.values() if f.verdict == "no"] == []
    bare = files.write_rows(tmp_path / "bare.parquet", [{"prompt": files.row()["prompt"], "answer": "4"}] * 16)
    found = look_at_rows(bare, tokenizer, changes | {"soup.mixed_fraction": 0})[1]
    assert found["train columns"].verdict == "warning"


def test_rows_that_verl_does_not_take_are_not_looked_at(tmp_path, tokenizer):
    found = rows(40)
    found[30]["reward_model"] = None
    path = files.write_rows(tmp_path / "d.parquet", found)
    limit = {"data.train_max_samples": 20, "data.val_max_samples": 20}
    assert [f for f in look_at_rows(path, tokenizer, OURS | limit)[1].values() if f.verdict == "no"] == []


def test_validation_prompts_that_are_all_dropped_are_refused(tmp_path, tokenizer):
    train = files.write_rows(tmp_path / "train.parquet", rows())
    val = files.write_rows(tmp_path / "val.parquet", [files.row("9" * 60)] * 3)
    changes = OURS | {"data.filter_overlong_prompts": True, "data.train_files": str(train), "data.val_files": str(val)}
    error = str(by_name(look_at_data(run_with(changes), tokenizer).findings)["val prompts"].error)
    assert error.startswith("data.val_files=") and "at least one prompt" in error


def test_epochs_that_end_before_the_steps_asked_for_are_told(tmp_path, tokenizer):
    path = files.write_rows(tmp_path / "d.parquet", rows(48))
    data, found = look_at_rows(path, tokenizer, {"trainer.total_epochs": 1, "trainer.total_training_steps": 10})
    assert data.steps == 3
    asked = found["steps asked for"]
    assert (asked.verdict, asked.have) == ("warning", "3 in trainer.total_epochs=1") and "saved" in asked.how
    assert "steps asked for" not in look_at_rows(path, tokenizer, {"trainer.total_training_steps": 6})[1]


def test_a_large_file_takes_seconds(tmp_path, tokenizer):
    count = 100_000
    row = pa.Table.from_pylist(rows(1)).to_pydict()
    pq.write_table(pa.table({name: column * count for name, column in row.items()}), tmp_path / "d.parquet")
    started = time.process_time()
    assert look_at_rows(tmp_path / "d.parquet", tokenizer, OURS)[1]["train columns"].verdict == "ok"
    assert time.process_time() - started < 10


# ---- golds ----


def graded(tmp_path, changes, train, val=None, more=None):
    paths = {"data.train_files": files.write_rows(tmp_path / "train.parquet", train)}
    paths["data.val_files"] = files.write_rows(tmp_path / "val.parquet", val or train)
    run = run_with({**changes, **(more or {}), **{key: str(path) for key, path in paths.items()}})
    return by_name(gold_findings(run, {split: read_split(run, split) for split in ("train", "val")}))


def function(tmp_path, body, name="score"):
    (tmp_path / "mine.py").write_text(f"import os, time\n\n{body}\n")
    return {f"{FUNCTION}.path": str(tmp_path / "mine.py"), f"{FUNCTION}.name": name}


SCORE = "def score(data_source, solution_str, ground_truth, extra_info=None, **given):\n    "


def gold(text):
    return {"reward_model": {"style": "rule", "ground_truth": text}}


def test_our_reward_takes_sound_golds_for_right(tmp_path):
    val = [files.row(i=i) | gold(text) for i, text in enumerate((r"\boxed{5}", r"\frac{1}{2}", "['70']", "#### 72"))]
    (found,) = graded(tmp_path, OURS, rows(20), val).values()
    assert (found.verdict, found.have) == ("ok", "0 of 24 golds are not")
    assert found.how.startswith("20 of 20 train rows, 4 of 4 val rows, ")


def test_golds_that_do_not_verify_against_themselves_are_counted_and_the_first_shown(tmp_path):
    train = rows(20)
    for i in (3, 7, 8, 9):
        train[i] |= gold(rf"\frac{{{i}}}{{2")
    found = graded(tmp_path, OURS, train, rows(4))["golds"]
    assert found.verdict == "warning" and found.have.startswith("4 of 24 golds are not\ndata.train_files, row ")
    assert found.have.count("\n") == 3


def test_the_sample_of_training_rows_is_seeded_and_validation_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(golds, "SAMPLED_ROWS", 10)
    asked = []
    monkeypatch.setattr(golds, "graded", lambda request: asked.append(request) or golds.Outcome(loaded=True))
    for _ in range(2):
        graded(tmp_path, OURS, [files.row(i=i) | gold(str(i)) for i in range(100)], rows(30))
    first, second = (json.dumps(request.rows) for request in asked)
    assert first == second and len(asked[0].rows) == 40
    drawn = [r["gold"] for r in asked[0].rows if r["gold"] != "4" or r["extra"]["index"] == 4][:10]
    assert drawn != [str(i) for i in range(10)]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (SCORE + "return None", "ValueError: returned None: expected a finite number"),
        (SCORE + "return {'acc': 1.0}", "ValueError: returned {'acc': 1.0}"),
        (SCORE + "return '1.0'", "ValueError: returned '1.0'"),
        (SCORE + "return float('nan')", "ValueError: returned nan"),
        (SCORE + "raise KeyError('no gold')", "KeyError: 'no gold'"),
        (SCORE + "raise SystemExit(3)", "SystemExit: 3"),
        ("def score(a, b): return 1", "TypeError: score() got an unexpected keyword argument 'data_source'"),
    ],
)
def test_a_function_that_gives_no_number_is_refused_with_the_row(tmp_path, body, told):
    error = str(graded(tmp_path, function(tmp_path, body), rows(3))["reward of a gold"].error)
    assert error.startswith(f"{FUNCTION}.path={str(tmp_path / 'mine.py')!r}: expected a function with a finite number")
    assert "data.train_files, row " in error and told in error and "in 6 of 6 rows" in error


def test_only_the_rows_at_fault_are_counted(tmp_path):
    train = rows(20)
    train[13] |= gold("5")
    found = graded(tmp_path, function(tmp_path, SCORE + "return 1.0 if ground_truth == '4' else None"), train, rows(2))
    assert "data.train_files, row 13 from 0 (gold '5')" in str(found["reward of a gold"].error)
    assert "So in 1 of 22 rows" in str(found["reward of a gold"].error)


@pytest.mark.parametrize(
    "body",
    [
        SCORE + "return float(solution_str == ground_truth)",
        SCORE + r"return float('\\boxed{%s}' % ground_truth in solution_str)",
        SCORE + "return {'score': 0.1, 'acc': f'#### {ground_truth}' in solution_str}",
        SCORE + "return float(f'<answer>{ground_truth}</answer>' in solution_str and extra_info['num_turns'] == 2)",
        "async " + SCORE + "return 1",
        SCORE + "return given['bonus']",
    ],
)
def test_a_function_of_any_usual_form_is_satisfied(tmp_path, body):
    found = graded(tmp_path, function(tmp_path, body), rows(3), more={f"{FUNCTION}.reward_kwargs.bonus": 1.0})
    assert {name: f.verdict for name, f in found.items()} == {"golds": "ok"}


@pytest.mark.parametrize(
    ("body", "key", "told"),
    [
        ("def other(): pass", "name='score'", "a function of {folder}/mine.py; it has other"),
        ("score = 3", "name='score'", "it has none"),
        ("import no_such_module", "path='{folder}/mine.py'", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def score(:", "path='{folder}/mine.py'", "SyntaxError"),
        ("raise SystemExit", "path='{folder}/mine.py'", "SystemExit"),
    ],
)
def test_a_function_that_is_not_there_is_refused_by_its_key(tmp_path, body, key, told):
    error = str(graded(tmp_path, function(tmp_path, body), rows(3))["function"].error)
    assert error.startswith(f"{FUNCTION}.{key.format(folder=tmp_path)}: expected ")
    assert told.format(folder=tmp_path) in error and len(error) < 600


def test_verls_own_function_says_which_data_it_does_not_know(tmp_path, monkeypatch):
    monkeypatch.setattr(golds, "LOAD_LIMIT_S", 600.0)  # to import verl takes a busy machine a minute
    error = str(graded(tmp_path, {}, rows(2))["reward of a gold"].error)
    assert (
        error.startswith(f"{FUNCTION}.path=None")
        and "Reward function is not implemented for data_source='sums'" in error
    )
    found = graded(tmp_path, {}, rows(2, data_source="openai/gsm8k"))
    assert {name: f.verdict for name, f in found.items()} == {"golds": "ok"}


@pytest.mark.parametrize("hang", ["time.sleep(99)", "while True: pass", "import re; re.match('(a*)*b', 'a' * 99)"])
def test_a_function_that_hangs_is_left_after_the_budget_with_its_row(tmp_path, monkeypatch, hang):
    monkeypatch.setattr(golds, "BUDGET_S", 3.0)
    monkeypatch.setattr(golds, "SLOW_S", 1.0)
    train = rows(6)
    train[2] |= gold("5")
    body = f"{SCORE}if ground_truth == '5':\n        {hang}\n    return 1.0"
    started = time.monotonic()
    found = graded(tmp_path, function(tmp_path, body), train, rows(2))
    assert time.monotonic() - started < 90  # it would hang for 99, or for ever
    assert found["reward in time"].verdict == "warning" and "row 2 from 0 (gold '5')" in found["reward in time"].have
    assert "were over before the rest" in found["golds"].how


def test_a_function_that_ends_its_process_ends_nothing_else(tmp_path):
    body = f"{SCORE}os._exit(0) if ground_truth == '5' else None\n    return 1.0"
    train = rows(6)
    train[2] |= gold("5")
    found = graded(tmp_path, function(tmp_path, body), train, rows(2))["reward in time"]
    assert found.verdict == "warning" and "its process ended" in found.have


def test_a_module_that_hangs_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(golds, "LOAD_LIMIT_S", 1.5)
    found = graded(tmp_path, function(tmp_path, "time.sleep(99)"), rows(2))["function"]
    assert found.verdict == "warning" and "not imported yet" in found.have


def test_no_process_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(golds, "BUDGET_S", 1.0)
    body = f"{SCORE}open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n    time.sleep(99)"
    graded(tmp_path, function(tmp_path, body), rows(2))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_hostile_gold_does_not_hold_up_the_others(tmp_path, monkeypatch):
    hostile = r"\def\a{\a\a}\a" + "9^{" * 30 + "9" + "}" * 30
    train = rows(40)
    train[5] |= gold(hostile)
    train[6] |= gold(r"\frac{10!!!}{9!!!}")
    monkeypatch.setattr(golds, "BUDGET_S", 300.0)  # a busy machine may take its time; a hostile gold would take it all
    found = graded(tmp_path, OURS, train, rows(2))["golds"]
    assert " of 42 golds are not" in found.have


@pytest.mark.parametrize(
    "changes",
    [{"reward.reward_model.enable": True}, {"reward.reward_manager.source": "importlib"}, {AGENT: "swe_agent"}],
)
def test_what_takes_more_than_a_function_is_not_tried(tmp_path, changes):
    (found,) = graded(tmp_path, OURS, rows(2), more=changes).values()
    assert (found.verdict, found.how) == ("warning", "not tried")
