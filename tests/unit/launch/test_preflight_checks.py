"""Preflight's single checks, on settings written out and files made here."""

import json
import re
import subprocess
import sys

import pytest
from omegaconf import OmegaConf
from packaging.requirements import Requirement

from soup_verl.launch.preflight import Hardware, look_at_data, look_at_model, memory, provenance
from soup_verl.launch.preflight.data import validation_findings
from soup_verl.launch.preflight.hardware import _left_in_containers
from soup_verl.launch.preflight.layout import batch_findings, gpu_findings, token_findings
from soup_verl.launch.preflight.loggers import logger_findings
from soup_verl.launch.preflight.report import Finding, Report, fits, judged, refused
from soup_verl.launch.preflight.run_settings import RunSettings
from soup_verl.launch.preflight.sizing import GIB, ModelShape, product
from soup_verl.method.checks import ConfigError
from soup_verl.tasks.context_window import write_copy
from tests.unit import preflight_files as files
from tests.unit import tokenizer_families as families

ACTOR, ROLLOUT, REF = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.ref"
HERE = Hardware(gpus=8, gpu_bytes=1, host_bytes=1, disk_bytes=1)
SHAPE = ModelShape(
    params=1000, layers=2, hidden=8, intermediate=16, heads=28, kv_heads=4, head_dim=2, vocab=50, tied=False
)
BASE = {
    "trainer.n_gpus_per_node": 8,
    "trainer.total_epochs": 2,
    "trainer.val_before_train": False,
    "data.train_batch_size": 16,
    "data.max_prompt_length": 40,
    f"{ROLLOUT}.prompt_length": 40,
    f"{ROLLOUT}.response_length": 60,
    f"{ROLLOUT}.n": 4,
    f"{ROLLOUT}.max_num_batched_tokens": 512,
    f"{ROLLOUT}.max_num_seqs": 256,
    f"{ACTOR}.ppo_mini_batch_size": 8,
}


def run_with(changes=None, **paths):
    config = OmegaConf.create({})
    for key, value in {**BASE, **(changes or {}), **{k.replace("__", "."): str(v) for k, v in paths.items()}}.items():
        OmegaConf.update(config, key, value)
    return RunSettings.parse(OmegaConf.to_container(config))


def by_name(findings):
    return {finding.name: finding for finding in findings}


# ---- the model ----


def look(folder, changes=None):
    model = look_at_model(run_with(changes, actor_rollout_ref__model__path=folder))
    return model, by_name(model.findings)


def test_a_good_model_folder(tmp_path):
    model, found = look(files.write_model(tmp_path / "m", files.SMALL))
    assert {f.verdict for f in found.values()} == {"ok"}
    # embedding and output layer; two layers: q, o; k, v; biases; mlp; norms
    assert model.shape.params == 2 * 300 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 64 + 3 * 32 * 64 + 64) + 32
    assert (model.shape.kv_heads, model.shape.head_dim, model.tokenizer is None) == (4, 4, False)


def test_a_tied_embedding_counts_once(tmp_path):
    free, _ = look(files.write_model(tmp_path / "free", files.SMALL))
    tied, _ = look(files.write_model(tmp_path / "tied", files.SMALL | {"tie_word_embeddings": True}))
    assert free.shape.params - tied.shape.params == 300 * 32 and tied.shape.tied


def test_a_tokenizer_without_chat_template_is_refused(tmp_path):
    folder = files.write_model(tmp_path / "m", files.SMALL, tokenizer=files.byte_tokenizer(template=None))
    model, found = look(folder)
    error = str(found["chat template"].error)
    assert model.tokenizer is None and error.startswith("actor_rollout_ref.model.path=") and "chat_template" in error
    template = {"actor_rollout_ref.model.custom_chat_template": files.TEMPLATE}
    assert look(folder, template)[1]["chat template"].verdict == "ok"


def test_a_window_that_is_too_small_is_refused_with_the_way_to_widen_it(tmp_path):
    folder = files.write_model(tmp_path / "m", files.SMALL | {"max_position_embeddings": 99})
    finding = look(folder)[1]["context window"]
    assert str(finding.error).startswith("data.max_response_length=60: expected at most 59 tokens")
    assert "python -m soup_verl.tasks.context_window" in str(finding.error)
    assert look(folder, {f"{ROLLOUT}.response_length": 59})[1]["context window"].verdict == "ok"


def test_a_window_widened_for_training_alone_is_a_warning(tmp_path):
    folder = files.write_model(tmp_path / "m", files.SMALL | {"max_position_embeddings": 64})
    override = {"actor_rollout_ref.model.override_config.max_position_embeddings": 128}
    assert look(folder, override)[1]["context window"].verdict == "warning"


def test_a_response_ends_at_the_tokenizers_and_at_the_models_end_tokens(tmp_path):
    folder = files.write_model(tmp_path / "m", files.SMALL)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    finding = look(folder)[1]["end of sequence"]
    assert finding.verdict == "ok" and all(name in finding.have for name in ("(7)", "(8)", "</s>"))
    endless = files.byte_tokenizer(eos=None)
    folder = files.write_model(tmp_path / "endless", files.SMALL | {"eos_token_id": None}, tokenizer=endless)
    assert look(folder)[1]["end of sequence"].verdict == "warning"


def test_a_template_that_ends_turns_with_a_token_that_stops_nothing_is_a_warning_with_its_mend(tmp_path):
    folder = files.write_model(tmp_path / "m", files.SMALL, tokenizer=files.byte_tokenizer(eos="<end>"))
    finding = look(folder)[1]["chat template"]
    assert finding.verdict == "warning" and "</s>" in finding.have and "soup_verl.tasks.context_window" in finding.how
    write_copy(folder, tmp_path / "copy")
    assert look(tmp_path / "copy")[1]["chat template"].verdict == "ok"


WITHOUT_WARNING = ("r1", "qwen3", "llama")


@pytest.mark.parametrize("family", [*WITHOUT_WARNING, "qwen_math"])
def test_families_of_tokenizers_pass_or_are_told_the_mend(family, tmp_path):
    folder = getattr(families, f"write_{family}_like")(tmp_path / "m")
    model, found = look(folder)
    wanting = {name: finding for name, finding in found.items() if finding.verdict != "ok"}
    assert wanting.keys() == (set() if family in WITHOUT_WARNING else {"chat template"})
    assert ("verl's default" in found["prompt builder"].have) == (family == "r1")
    rows = files.write_rows(tmp_path / "rows.parquet", [files.row(i=i) for i in range(128)])
    run = run_with({"data.max_prompt_length": 200}, data__train_files=rows, data__val_files=rows)
    data = look_at_data(run, model.tokenizer, model.model_type)
    assert data.prompts[0].endswith("<think>\n" if family == "r1" else "\n")
    assert data.prompts[0].count("2+2=") == 1 and {f.verdict for f in data.findings} == {"ok"}


def test_a_template_that_wants_a_system_prompt_refuses_rows_without_one(tmp_path):
    folder = families.write_family(
        tmp_path / "m",
        families.QWEN3,
        template=families.NEEDS_SYSTEM,
        specials=("<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        pad="<|im_end|>",
    )
    model, found = look(folder)
    assert found["chat template"].verdict == "ok"  # its end of a turn was read with a system prompt
    with_system = files.row() | {"prompt": [{"role": "system", "content": "Add."}, *files.row()["prompt"]]}
    for rows, verdict in (([files.row()], "no"), ([with_system] * 16, "ok")):
        path = files.write_rows(tmp_path / "rows.parquet", rows)
        data = look_at_data(run_with(data__train_files=path, data__val_files=path), model.tokenizer, model.model_type)
        (finding,) = [f for f in data.findings if f.name in ("train prompts", "train prompt length")]
        assert finding.verdict == verdict
        assert verdict == "ok" or "row 0: a system prompt first" in str(finding.error)


def test_a_template_without_a_generation_prompt_is_shown_as_it_is(tmp_path):
    folder = families.write_family(
        tmp_path / "m",
        families.QWEN3,
        template=families.NO_GENERATION_PROMPT,
        specials=("<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
    )
    model, found = look(folder)
    finding = found["generation prompt"]
    assert finding.verdict == "warning" and "add_generation_prompt" in finding.how
    assert look(families.write_r1_like(tmp_path / "r1"))[1]["generation prompt"].have == "'<｜Assistant｜><think>\\n'"


def test_a_template_whose_questions_end_with_the_opening_lacks_none(tmp_path):
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<s>[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
    )
    folder = files.write_model(tmp_path / "m", files.SMALL, tokenizer=files.byte_tokenizer(template=template))
    finding = look(folder)[1]["generation prompt"]
    assert (finding.verdict, finding.have) == ("ok", "''")


def test_token_ids_beyond_the_embedding_are_a_warning(tmp_path):
    folder = files.write_model(tmp_path / "m", files.SMALL | {"vocab_size": 100, "eos_token_id": 5})
    assert look(folder)[1]["vocabulary"].verdict == "warning"


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("config.json", '{"model_type": "no_such_model"}', "configuration"),
        ("config.json", "not json", "configuration"),
        ("config.json", json.dumps(files.SMALL | {"architectures": None}), "architecture"),
        ("tokenizer.json", "not json", "tokenizer"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused_by_name(tmp_path, file, text, name):
    folder = files.write_model(tmp_path / "m", files.SMALL)
    (folder / file).write_text(text)
    finding = look(folder)[1][name]
    assert finding.verdict == "no" and str(folder) in str(finding.error)


def test_a_remote_model_is_not_looked_at():
    model, found = look("hdfs://host/model")
    assert (model.shape, found["path"].verdict) == (None, "warning")


# ---- the data ----


@pytest.fixture(scope="module")
def tokenizer():
    return files.byte_tokenizer()


def look_at_rows(path, tokenizer, changes=None):
    data = look_at_data(run_with(changes, data__train_files=path, data__val_files=path), tokenizer)
    return data, by_name(data.findings)


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


# ---- GPUs, batches, tokens ----


def refusals(findings):
    return [str(f.error) for f in findings if f.error is not None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{ROLLOUT}.tensor_model_parallel_size": 3}, "tensor_model_parallel_size=3: expected a divisor of 8 GPUs"),
        ({f"{ROLLOUT}.tensor_model_parallel_size": 8}, "=8: expected a divisor of 28 attention heads"),
        ({f"{ROLLOUT}.data_parallel_size": 5}, "tensor_model_parallel_size=5: expected a divisor of 8 GPUs"),
        ({f"{ACTOR}.ulysses_sequence_parallel_size": 3}, "sequence_parallel_size=3: expected a divisor of 8 GPUs"),
        ({f"{ACTOR}.ulysses_sequence_parallel_size": 8}, "sequence_parallel_size=8: expected a divisor of 28"),
        ({f"{ACTOR}.fsdp_config.fsdp_size": 3}, "fsdp_size=3: expected a divisor of 8 GPUs"),
        (
            {"trainer.n_gpus_per_node": 4, "trainer.nnodes": 3, f"{ROLLOUT}.tensor_model_parallel_size": 6},
            "=6: expected a value that makes 6 GPUs of a replica a multiple of 4",
        ),
    ],
)
def test_gpus_that_do_not_divide_are_refused(changes, message):
    assert refusals(gpu_findings(run_with(), HERE, SHAPE)) == []
    assert any(message in error for error in refusals(gpu_findings(run_with(changes), HERE, SHAPE)))


def test_replicas_with_a_pool_of_their_own_share_its_gpus():
    mode = {"trainer.v1.trainer_mode": "soup_separate_async", "actor_rollout_ref.hybrid_engine": False}
    pool = {f"{ROLLOUT}.n_gpus_per_node": 2, f"{ROLLOUT}.nnodes": 2, f"{ROLLOUT}.tensor_model_parallel_size": 4}
    assert run_with(mode | pool).rollout_gpus == 4 and run_with(pool).rollout_gpus == 8
    assert refusals(gpu_findings(run_with(mode | pool), HERE, SHAPE)) == []
    (error,) = refusals(gpu_findings(run_with(mode | pool | {f"{ROLLOUT}.nnodes": 1}), HERE, SHAPE))
    assert error.endswith(
        "tensor_model_parallel_size=4: expected a divisor of 2 GPUs. actor_rollout_ref.rollout.n_gpus_per_node=2 x "
        "actor_rollout_ref.rollout.nnodes=1 GPUs are shared by replicas."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # 8 prompts x 4 responses on 8 GPUs: 4 a GPU; a step of 16 prompts: 8 a GPU
        ({f"{ACTOR}.ppo_mini_batch_size": 3}, "ppo_mini_batch_size=3: expected a value that makes 12"),
        (
            {f"{ACTOR}.ppo_mini_batch_size": 4, "soup.down_sampling.train_on": 3},
            "ppo_mini_batch_size=4: expected a value that makes 12 = ppo_mini_batch_size x "
            "soup.down_sampling.train_on=3 a multiple of 8",
        ),
        ({f"{ACTOR}.ppo_micro_batch_size_per_gpu": 3}, "ppo_micro_batch_size_per_gpu=3: expected a divisor of 4"),
        ({f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu": 3}, "micro_batch_size_per_gpu=3: expected a divisor of 8"),
        (
            {f"{ACTOR}.use_kl_loss": True, f"{REF}.log_prob_micro_batch_size_per_gpu": 5},
            "ref.log_prob_micro_batch_size_per_gpu=5: expected a divisor of 8",
        ),
    ],
)
def test_batches_that_do_not_divide_are_refused(changes, message):
    assert refusals(batch_findings(run_with())) == []
    (error,) = refusals(batch_findings(run_with(changes)))
    assert message in error
    if "micro" in message:  # packed by tokens instead
        dynamic = {f"{part}.{key}": True for part in (ROLLOUT, REF) for key in ["log_prob_use_dynamic_bsz"]}
        assert refusals(batch_findings(run_with({**changes, **dynamic, f"{ACTOR}.use_dynamic_bsz": True}))) == []


def test_a_step_that_verl_pads_is_a_warning():
    finding = by_name(batch_findings(run_with({"data.train_batch_size": 15})))["responses a step"]
    assert (finding.verdict, finding.how) == ("warning", "verl fills up with 4 empty responses")
    some = {"data.train_batch_size": 15, "soup.down_sampling.train_on": 2}
    finding = by_name(batch_findings(run_with(some)))["responses a step"]
    assert (finding.have, finding.how) == (
        "data.train_batch_size=15 x soup.down_sampling.train_on=2 = 30",
        "verl fills up with 2 empty responses",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {f"{ACTOR}.use_dynamic_bsz": True, f"{ACTOR}.ppo_max_token_len_per_gpu": 99},
            "ppo_max_token_len_per_gpu=99: expected at least 100 tokens",
        ),
        (
            {f"{ROLLOUT}.log_prob_use_dynamic_bsz": True, f"{ROLLOUT}.log_prob_max_token_len_per_gpu": 99},
            "log_prob_max_token_len_per_gpu=99: expected at least 100 tokens",
        ),
        ({f"{ROLLOUT}.max_model_len": 40}, "max_model_len=40: expected more than data.max_prompt_length=40"),
        ({f"{ROLLOUT}.max_num_seqs": 513}, "max_num_batched_tokens=512: expected at least"),
    ],
)
def test_token_budgets_that_are_too_small_are_refused(changes, message):
    assert refusals(token_findings(run_with())) == []
    (error,) = refusals(token_findings(run_with(changes)))
    assert message in error


def test_sequence_parallelism_shares_a_sequence():
    changes = {f"{ACTOR}.use_dynamic_bsz": True, f"{ACTOR}.ppo_max_token_len_per_gpu": 50}
    assert refusals(token_findings(run_with({**changes, f"{ACTOR}.ulysses_sequence_parallel_size": 2}))) == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({f"{ROLLOUT}.max_model_len": 99}, "rollout.max_model_len"),
        (
            {f"{ROLLOUT}.enable_chunked_prefill": False, f"{ROLLOUT}.max_model_len": 513},
            "rollout.max_num_batched_tokens",
        ),
    ],
)
def test_budgets_that_cut_or_are_raised_are_a_warning(changes, name):
    assert by_name(token_findings(run_with(changes)))[name].verdict == "warning"


# ---- the report ----


def test_a_verdict_no_needs_an_error_and_only_that():
    with pytest.raises(AssertionError):
        Finding("t", "n", "no", "", "")
    with pytest.raises(AssertionError):
        Finding("t", "n", "ok", "", "", error=ValueError())


def test_an_estimate_leaves_the_spare_share():
    need = product("a", (95, "bytes"))
    assert fits("t", "n", need, 100).verdict == "ok"
    assert fits("t", "n", need, 100, spare=0.1).verdict == "warning"


def test_the_first_refusal_ends_the_run():
    report = Report(
        [judged("t", "a", False, need=1, have=0), refused("t", "b", "k", 1, "2"), refused("t", "c", "l", 3, "4")]
    )
    with pytest.raises(ConfigError, match="k=1: expected 2"):
        report.raise_if_refused()
    Report(report.findings[:1]).raise_if_refused()


def test_text_that_looks_like_markup_is_shown_as_it_is(capsys):
    Report([judged("t", "n", True, need="[/red]", have="[bold]")], prompts=["[/x] a\nb"]).show()
    shown = capsys.readouterr().out
    assert "[/red]" in shown and "[bold]" in shown and "'[/x] a\\nb'" in shown and "1 ok, 0 warning, 0 no" in shown


# ---- code, packages, machine ----


def test_the_commit_and_whether_it_was_changed(tmp_path):
    assert provenance.git_facts(tmp_path) is None

    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True
        )

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "one")
    commit = git("rev-parse", "HEAD").stdout.strip()
    assert provenance.git_facts(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "a").write_text("2")
    assert provenance.git_facts(tmp_path) == {"commit": commit, "dirty": True}


def test_versions_against_pins():
    asked = [Requirement(r) for r in ("pytest>=1", "pytest<1", "no-such-package==2.0", "pytest")]
    wrong = list(provenance._mismatches(asked))
    assert len(wrong) == 2 and wrong[0].startswith("pytest ") and wrong[0].endswith("not <1")
    assert wrong[1] == "no-such-package missing, not ==2.0"


@pytest.mark.skipif(provenance._installed(provenance.PROJECT) is None, reason="the project is not installed")
@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_pins_are_those_of_the_extra(extra):
    (finding,) = provenance.version_findings(extra)
    assert finding.need.endswith(f"soup-verl[{extra}]") and int(finding.need.split()[0]) > 5
    assert "hypothesis" not in finding.have  # the extra `test` is not asked


def test_a_container_that_leaves_less_counts(tmp_path):
    assert _left_in_containers(tmp_path) == [1 << 62]
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1\n")
    assert _left_in_containers(tmp_path) == [1 << 62]
    (tmp_path / "memory.max").write_text("1000\n")
    assert min(_left_in_containers(tmp_path)) == 999


def test_this_machine_has_memory_and_a_disk(tmp_path):
    here = Hardware.detect(tmp_path / "not" / "there" / "yet")
    assert here.host_bytes > 0 and here.disk_bytes > 0 and (here.gpus > 0) == (here.gpu_bytes > 0)


SHAPES = {
    "qwen2.5_math_7b": ModelShape(7_615_616_512, 28, 3584, 18944, 28, 4, 128, 152064, False),
    "r1_distill_qwen_1.5b": ModelShape(1_777_088_000, 28, 1536, 8960, 12, 2, 128, 151936, False),
}
"""By the models' published configurations, as the run scripts are named after them."""


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("source", ["", "_snapshot"])
def test_the_disk_and_the_memory_in_a_run_scripts_head_are_preflights(model, source):
    script = f"run_{model}{source}.sh"
    run = RunSettings.parse(files.configure(*files.script_settings(script)))
    kept = run.get("trainer.max_actor_ckpt_to_keep")
    disk = memory.checkpoints(run, SHAPES[model], kept=kept, histories=kept + 1)
    head = (files.ROOT / "recipe/soup" / script).read_text().replace("\n# ", " ")
    (on_disk,) = re.findall(r"(\d+) GB of disk [a-z]+ KEEP=2", head)
    assert 1 <= int(on_disk) * 1e9 / disk.bytes < 1.2
    if source:
        (in_memory,) = re.findall(r"up to (\d+) GB of host memory a node", head)
        assert 1 <= int(in_memory) * 1e9 / memory.history(run, SHAPES[model]).bytes < 1.2


def test_the_recipes_line_for_one_gpu_of_24_gb_fits_and_without_lora_it_would_not():
    """The command is the README's own."""
    readme = (files.ROOT / "recipe/soup/README.md").read_text()
    (line,) = re.findall(r"```bash\n(GPUS=1 .*?lora_rank.*?)```", readme, re.DOTALL)
    settings = files.printed_settings(["bash", "-c", line])
    shape = SHAPES["r1_distill_qwen_1.5b"]

    def verdicts(settings):
        run = RunSettings.parse(files.compose(*settings))
        return {
            f.name: f.verdict for f in memory.memory_findings(run, Hardware(1, 24 * GIB, 64 * GIB, 99 * GIB), shape)
        }

    assert set(verdicts(settings).values()) == {"ok"}
    whole = [setting for setting in settings if "lora" not in setting]
    assert verdicts(whole)["GPU while training"] == "warning"


# ---- loggers ----


@pytest.mark.parametrize("given", ["console", ["console", "file"], ["tensorboard"], []])
def test_loggers_that_can_be_imported_are_one_line(given):
    (found,) = logger_findings(run_with({"trainer.logger": given}))
    assert (found.verdict, found.have) == ("ok", given if given == "console" else ", ".join(given) or "none")


def test_a_logger_that_verl_does_not_know_is_refused_with_those_it_knows():
    (found,) = logger_findings(run_with({"trainer.logger": ["console", "wandbb"]}))
    said = str(found.error)
    assert said.startswith("trainer.logger=['console', 'wandbb']: expected verl's loggers, which 'wandbb' is none of: ")
    assert {"wandb", "mlflow", "swanlab", "trackio", "tensorboard"} <= set(
        re.findall(r"\w+", said.partition("none of")[2])
    )


def test_a_logger_that_is_not_installed_is_refused_by_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "swanlab", None)
    monkeypatch.setitem(sys.modules, "volcengine_ml_platform", None)
    found = list(logger_findings(run_with({"trainer.logger": ["file", "swanlab", "vemlp_wandb"]})))
    assert [finding.name for finding in found] == ["swanlab", "vemlp_wandb"]
    assert "which swanlab cannot (ModuleNotFoundError: " in str(found[0].error)
    assert "which volcengine_ml_platform cannot (" in str(found[1].error)


def test_a_logger_whose_package_is_broken_is_refused_with_its_first_line(tmp_path, monkeypatch):
    """As mlflow 1.27 beside protobuf 7."""
    (tmp_path / "clearml.py").write_text("raise RuntimeError('cannot find service\\nsecond line')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "clearml", raising=False)
    (found,) = logger_findings(run_with({"trainer.logger": "clearml"}))
    said = str(found.error)
    assert "which clearml cannot (RuntimeError: cannot find service)" in said and "\n" not in said
    assert "docs/metrics.md" in said
