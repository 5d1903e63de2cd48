"""What preflight says of data files, steps and validations; test_preflight_rows.py has what verl cannot read."""

import json

import pytest

from soup_verl.launch.preflight import look_at_data
from soup_verl.launch.preflight.data import validation_findings
from tests.unit import preflight_files as files
from tests.unit.preflight_settings import ROLLOUT, by_name, look_at_rows, run_with


@pytest.fixture(scope="module")
def tokenizer():
    return files.byte_tokenizer()


# A question of q characters is a prompt of q + OVERHEAD tokens: <s>, "user:", the question, </s>, <s>, "assistant:".
OVERHEAD = len("user:") + len("assistant:") + 3


def test_lengths_are_those_of_the_rendered_prompt(tmp_path, tokenizer):
    questions = ["x" * (40 - OVERHEAD)] * 3 + ["x" * (41 - OVERHEAD)]
    path = files.write_rows(tmp_path / "d.parquet", [files.row(q) for q in questions] * 10)
    data, found = look_at_rows(path, tokenizer)
    length = found["train prompt length"]
    assert (length.verdict, length.have) == ("warning", "longest 41, median 40; 25.0% over")
    assert "of 40 of 40 rows" in length.how and "filter_overlong_prompts=true" in length.how
    assert data.prompts == [f"<s>user:{questions[0]}</s><s>assistant:"] * 2
    assert found["batches"].have == "2 batches an epoch, 4 steps"
    _, filtered = look_at_rows(path, tokenizer, {"data.filter_overlong_prompts": True})
    assert filtered["train prompt length"].verdict == "ok"
    assert filtered["batches"].have == "1 batches an epoch, 2 steps"  # 30 prompts / 16


def test_a_large_file_is_sampled_evenly(tmp_path, tokenizer):
    path = files.write_rows(tmp_path / "d.parquet", [files.row(str(i), i) for i in range(4001)])
    data, found = look_at_rows(path, tokenizer)
    assert "of 801 of 4001 rows" in found["train prompt length"].how  # every fifth
    assert "of 236 of 4001 rows" in found["val prompt length"].how  # every 17th
    assert [p[8:-17] for p in data.prompts] == ["0", "5"]


def test_template_arguments_reach_the_template(tmp_path):
    template = files.TEMPLATE.replace("'<s>assistant:'", "'<s>assistant:' + opening")
    path = files.write_rows(tmp_path / "d.parquet", [files.row()] * 16)
    changes = {"data.apply_chat_template_kwargs.opening": "<think>"}
    data, _ = look_at_rows(path, files.byte_tokenizer(template=template), changes)
    assert data.prompts[0].endswith("<s>assistant:<think>")


@pytest.mark.parametrize(
    "prompt",
    ["2+2=", [], [{"role": "user"}], [{"role": "user", "content": None}]],
    ids=["text", "none", "role", "null"],
)
def test_a_prompt_that_is_no_chat_is_refused_with_its_row(tmp_path, tokenizer, prompt):
    path = tmp_path / "d.jsonl"
    rows = [files.row() for _ in range(16)]
    rows[5]["prompt"] = prompt
    path.write_text("\n".join(json.dumps(row) for row in rows))
    error = str(look_at_rows(path, tokenizer)[1]["train prompts"].error)
    assert error.startswith("data.train_files=") and "row 5" in error


@pytest.mark.parametrize("line", ['{"prompt": [', "[1, 2]"])
def test_a_broken_line_is_refused_with_its_number(tmp_path, tokenizer, line):
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join([json.dumps(files.row()), line]))
    error = str(look_at_rows(path, tokenizer)[1]["train files"].error)
    assert error.startswith("data.train_files=") and "row 2 is " in error


def test_columns_that_the_reward_reads_are_missed(tmp_path, tokenizer):
    path = files.write_rows(tmp_path / "d.parquet", [{"prompt": files.row()["prompt"], "answer": "4"}] * 16)
    finding = look_at_rows(path, tokenizer)[1]["train columns"]
    assert str(finding.error).startswith("data.train_files=") and "prompt, data_source, reward_model" in finding.need


@pytest.mark.parametrize(
    ("agents", "named"),
    [
        (["soup_agent", None], "None"),
        (["", "tool_agent"], "''"),
    ],
)
@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_rows_without_an_agent_loop_are_refused(tmp_path, tokenizer, agents, named, suffix):
    path = tmp_path / f"d.{suffix}"
    files.write_rows(path, [files.row() | {"agent_name": agent} for agent in agents] * 20)
    error = str(look_at_rows(path, tokenizer)[1]["train agent loops"].error)
    expected = f"expected an agent loop in every row of the column agent_name, not {named}"
    assert error.startswith(f"data.train_files={str(path)!r}: {expected}")
    assert "val agent loops" not in look_at_rows(path, tokenizer)[1]  # validation never mixes


@pytest.mark.parametrize("setting", [{"soup.source": "forget"}, {"soup.position": "whole"}])
def test_rows_of_loops_with_tools_are_refused_where_a_policy_would_have_to_call_them(tmp_path, tokenizer, setting):
    path = tmp_path / "d.parquet"
    rows = [files.row() | {"agent_name": agent} for agent in ("soup_agent", "single_turn_agent", "tool_agent")]
    files.write_rows(path, rows * 20)
    ((key, value),) = setting.items()
    error = str(look_at_rows(path, tokenizer, setting)[1]["train agent loops"].error)
    assert f"expected soup_agent or single_turn_agent with {key}={value} in every row" in error
    assert "not 'tool_agent'" in error and "That needs a single turn" in error
    assert "train agent loops" not in look_at_rows(path, tokenizer)[1]
    assert "train agent loops" not in look_at_rows(path, tokenizer, setting | {"soup.mixed_fraction": 0})[1]


def test_a_file_without_the_column_beside_one_with_it_leaves_rows_without_an_agent_loop(tmp_path, tokenizer):
    """verl puts files together; where one lacks the column its rows have null."""
    one = files.write_rows(tmp_path / "one.parquet", [files.row() | {"agent_name": "soup_agent"}] * 20)
    other = files.write_rows(tmp_path / "other.parquet", [files.row()] * 20)
    both = {"data.train_files": [str(one), str(other)], "data.val_files": str(one)}
    found = by_name(look_at_data(run_with(both), tokenizer).findings)
    assert "not None" in str(found["train agent loops"].error)


@pytest.mark.parametrize("column", [{}, {"agent_name": "soup_agent"}])
def test_rows_of_our_agent_loop_or_of_none_are_accepted(tmp_path, tokenizer, column):
    path = files.write_rows(tmp_path / "d.parquet", [files.row() | column] * 40)
    assert "train agent loops" not in look_at_rows(path, tokenizer)[1]


def test_fewer_prompts_than_a_batch_are_refused(tmp_path, tokenizer):
    path = files.write_rows(tmp_path / "d.parquet", [files.row()] * 15)
    error = str(look_at_rows(path, tokenizer)[1]["batches"].error)
    assert error.startswith("data.train_batch_size=16: expected at most the 15 training prompts")


def test_steps_end_where_the_run_says_or_the_data_do(tmp_path, tokenizer):
    path = files.write_rows(tmp_path / "d.parquet", [files.row()] * 33)
    assert look_at_rows(path, tokenizer)[0].steps == 4
    assert look_at_rows(path, tokenizer, {"trainer.total_training_steps": 3})[0].steps == 3
    assert look_at_rows(path, tokenizer, {"trainer.total_training_steps": 9})[0].steps == 4
    assert look_at_rows(path, tokenizer, {"data.train_max_samples": 20})[0].steps == 2


@pytest.mark.parametrize(
    ("soup", "verdict"),
    [
        ({"soup.lookahead.age": 3}, "ok"),
        ({"soup.lookahead.age": 4}, "warning"),
        ({"soup.source": "replay"}, "ok"),
        ({"soup.source": "replay", "trainer.total_epochs": 1}, "warning"),
    ],
)
def test_history_that_comes_too_late_to_be_used_is_a_warning(tmp_path, tokenizer, soup, verdict):
    path = files.write_rows(tmp_path / "d.parquet", [files.row()] * 32)  # 4 steps in 2 epochs
    assert look_at_rows(path, tokenizer, soup)[1]["steps with history"].verdict == verdict


@pytest.mark.parametrize(
    ("changes", "verdict", "have"),
    [
        ({}, "ok", "64000000: 62500 responses, 1000000 tokens for each of those"),
        ({"soup.replay.capacity_tokens": 65536}, "ok", "65536: 64 responses, 1024 tokens for each of those"),
        ({"soup.replay.capacity_tokens": 65535}, "warning", "65535: 63 responses, 1023 tokens for each of those"),
        ({"soup.replay.per_prompt": 1}, "ok", "64000000: 62500 responses, 2000000 tokens for each of those"),
        (
            {f"{ROLLOUT}.response_length": 10_000_000},
            "warning",
            "64000000: 62500 responses, 1000000 tokens for each of those",
        ),
    ],
)
def test_a_store_that_forgets_a_prompt_before_it_comes_again_is_a_warning(tmp_path, tokenizer, changes, verdict, have):
    path = files.write_rows(tmp_path / "d.parquet", [files.row()] * 32)
    given = {"soup.source": "replay", f"{ROLLOUT}.n": 4} | changes
    store = look_at_rows(path, tokenizer, given)[1]["replay store"]
    assert (store.verdict, store.have) == (verdict, f"soup.replay.capacity_tokens={have}")
    assert ("raise it" in store.how) is (verdict == "warning")


VALIDATION = {"trainer.test_freq": 3, "trainer.val_before_train": True, f"{ROLLOUT}.val_kwargs.n": 2}


@pytest.mark.parametrize(
    ("changes", "validations"),
    [
        ({}, 3),  # before training, at step 3 and at the last
        ({"trainer.test_freq": 2}, 3),  # the last is a multiple
        ({"trainer.test_freq": 9}, 2),
        ({"trainer.test_freq": -1}, 1),
        ({"trainer.val_before_train": False}, 2),
    ],
)
def test_validations_are_counted_as_verl_makes_them(changes, validations):
    """4 steps of 16 prompts with 4 responses each; 10 validation prompts with 2."""
    (found,) = validation_findings(run_with(VALIDATION | changes), prompts=10, steps=4)
    share = {3: "23.4%", 2: "15.6%", 1: "7.8%"}[validations]
    counted = f"{validations} validation{'s' * (validations > 1)} x 10 prompts x 2 = {validations * 20} responses"
    assert found.have == f"{counted}, {share}"
    assert found.need == "at most 10% of training's 4 x 16 x 4 = 256 responses"
    assert (found.verdict, "raise trainer.test_freq=" in found.how) == (
        ("ok", False) if validations == 1 else ("warning", True)
    )


@pytest.mark.parametrize(
    "changes", [{"trainer.test_freq": -1, "trainer.val_before_train": False}, {"trainer.val_only": True}]
)
def test_a_run_without_validation_or_without_training_has_no_share(changes):
    assert not list(validation_findings(run_with(VALIDATION | changes), prompts=10, steps=4))


def test_the_prompts_of_a_validation_are_those_verl_keeps(tmp_path, tokenizer):
    """32 rows, of which 2 are too long for the prompt budget."""
    path = files.write_rows(tmp_path / "d.parquet", [files.row("9" * 60)] * 2 + [files.row()] * 30)
    changes = VALIDATION | {"trainer.test_freq": -1, "data.filter_overlong_prompts": True}
    found = look_at_rows(path, tokenizer, changes)[1]["validation"]
    assert found.have.startswith("1 validation x 30 prompts x 2 = 60 responses")
    fewer = changes | {"data.val_max_samples": 8, "data.filter_overlong_prompts": False}
    found = look_at_rows(path, tokenizer, fewer)[1]["validation"]
    assert found.have.startswith("1 validation x 8 prompts x 2 = 16 responses")


def test_remote_files_are_not_looked_at(tokenizer):
    data, found = look_at_rows("hdfs://host/d.parquet", tokenizer, {"trainer.total_training_steps": 7})
    assert found["train files"].verdict == "warning" and data.steps == 7
