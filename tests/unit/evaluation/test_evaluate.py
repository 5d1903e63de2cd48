"""The command with a made-up engine: every refusal in one line, resuming, SOUP inference. The real one: tests/e2e."""

import json
import random
from pathlib import Path

import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from soup_verl.evaluation import EvaluationError, engine
from soup_verl.evaluation.__main__ import main
from soup_verl.evaluation.engine import Response
from soup_verl.method.mixing import stable_seed

END, WORDS = 1, {"[UNK]": 0, "<end>": 1, "?": 2} | {str(i): 3 + i for i in range(10)}
TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}? {% endif %}"
REWARD = """
def last_digit(data_source, solution_str, ground_truth, extra_info):
    pred = (solution_str.split() or [""])[-1]
    return {"score": 2.0 * (pred == ground_truth), "acc": pred == ground_truth, "pred": pred}
"""


def save_model(folder: Path, words=WORDS, template=TEMPLATE, name="model") -> Path:
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="<end>")
    fast.chat_template = template
    fast.save_pretrained(folder / name)
    (folder / name / "config.json").write_text(json.dumps({"max_position_embeddings": 24, "name": name}))
    (folder / name / "generation_config.json").write_text("{}")
    return folder / name


def problem(i: int) -> dict:
    return {
        "data_source": "digits",
        "prompt": [{"role": "user", "content": f"{i} {i}"}],
        "reward_model": {"style": "rule", "ground_truth": str(i)},
        "extra_info": {"index": 7 * i},
    }


@pytest.fixture
def files(tmp_path):
    save_model(tmp_path)
    pd.DataFrame([problem(i) for i in range(5)]).to_parquet(tmp_path / "digits.parquet")
    (tmp_path / "rewards.py").write_text(REWARD)
    return tmp_path


def speak(settings, request):
    """A response that depends on nothing but the model, the tokens before it and the seed."""
    rng = random.Random(stable_seed(settings.model.name, request.token_ids, request.seed))
    ids = []
    while len(ids) < request.max_tokens and END not in ids:
        ids.append(rng.choice([END, 3, 4, 5, 6, 7]))
    return Response(request.key, ids, "stop" if END in ids else "length")


def check_taken(settings, requests):
    """vLLM takes these requests, answers none of them short of its limit, and is not started for nothing."""
    assert requests, "a model is loaded for no request"
    assert len({request.key for request in requests}) == len(requests), "a response is sampled twice"
    assert settings.temperature >= 0 and 0 < settings.top_p <= 1
    for request in requests:
        assert request.token_ids and request.max_tokens >= 1 and 0 <= request.seed < 1 << 63
        assert len(request.token_ids) + request.max_tokens <= settings.max_model_len


class MadeUpEngine:
    """Stands in for `engine.sample`; fails after `lives` batches in all."""

    def __init__(self):
        self.calls, self.lives, self.running = [], 10**9, 0

    def __call__(self, settings, requests):
        check_taken(settings, requests)
        self.calls.append((settings, requests))
        shuffled = random.Random(len(requests)).sample(requests, len(requests))
        self.running += 1
        try:
            for start in range(0, len(shuffled), 3):
                if not self.lives:
                    raise EvaluationError("the engine ended")
                self.lives -= 1
                yield [speak(settings, request) for request in shuffled[start : start + 3]]
        finally:
            self.running -= 1


@pytest.fixture
def made_up(monkeypatch):
    fake = MadeUpEngine()
    monkeypatch.setattr(engine, "sample", fake)
    return fake


@pytest.fixture(autouse=True)
def figure(monkeypatch):
    """Drawing takes longer than everything else here; the figure has a test of its own."""
    drawn = []
    monkeypatch.setattr("soup_verl.evaluation.__main__.plot_pass_at_k", lambda *given: drawn.append(given))
    return drawn


def evaluate(files, *more, out="out", data="digits.parquet", model="model", n=4, max_tokens=8):
    given = ["--model", files / model, "--data", files / data, "--out", files / out, "--n", n]
    given += ["--max-tokens", max_tokens, "--reward", f"{files / 'rewards.py'}:last_digit", *more]
    return main([str(part) for part in given])


def rows(files, out="out", name="samples.jsonl"):
    found = [json.loads(line) for line in (files / out / name).read_text().splitlines()]
    return sorted(found, key=lambda row: (row["file"], row["index"], row["session"]))


def error_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.strip() and "0:00:0" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    return lines[0]


def test_every_sample_of_every_problem_is_there_once_and_scored(files, made_up, capsys, figure):
    assert evaluate(files) == 0
    found = rows(files)
    assert [(r["file"], r["index"], r["session"]) for r in found] == [
        ("digits.parquet", i, s) for i in range(5) for s in range(4)
    ]
    for row in found:
        words = [str(i - 3) for i in row["response_ids"] if i != END]
        assert row["response"].split() == words
        assert row["pred"] == (words or [""])[-1]
        assert row["correct"] == (row["pred"] == str(row["index"])) == (row["score"] == 2.0)
        assert row["finish_reason"] == ("stop" if row["response_ids"][-1] == END else "length")
        assert row["response_length"] == len(row["response_ids"]) <= 8
        assert row["prompt_tokens"] == 3
    results = json.loads((files / "out" / "results.json").read_text())
    result = results["files"]["digits.parquet"]
    assert result["correct"] == [sum(r["correct"] for r in found if r["index"] == i) for i in range(5)]
    assert result["metrics"]["avg@4"]["mean"] == pytest.approx(sum(r["correct"] for r in found) / 20)
    assert (results["k"], results["settings"]["n"], results["settings"]["temperature"]) == ([1, 2, 4], 4, 0.6)
    ((drawn, ks, title, path),) = figure
    assert (drawn, ks, path) == (results["files"], [1, 2, 4], files / "out" / "pass_at_k.png")
    assert title.endswith("/model, n = 4, T = 0.6, top-p 0.95")
    assert "pass@4" in capsys.readouterr().out


def test_the_model_is_asked_with_the_chat_template_within_its_budget(files, made_up):
    assert evaluate(files, "--temperature", 1, "--top-p", 1) == 0
    ((settings, requests),) = made_up.calls
    assert {tuple(r.token_ids) for r in requests} == {(3 + i, 3 + i, 2) for i in range(5)}
    assert {r.max_tokens for r in requests} == {8}
    assert len({r.seed for r in requests}) == 20
    assert (settings.max_model_len, settings.temperature, settings.top_p) == (11, 1.0, 1.0)


@pytest.mark.parametrize("soup", [False, True])
@pytest.mark.parametrize("lives", [0, 4, 9])
def test_a_stopped_evaluation_goes_on_with_the_same_samples(files, made_up, capsys, lives, soup):
    save_model(files, name="early")
    mixed = ["--historical", files / "early", "--prefix-tokens", "1:4"] if soup else []
    assert evaluate(files, *mixed, out="whole") == 0
    made_up.lives = lives
    code = evaluate(files, *mixed)
    assert code == (0 if lives >= 7 * (1 + soup) else 1)
    asked = len(made_up.calls)
    made_up.lives = 10**9
    assert evaluate(files, *mixed) == 0
    assert rows(files) == rows(files, "whole")
    again = sum(len(requests) for _, requests in made_up.calls[asked:])
    assert again == max(0, 20 * (1 + soup) - kept(lives, soup))
    assert json.loads((files / "out" / "results.json").read_text()) == json.loads(
        (files / "whole" / "results.json").read_text()
    )


def kept(lives, soup):
    """Samples on disk after so many batches of three; the last batch of each phase has two."""
    phases = []
    for _ in range(1 + soup):
        phases.append(min(20, 3 * lives))
        lives = max(0, lives - 7)
    return sum(phases)


RAISES = REWARD.replace("pred =", "assert not solution_str or ground_truth != '3'\n    pred =", 1)


def test_a_mended_reward_scores_everything_again_and_samples_nothing(files, made_up, capsys, monkeypatch):
    """It raised at the last problems, so that what came before was scored by its other version."""
    monkeypatch.setattr("soup_verl.evaluation.__main__.SCORED_AT_ONCE", 1)
    assert evaluate(files, out="whole") == 0
    (files / "rewards.py").write_text(RAISES.replace("2.0 *", "5.0 *"))
    assert evaluate(files) == 1
    assert len(rows(files, name="unscored.jsonl")) == 20 and len(rows(files)) > 0
    asked = len(made_up.calls)
    (files / "rewards.py").write_text(REWARD)
    assert evaluate(files) == 0
    assert len(made_up.calls) == asked
    assert rows(files) == rows(files, "whole")
    assert not (files / "out" / "unscored.jsonl").exists()


def test_a_mended_reward_does_not_score_again_what_an_earlier_command_finished(files, made_up, capsys):
    assert evaluate(files, n=2) == 0
    finished = rows(files)
    made_up.lives = 1
    assert evaluate(files, n=4) == 1
    (files / "rewards.py").write_text(REWARD.replace("2.0 *", "5.0 *"))
    capsys.readouterr()
    assert evaluate(files, n=4) == 1
    assert "holds samples made with reward=" in error_line(capsys) and rows(files) == finished


def test_the_same_model_by_a_relative_path_is_the_same_model(files, made_up, monkeypatch):
    assert evaluate(files, n=2) == 0
    monkeypatch.chdir(files)
    words = ["--model", "model", "--data", "digits.parquet", "--out", "out", "--n", "2", "--max-tokens", "8"]
    assert main([*words, "--reward", "rewards.py:last_digit"]) == 0
    assert len(made_up.calls) == 1


def test_what_cannot_be_scored_is_told_before_anything_is_sampled(files, made_up, capsys):
    (files / "rewards.py").write_text(REWARD.replace("pred =", "assert ground_truth != '3'\n    pred =", 1))
    assert evaluate(files) == 1
    assert "the reward function, problem 3 of digits.parquet: AssertionError" in error_line(capsys)
    assert made_up.calls == [] and not (files / "out").exists()


def test_rows_that_repeat_a_problem_are_told(files, made_up, capsys):
    pd.DataFrame([problem(i) for i in (0, 1, 1, 0)]).to_parquet(files / "digits.parquet")
    assert evaluate(files) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "2 of 4 rows repeat an earlier one (first: row 2 of digits.parquet)" in said


def test_more_samples_are_added_to_those_there_are(files, made_up):
    assert evaluate(files, n=2) == 0
    first = rows(files)
    assert evaluate(files, n=4) == 0
    assert [len(requests) for _, requests in made_up.calls] == [10, 10]
    assert [row for row in rows(files) if row["session"] < 2] == first
    assert evaluate(files, out="whole", n=4) == 0
    assert rows(files) == rows(files, "whole")
    assert evaluate(files, n=2) == 0  # of four the first two count
    assert (
        json.loads((files / "out" / "results.json").read_text())["files"]["digits.parquet"]["samples_per_problem"] == 2
    )


def test_soup_inference_continues_a_prefix_of_an_earlier_model_within_the_same_budget(files, made_up):
    earlier = [save_model(files, name="early"), save_model(files, name="earlier")]
    assert evaluate(files, "--historical", *earlier, "--prefix-tokens", "2:5") == 0
    prefixes, found = rows(files, name="prefixes.jsonl"), rows(files)
    assert [s.model.name for s, _ in made_up.calls] == ["early", "earlier", "model"]
    assert {p["wanted"] for p in prefixes} == {2, 3, 4, 5}
    for index in range(5):  # both take turns over a problem's sessions
        assert sorted(p["policy"] for p in prefixes if p["index"] == index) == sorted(2 * [str(e) for e in earlier])
    assert any(len(p["prefix_ids"]) < p["wanted"] for p in prefixes)  # one that ended early
    for prefix, row in zip(prefixes, found, strict=True):
        assert END not in prefix["prefix_ids"]
        assert len(prefix["prefix_ids"]) <= prefix["wanted"]
        assert row["response_ids"][: row["prefix_length"]] == prefix["prefix_ids"]
        assert (row["prefix_length"], row["prefix_wanted"]) == (len(prefix["prefix_ids"]), prefix["wanted"])
        assert row["prefix_policy"] == prefix["policy"]
        assert row["response_length"] <= 8
    requests = {r.key: r for r in made_up.calls[-1][1]}
    for row in found:
        request = requests[row["file"], row["index"], row["session"]]
        assert request.token_ids == [
            3 + row["index"],
            3 + row["index"],
            2,
            *row["response_ids"][: row["prefix_length"]],
        ]
        assert request.max_tokens == 8 - row["prefix_length"]


def test_the_seed_decides(files, made_up):
    assert evaluate(files) == evaluate(files, "--seed", 1, out="other") == 0
    assert rows(files) != rows(files, "other")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--temperature", "0.7"], "temperature=0.6, now 0.7"),
        (["--top-p", "1"], "top_p=0.95, now 1.0"),
        (["--seed", "1"], "seed=0, now 1"),
        (["--dtype", "bfloat16"], "dtype='float32', now 'bfloat16'"),
    ],
)
def test_other_settings_are_refused(files, made_up, capsys, more, named):
    given = ["--dtype", "float32"]  # without it vLLM's build decides: bfloat16 with CUDA
    assert evaluate(files, *given) == 0
    capsys.readouterr()
    assert evaluate(files, *given, *more) == 1
    assert f"holds samples made with {named}" in error_line(capsys)


@pytest.mark.parametrize(
    "changed", ["rewards.py", "digits.parquet", "model/config.json", "model/tokenizer_config.json"]
)
def test_other_contents_are_refused(files, made_up, capsys, changed):
    assert evaluate(files) == 0
    capsys.readouterr()
    if changed == "digits.parquet":
        pd.DataFrame([problem(i) for i in range(4)]).to_parquet(files / changed)
    else:
        (files / changed).write_text((files / changed).read_text() + "\n")
    assert evaluate(files) == 1
    assert "holds samples made with" in error_line(capsys)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--n", "0"], "--n=0: expected 1 to 1000"),
        (["--n", "1001"], "--n=1001: expected 1 to 1000"),
        (["--temperature", "-1"], "--temperature=-1.0: expected 0 or more"),
        (["--temperature", "0"], "--n=4: expected 1 at temperature 0"),
        (["--temperature", "nan"], "--temperature=nan: expected 0 or more"),
        (["--top-p", "0"], "--top-p=0.0: expected above 0 and at most 1"),
        (["--top-p", "1.1"], "--top-p=1.1: expected above 0"),
        (["--max-tokens", "0"], "--max-tokens=0: expected 1 or more"),
        (["--max-tokens", "22"], "--max-tokens=22: with the longest prompt that is 25 tokens"),
        (["--gpus", "0"], "--gpus=0: expected 1 or more"),
        (["--k", "1", "5"], "--k=[1, 5]: expected values from 1 to --n=4"),
        (["--k", "0"], "--k=[0]: expected values from 1 to --n=4"),
        (["--historical", "x"], "--prefix-tokens=None: expected to be given together with --historical"),
        (["--prefix-tokens", "1:2"], "--prefix-tokens=[1, 2]: expected to be given together with --historical"),
        (["--historical", "x", "--prefix-tokens", "0:2"], "--prefix-tokens=0:2: expected 1 <= LOW <= HIGH"),
        (["--historical", "x", "--prefix-tokens", "3:2"], "--prefix-tokens=3:2: expected 1 <= LOW <= HIGH"),
        (["--historical", "x", "--prefix-tokens", "1:8"], "--prefix-tokens=1:8: expected 1 <= LOW <= HIGH"),
        (["--historical", "x", "x", "--prefix-tokens", "1:2"], "--historical=['x']: expected each checkpoint once"),
        (["--reward", "absent.py:f"], "--reward='absent.py:f': FileNotFoundError"),
        (["--device", "gpu"], "--device=gpu: the vLLM installed here"),
        (["--data", "absent.parquet"], "--data=absent.parquet: no such file"),
        (["--data", "rows.csv"], "--data=rows.csv: expected a file that ends in .parquet, .json, .jsonl"),
        (["--data", "a/b.parquet", "b.parquet"], "--data: two files are called b.parquet"),
        (["--model", "absent"], "--model='absent': neither a folder nor"),
    ],
)
def test_a_bad_option_is_one_line_and_leaves_no_samples(files, made_up, capsys, monkeypatch, more, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(engine, "installed_vllm", lambda: ("0.28.0+cpu", "cpu"))
    assert evaluate(files, *more) == 1
    assert message in error_line(capsys)
    assert made_up.calls == []
    assert not (files / "out" / "samples.jsonl").exists()


@pytest.mark.parametrize(
    "more",
    [
        ["--n", "many"],
        ["--prefix-tokens", "3"],
        ["--prefix-tokens", "a:b"],
        ["--chat-template-args", "[1]"],
        ["--chat-template-args", "{"],
        ["--device", "tpu"],
        ["--sede", "1"],
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line_and_exit_code_2(files, capsys, more):
    with pytest.raises(SystemExit) as exit:
        evaluate(files, *more)
    assert exit.value.code == 2
    assert more[0] in error_line(capsys)


def without(row, key):
    return {k: v for k, v in row.items() if k != key}


@pytest.mark.parametrize(
    ("rows_of", "message"),
    [
        ([without(problem(0), "reward_model")], "row 0 has no reward_model"),
        ([problem(0), problem(1) | {"prompt": []}], "row 1 has no prompt"),
        ([problem(0) | {"prompt": "1 + 1"}], "row 0: prompt='1 + 1': expected chat messages"),
        ([problem(0) | {"reward_model": {"style": "rule"}}], "expected a struct with ground_truth"),
        ([], "holds no rows"),
    ],
)
def test_rows_that_are_not_verls_are_named(files, capsys, rows_of, message):
    frame = pd.DataFrame(rows_of) if rows_of else pd.DataFrame({"prompt": pd.Series([], dtype=str)})
    frame.to_parquet(files / "bad.parquet")
    assert evaluate(files, data="bad.parquet") == 1
    assert message in error_line(capsys)


def test_a_historical_model_must_speak_the_same_tokens(files, made_up, capsys):
    other = save_model(files, words=WORDS | {"11": 13}, name="other")
    assert evaluate(files, "--historical", other, "--prefix-tokens", "1:2") == 1
    assert "another vocabulary than --model's" in error_line(capsys)


def test_a_tokenizer_without_a_chat_template_is_refused(files, made_up, capsys):
    save_model(files, template=None, name="bare")
    assert evaluate(files, model="bare") == 1
    assert f"--model={files}/bare: its tokenizer has no chat template" in error_line(capsys)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda model: (model / "tokenizer.json").unlink(), "--historical={}: its tokenizer cannot be loaded"),
        (lambda model: (model / "chat_template.jinja").unlink(), "--historical={}: its tokenizer has no chat template"),
        (
            lambda model: (model / "config.json").write_text('{"max_position_embeddings": 10}'),
            "--max-tokens=8: with the longest prompt that is 11 tokens, and {} was made for 10",
        ),
    ],
)
def test_a_broken_historical_model_is_refused_by_name(files, made_up, capsys, break_it, message):
    early = save_model(files, name="early")
    break_it(early)
    assert evaluate(files, "--historical", early, "--prefix-tokens", "1:2") == 1
    assert message.format(early) in error_line(capsys)
    assert made_up.calls == []


def test_arguments_of_the_chat_template_reach_it_and_are_settings(files, made_up, capsys):
    save_model(files, template="{% if brief %}9 {% endif %}" + TEMPLATE, name="talker")
    assert evaluate(files, "--chat-template-args", '{"brief": true}', model="talker") == 0
    assert {r.token_ids[0] for r in made_up.calls[0][1]} == {WORDS["9"]}
    capsys.readouterr()
    assert evaluate(files, model="talker") == 1
    assert "chat_template_args={'brief': True}, now {}" in error_line(capsys)


def test_a_reward_that_raises_ends_the_evaluation_and_keeps_what_was_scored(files, made_up, capsys):
    (files / "rewards.py").write_text(RAISES)
    assert evaluate(files) == 1
    assert "the reward function, problem 3 of digits.parquet: AssertionError" in error_line(capsys)
    assert made_up.running == 0  # it would keep the memory, and the command from ending


# ---- keywords of the reward, other kinds of files ----

BONUS = """
def last_digit(data_source, solution_str, ground_truth, extra_info, bonus=2.0, only=None):
    return {"score": bonus, "acc": only is not False}
"""


def test_keywords_of_the_reward_are_part_of_what_may_not_change(files, made_up, capsys):
    (files / "rewards.py").write_text(BONUS)
    assert evaluate(files, "--reward-kwargs", "bonus=0.5", "only=false") == 0
    assert {(row["score"], row["correct"]) for row in rows(files)} == {(0.5, False)}
    settings = json.loads((files / "out" / "settings.json").read_text())
    assert settings["reward_kwargs"] == {"bonus": 0.5, "only": False}
    assert evaluate(files, "--reward-kwargs", "only=false", "bonus=0.5") == 0
    capsys.readouterr()
    assert evaluate(files, "--reward-kwargs", "bonus=1.5") == 1
    assert "holds samples made with reward_kwargs={'bonus': 0.5, 'only': False}, now " in error_line(capsys)
    assert evaluate(files, out="without") == 0
    assert "reward_kwargs" not in json.loads((files / "without" / "settings.json").read_text())


@pytest.mark.parametrize("given", [["bonus"], ["=3"], ["a b=3"]])
def test_a_keyword_that_cannot_be_read_is_one_line(files, capsys, given):
    with pytest.raises(SystemExit) as caught:
        evaluate(files, "--reward-kwargs", *given)
    assert caught.value.code == 2 and "--reward-kwargs" in error_line(capsys)


def test_a_keyword_twice_is_refused(files, made_up, capsys):
    assert evaluate(files, "--reward-kwargs", "bonus=1", "bonus=2") == 1
    assert "--reward-kwargs=['bonus']: expected each keyword once" in error_line(capsys)


@pytest.mark.parametrize("name", ["digits.jsonl", "digits.json"])
def test_json_files_are_read_as_verl_reads_them(files, made_up, name):
    found = [problem(i) | {"extra_info": None} for i in range(5)]
    text = json.dumps(found) if name == "digits.json" else "\ufeff" + "\r\n".join(map(json.dumps, found))
    (files / name).write_text(text, encoding="utf-8")
    assert evaluate(files, data=name) == 0
    assert {row["file"] for row in rows(files)} == {name} and len(rows(files)) == 20


def test_extra_info_as_text_is_refused_with_its_row(files, made_up, capsys):
    pd.DataFrame([problem(0) | {"extra_info": "{}"}]).to_parquet(files / "digits.parquet")
    assert evaluate(files) == 1
    assert "row 0: extra_info='{}': expected a struct, or nothing" in error_line(capsys)
