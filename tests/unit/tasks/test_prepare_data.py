"""The command from files to verl's parquet: rows and report, every refusal in one line, and real data where it is."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from soup_verl.tasks.chat_template import load_tokenizer
from soup_verl.tasks.data.prompt_templates import STEP_BY_STEP, TEMPLATES, prompt_tokens
from soup_verl.tasks.prepare_data import main
from soup_verl.tasks.reward import compute_score

ROOT = Path(__file__).parents[3]
REAL_DATA = Path(os.environ.get("SOUP_TEST_DATA", ROOT.parent / "shared" / "data"))
QWEN_TOKENIZER = REAL_DATA / "qwen25_tokenizer_hf"
_needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no data sets at {REAL_DATA} (SOUP_TEST_DATA)")

EGGS = "A hen lays three eggs in two days; how many eggs does she lay in a fortnight?"
ROWS = [
    {"id": "a", "question": "What is $\\frac{4}{2}$?", "answer": "2", "alt_answers": ["2.0"], "level": 1},
    {"id": "b", "question": "Halve $\frac{6}{2}$.", "answer": "\frac{3}{2}", "error": "1e-1", "unit": "m"},
    {"id": "c", "question": "what is $\\dfrac{4}{2}$", "answer": "2"},
    {"id": "d", "question": "Name a prime.", "answer": "2"},
    {"id": "e", "question": "Name a prime", "answer": "3"},
    {"id": "f", "question": "Torn?", "answer": "\\frac{1}{2"},
    {"id": "g", "question": "No answer?", "answer": ""},
    {"id": "h", "question": f"{EGGS} Square it.", "answer": "441"},
    {"id": "i", "question": "Add " + " and ".join(["1"] * 60) + ".", "answer": "60"},
]
SOUND = [ROWS[0], {"id": "z", "question": "Name an even prime.", "answer": "2"}]
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def rows_file(tmp_path):
    return write_jsonl(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture
def sound_file(tmp_path):
    return write_jsonl(tmp_path / "sound.jsonl", SOUND)


@pytest.fixture
def benchmarks(tmp_path):
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    write_jsonl(folder / "hens.jsonl", [{"problem": EGGS, "answer": "21"}])
    pq.write_table(pa.table({"question": ["A question nobody asks in the training set?"]}), folder / "other.parquet")
    (folder / "README.md").write_text("not a benchmark")
    return folder


def save_tokenizer(folder: Path, chat_template: str | None) -> str:
    """One token a word, or piece of punctuation."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return str(folder)


def prepare(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def error_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


def test_rows_become_verls_columns(tmp_path, sound_file):
    assert prepare("--dataset", "gsm8k", "--from", sound_file, "--out", tmp_path / "out", "--template", "tiny") == 0
    first, second = pq.read_table(tmp_path / "out" / "gsm8k.parquet").to_pylist()
    assert first == {
        "data_source": "gsm8k",
        "prompt": [{"role": "user", "content": "What is $\\frac{4}{2}$?\nPut the answer in \\boxed{}."}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {
            "index": 0,
            "split": "train",
            "domain": "mathematics",
            "id": "a",
            "question": "What is $\\frac{4}{2}$?",
            "alt_answers": ["2.0"],
            "tolerance": None,
            "is_multiple_answer": False,
            "unit": None,
            "level": 1,
            "subject": None,
        },
    }
    assert (second["extra_info"]["index"], second["extra_info"]["alt_answers"]) == (1, [])


def test_one_schema_whatever_the_rows_hold(tmp_path, sound_file):
    full = write_jsonl(tmp_path / "full.jsonl", [SOUND[0] | {"error": 0.5, "unit": "m", "subject": "s"}])
    for name, file in (("gsm8k", sound_file), ("olympiadbench", full)):
        assert prepare("--dataset", name, "--from", file, "--out", tmp_path) == 0
    train, benchmark = (pq.read_table(tmp_path / f"{n}.parquet") for n in ("gsm8k", "olympiadbench"))
    assert train.schema == benchmark.schema
    (extra,) = benchmark.column("extra_info").to_pylist()
    assert (extra["tolerance"], extra["unit"], extra["subject"], extra["split"]) == (0.5, "m", "s", "test")


def test_every_reason_is_in_the_report(tmp_path, rows_file, benchmarks, capsys):
    tokenizer = save_tokenizer(tmp_path / "tokenizer", CHAT_TEMPLATE)
    arguments = ["--dataset", "dapo-math-17k", "--from", rows_file, "--out", tmp_path, "--benchmarks-from", benchmarks]
    assert prepare(*arguments, "--tokenizer", tokenizer, "--max-prompt-tokens", 60) == 0
    report = json.loads((tmp_path / "dapo-math-17k.report.json").read_text())
    assert {reason: (f["rows"], f["first_row"]) for reason, f in report["dropped"].items()} == {
        "empty_question": (0, None),
        "empty_gold": (1, 7),
        "unparsable_gold": (1, 6),
        "outside_levels": (0, None),
        "conflicting_golds": (2, 4),
        "duplicate": (1, 3),
        "benchmark_overlap": (1, 8),
        "over_long": (1, 9),
    }
    assert (report["rows_in"], report["kept"]) == (9, 2)
    assert report["repaired"]["latex_restored"]["rows"] == 1
    assert report["benchmarks"] == {
        "hens.jsonl": {"questions": 1, "rows_dropped": 1},
        "other.parquet": {"questions": 1, "rows_dropped": 0},
    }
    assert report["not_checked"] == {"outside_levels": "all levels are taken"}
    table = capsys.readouterr().out
    for line in (
        "rows in                                   9",
        "  - duplicate                             1  first: row 3",
    ):
        assert line in table
    assert "= kept                                    2" in table
    assert "first: row 8, question 1 of hens.jsonl" in table
    rows = pq.read_table(tmp_path / "dapo-math-17k.parquet").to_pylist()
    assert [r["extra_info"]["id"] for r in rows] == ["a", "b"]
    assert rows[1]["reward_model"]["ground_truth"] == r"\frac{3}{2}"
    assert rows[1]["prompt"][-1]["content"] == r"Halve $\frac{6}{2}$."


def test_what_was_not_checked_is_said_plainly(tmp_path, sound_file, capsys):
    assert prepare("--dataset", "gsm8k", "--from", sound_file, "--out", tmp_path) == 0
    table = capsys.readouterr().out
    assert "benchmark_overlap           not checked  NO CHECK AGAINST BENCHMARKS WAS DONE" in table
    assert "over_long                   not checked  give --tokenizer" in table
    assert set(json.loads((tmp_path / "gsm8k.report.json").read_text())["not_checked"]) == {
        "benchmark_overlap",
        "over_long",
        "outside_levels",
    }


def test_a_benchmark_keeps_its_repeats(tmp_path, benchmarks):
    rows = write_jsonl(tmp_path / "b.jsonl", [ROWS[0], ROWS[2], ROWS[7]])
    arguments = ["--dataset", "math-500", "--from", rows, "--out", tmp_path, "--benchmarks-from", benchmarks]
    assert prepare(*arguments, "--strict") == 0
    assert pq.read_metadata(tmp_path / "math-500.parquet").num_rows == 3


def test_only_the_levels_of_the_data_set_are_taken_and_strict_does_not_mind(tmp_path):
    rows = [{"id": str(i), "question": f"q{i}", "answer": "1", "level": i} for i in range(1, 6)]
    file = write_jsonl(tmp_path / "m.jsonl", rows)
    assert prepare("--dataset", "math-level3-5", "--from", file, "--out", tmp_path, "--strict") == 0
    kept = pq.read_table(tmp_path / "math-level3-5.parquet").column("extra_info").to_pylist()
    assert [e["level"] for e in kept] == [3, 4, 5]


def test_hub_columns_in_a_parquet_file_are_read_too(tmp_path):
    table = pa.table({"question": ["What is 1,000 + 1?"], "answer": ["Add. #### 1,001"]})
    pq.write_table(table, tmp_path / "hub.parquet")
    assert prepare("--dataset", "gsm8k-test", "--from", tmp_path / "hub.parquet", "--out", tmp_path) == 0
    (row,) = pq.read_table(tmp_path / "gsm8k-test.parquet").to_pylist()
    assert (row["reward_model"]["ground_truth"], row["extra_info"]["id"]) == ("1001", "gsm8k-test/1")


def test_what_it_wrote_serves_as_a_benchmark_again(tmp_path, capsys):
    hens = write_jsonl(tmp_path / "hens.jsonl", [{"id": "x", "question": EGGS, "answer": "21"}])
    rows = write_jsonl(tmp_path / "rows.jsonl", [ROWS[7], *SOUND])
    (tmp_path / "bench").mkdir()
    assert prepare("--dataset", "minerva", "--from", hens, "--out", tmp_path / "bench") == 0
    arguments = ["--dataset", "gsm8k", "--from", rows, "--out", tmp_path]
    assert prepare(*arguments, "--benchmarks-from", tmp_path / "bench") == 0
    assert json.loads((tmp_path / "gsm8k.report.json").read_text())["dropped"]["benchmark_overlap"]["rows"] == 1


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (ROWS[1], r"row 3: latex_restored ('Halve $\x0crac{6}{2}$.' -> 'Halve $\\frac{6}{2}$')"),
        (ROWS[2], "row 3: duplicate (of row 1)"),
        (ROWS[5], "row 3: unparsable_gold (braces do not pair up: "),
        (ROWS[6], "row 3: empty_gold."),
    ],
)
def test_strict_refuses_with_the_first_row_and_writes_nothing(tmp_path, capsys, row, told):
    file = write_jsonl(tmp_path / "rows.jsonl", [*SOUND, row, ROWS[6]])
    assert prepare("--dataset", "gsm8k", "--from", file, "--out", tmp_path / "out", "--strict") == 1
    line = error_line(capsys)
    assert f"--strict: {told}" in line
    assert line.endswith("Nothing was written.")
    assert not (tmp_path / "out").exists()


def test_strict_passes_what_is_sound(tmp_path, sound_file):
    assert prepare("--dataset", "gsm8k", "--from", sound_file, "--out", tmp_path, "--strict") == 0


def test_an_unknown_data_set_or_template_is_answered_with_the_list(tmp_path, capsys, sound_file):
    assert prepare("--dataset", "gsm9k", "--out", tmp_path) == 1
    assert "expected one of dapo-math-17k, " in error_line(capsys)
    assert prepare("--dataset", "gsm8k", "--from", sound_file, "--out", tmp_path, "--template", "chatty") == 1
    assert "--template='chatty': expected one of qwen-math, r1-distill, tiny" in error_line(capsys)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b'{"id": "a", "question": "q", "answer": "1"}\n\n{"id": "b", "quest\n', "row 3 is not JSON"),
        (b'{"id": "a", "question": "q", "answer": "1"}\n[1]\n', "row 2 is a list, expected an object"),
        (b'{"id": "a", "question": "\xff", "answer": "1"}\n', "row 1 is not JSON"),
        (b'{"id": "a", "question": "q"}\n', "row 1: the columns are id, question: expected question, answer"),
        (b'{"id": "a", "question": "q", "answer": {}}\n', "row 1: column 'answer' is dict"),
        (
            b'{"id": "a", "question": "q", "answer": "}"}\n',
            "no row is left of 1 (1 unparsable_gold, first: row 1, braces do not",
        ),
        (b"", "no row is left of 0 (the file is empty)"),
    ],
)
def test_a_broken_file_is_refused_with_its_row(tmp_path, capsys, text, told):
    (tmp_path / "rows.jsonl").write_bytes(text)
    assert prepare("--dataset", "gsm8k", "--from", tmp_path / "rows.jsonl", "--out", tmp_path / "out") == 1
    assert told in error_line(capsys)
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read_are_named(tmp_path, capsys):
    for name, told in (
        ("none.jsonl", "no such file"),
        ("rows.csv", "ends in .jsonl, .json (both also .gz) or .parquet"),
    ):
        if name == "rows.csv":
            (tmp_path / name).write_text("a,b")
        assert prepare("--dataset", "gsm8k", "--from", tmp_path / name, "--out", tmp_path) == 1
        line = error_line(capsys)
        assert name in line and told in line
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    assert prepare("--dataset", "gsm8k", "--from", tmp_path / "torn.parquet", "--out", tmp_path) == 1
    assert "torn.parquet: not a readable parquet file" in error_line(capsys)


def test_an_output_folder_that_cannot_be_made_is_one_line(tmp_path, capsys, sound_file):
    (tmp_path / "file").write_text("")
    assert prepare("--dataset", "gsm8k", "--from", sound_file, "--out", tmp_path / "file") == 1
    assert str(tmp_path / "file") in error_line(capsys)


def test_benchmarks_that_are_none_are_refused(tmp_path, capsys, sound_file, benchmarks):
    arguments = ["--dataset", "gsm8k", "--from", sound_file, "--out", tmp_path / "out", "--benchmarks-from"]
    (tmp_path / "empty").mkdir()
    assert prepare(*arguments, tmp_path / "empty") == 1
    assert "expected a folder with .jsonl, .json (both also .gz) or .parquet files" in error_line(capsys)
    assert prepare(*arguments, benchmarks, sound_file) == 1
    assert "sound.jsonl is the training set itself" in error_line(capsys)
    copy = write_jsonl(tmp_path / "copy.jsonl", SOUND)
    assert prepare(*arguments, copy) == 1
    assert "2 of 2 rows contain a question of copy.jsonl. Is that a training set?" in error_line(capsys)
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"question": "q"}, {"query": "q"}])
    assert prepare(*arguments, bad) == 1
    assert "bad.jsonl: row 2 has no question; columns found: query" in error_line(capsys)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_chat_template_is_refused(tmp_path, capsys, sound_file):
    tokenizer = save_tokenizer(tmp_path / "tokenizer", None)
    arguments = ["--dataset", "gsm8k", "--from", sound_file, "--out", tmp_path, "--max-prompt-tokens", 9, "--tokenizer"]
    assert prepare(*arguments, tokenizer) == 1
    assert "has no chat template" in error_line(capsys)
    (tmp_path / "nothing").mkdir()
    assert prepare(*arguments, tmp_path / "nothing") == 1
    assert "nothing': its tokenizer cannot be loaded" in error_line(capsys)
    assert prepare(*arguments, tmp_path / "absent") == 1
    assert "absent': its tokenizer cannot be loaded (no such folder, and not a name that the hub" in error_line(capsys)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--max-prompt-tokens", "9"], "give both or neither"),
        (["--tokenizer", "somewhere"], "give both or neither"),
        (["--max-prompt-tokens", "0", "--tokenizer", "somewhere"], "--max-prompt-tokens=0: expected a number of at"),
    ],
)
def test_a_limit_needs_a_tokenizer_and_a_sensible_value(tmp_path, capsys, sound_file, more, told):
    assert prepare("--dataset", "gsm8k", "--from", sound_file, "--out", tmp_path, *more) == 1
    assert told in error_line(capsys)


def test_a_failure_while_writing_leaves_what_was_there(tmp_path, sound_file, monkeypatch):
    arguments = ["--dataset", "gsm8k", "--from", sound_file, "--out", tmp_path / "out"]
    assert prepare(*arguments) == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert set(before) == {"gsm8k.parquet", "gsm8k.report.json"}

    def full_disk(rows, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("soup_verl.tasks.prepare_data.write_parquet", full_disk)
    assert prepare(*arguments, "--template", "tiny") == 1
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


@pytest.mark.e2e  # the hub's client tries again for half a minute
def test_without_a_network_one_line_points_to_from(tmp_path):
    # The real loader against a port where nobody listens; only its waits between retries are cut.
    script = """
        import sys, time
        time.sleep = lambda seconds: None
        from soup_verl.tasks.prepare_data import main
        sys.exit(main(["--dataset", "gsm8k", "--out", sys.argv[1]]))
    """
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error: gsm8k: openai/gsm8k could not be loaded from the hub (ConnectionError: Couldn't reach"
    )
    assert line.endswith("--from FILE.jsonl or FILE.parquet.")
    assert not (tmp_path / "out").exists()


def test_a_set_behind_a_script_is_said_to_be_one_without_asking_the_hub(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked"))
    assert prepare("--dataset", "livecodebench", "--out", tmp_path / "out") == 1
    line = error_line(capsys)
    assert "livecodebench/code_generation_lite has a loading script on the hub" in line
    assert "--from FOLDER" in line and "network" not in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [[], ["--dataset", "gsm8k", "--out", "x", "--sise", "3"], ["--size", "many"]])
def test_a_command_line_that_cannot_be_read_is_one_line(capsys, given):
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == 2 and error_line(capsys).endswith(" (--help lists the options)")


def test_templates_by_hand():
    assert TEMPLATES["qwen-math"]("1+1?") == [
        {"role": "system", "content": STEP_BY_STEP},
        {"role": "user", "content": "1+1?"},
    ]
    assert TEMPLATES["r1-distill"]("1+1?") == [{"role": "user", "content": f"1+1?\n{STEP_BY_STEP}"}]
    assert TEMPLATES["tiny"]("1+1?") == [{"role": "user", "content": "1+1?\nPut the answer in \\boxed{}."}]
    assert STEP_BY_STEP == r"Please reason step by step, and put your final answer within \boxed{}."


def test_prompt_tokens_are_the_chat_templates_in_any_batch(tmp_path):
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, CHAT_TEMPLATE), "it", ValueError)
    chats = [[{"role": "user", "content": "a " * n}] for n in range(5)]
    # "<", "user", ">" before the words, ">" after them to open the answer.
    assert prompt_tokens(tokenizer, chats) == [4, 5, 6, 7, 8]
    assert prompt_tokens(tokenizer, chats, batch=2) == [4, 5, 6, 7, 8]


@pytest.mark.e2e
@_needs_real_data
def test_the_real_tokenizer_sees_the_qwen_math_template_and_counts_it():
    tokenizer = load_tokenizer(str(QWEN_TOKENIZER), "it", ValueError)
    chat = TEMPLATES["qwen-math"]("1+1?")
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == (
        f"<|im_start|>system\n{STEP_BY_STEP}<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    )
    questions = [json.loads(line)["question"] for line in (REAL_DATA / "math500.jsonl").open()][:50]
    chats = [TEMPLATES["r1-distill"](question) for question in questions]
    one_by_one = [len(tokenizer.apply_chat_template(c, add_generation_prompt=True)["input_ids"]) for c in chats]
    assert prompt_tokens(tokenizer, chats, batch=16) == one_by_one


BENCHMARKS = {
    "math-500": ("math500", 500),
    "amc23": ("amc23", 40),
    "aime24": ("aime24", 30),
    "aime25": ("aime25", 30),
    "minerva": ("minerva_math", 272),
    "olympiadbench": ("olympiadbench", 675),
    "gsm8k-test": ("gsm8k_test", 1319),
}


@pytest.mark.e2e
@_needs_real_data
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_row_of_a_real_benchmark_is_kept_as_it_is(tmp_path, name):
    stem, rows = BENCHMARKS[name]
    strict = () if name == "minerva" else ("--strict",)  # 21 of its rows list answers of another row
    assert prepare("--dataset", name, "--from", REAL_DATA / f"{stem}.jsonl", "--out", tmp_path, *strict) == 0
    assert pq.read_metadata(tmp_path / f"{name}.parquet").num_rows == rows


@pytest.mark.e2e
@_needs_real_data
def test_the_rows_of_dapo_that_contain_a_benchmark_question_are_found(tmp_path):
    source = REAL_DATA / "dapo_math_en.jsonl"
    marked = [row for row in map(json.loads, source.open()) if row.get("overlap_eval")]
    others = [row for row in map(json.loads, list(source.open())[:300]) if not row.get("overlap_eval")]
    benchmarks = [REAL_DATA / f"{stem}.jsonl" for stem, _ in BENCHMARKS.values()] + [REAL_DATA / "amc_22_23.jsonl"]
    file = write_jsonl(tmp_path / "rows.jsonl", others + marked)
    arguments = ["--dataset", "dapo-math-17k", "--from", file, "--out", tmp_path, "--benchmarks-from", *benchmarks]
    assert prepare(*arguments) == 0
    kept = pq.read_table(tmp_path / "dapo-math-17k.parquet").column("extra_info").to_pylist()
    assert not {e["id"] for e in kept} & {row["id"] for row in marked}
    assert len(kept) > 250


# ---- rows that people have ----

DAPO = {"prompt": [{"role": "user", "content": "Add 1 and 1."}], "reward_model": {"ground_truth": "2"}}


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ({}, "dapo-math-17k/1"),
        ({"extra_info": None}, "dapo-math-17k/1"),
        ({"extra_info": {}}, "dapo-math-17k/1"),
        ({"extra_info": {"index": None, "split": "train"}}, "dapo-math-17k/1"),
        ({"extra_info": {"index": "9a9b6eb4-a1cb-49d1"}}, "9a9b6eb4-a1cb-49d1"),
        ({"extra_info": {"index": 3}}, "3"),
        ({"extra_info": {"index": {"file": None, "row": 3}}}, '{"file": null, "row": 3}'),
        ({"extra_info": '{"index": "as text"}'}, "as text"),
        ({"extra_info": "no JSON"}, "dapo-math-17k/1"),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_row_has_a_name_whatever_its_index_is(tmp_path, extra, name, suffix):
    file = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        write_jsonl(file, [DAPO | extra])
    elif extra.get("extra_info") == {}:
        pytest.skip("parquet has no struct without fields")
    else:
        pq.write_table(pa.Table.from_pylist([DAPO | extra]), file)
    assert prepare("--dataset", "dapo-math-17k", "--from", file, "--out", tmp_path / "out") == 0
    (row,) = pq.read_table(tmp_path / "out" / "dapo-math-17k.parquet").to_pylist()
    assert (row["extra_info"]["id"], row["extra_info"]["index"]) == (name, 0)


def test_a_reward_model_as_json_text_is_read(tmp_path, capsys):
    file = write_jsonl(tmp_path / "rows.jsonl", [DAPO | {"reward_model": json.dumps(DAPO["reward_model"])}])
    assert prepare("--dataset", "dapo-math-17k", "--from", file, "--out", tmp_path) == 0
    (row,) = pq.read_table(tmp_path / "dapo-math-17k.parquet").to_pylist()
    assert row["reward_model"]["ground_truth"] == "2"
    capsys.readouterr()
    write_jsonl(file, [DAPO | {"reward_model": "2"}])
    assert prepare("--dataset", "dapo-math-17k", "--from", file, "--out", tmp_path) == 1
    assert "row 1: column 'reward_model' is '2', expected a mapping with 'ground_truth'" in error_line(capsys)


def test_from_takes_folders_of_shards_and_data_sets_saved_to_disk(tmp_path):
    rows = [{"question": f"Double {i}.", "answer": f"#### {2 * i}"} for i in range(4)]
    (tmp_path / "shards").mkdir()
    for i in (0, 1):
        write_jsonl(tmp_path / "shards" / f"train-{i:05}-of-00002.jsonl", rows[2 * i : 2 * i + 2])
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for source in ("shards", "saved"):
        out = tmp_path / f"{source}_out"
        assert prepare("--dataset", "gsm8k", "--from", tmp_path / source, "--out", out) == 0
        found = pq.read_table(out / "gsm8k.parquet").to_pylist()
        assert [r["reward_model"]["ground_truth"] for r in found] == ["0", "2", "4", "6"]


@pytest.mark.parametrize("gold", ["NaN", '"nan"', "null", '""', '" "', '"$ $"'])
def test_a_gold_that_is_none_is_an_empty_gold(tmp_path, gold):
    file = tmp_path / "rows.jsonl"
    lines = [f'{{"id": "a", "question": "q", "answer": {gold}}}', '{"id": "b", "question": "r", "answer": 2}']
    file.write_text("\n".join(lines))
    assert prepare("--dataset", "gsm8k", "--from", file, "--out", tmp_path) == 0
    report = json.loads((tmp_path / "gsm8k.report.json").read_text())
    assert (report["kept"], report["dropped"]["empty_gold"]["rows"]) == (1, 1)


def test_golds_that_are_one_value_in_two_spellings_do_not_conflict(tmp_path):
    spellings = [r"\frac{1}{2}", "0.5", "1/2", r"\dfrac12", r"\boxed{0.5}"]
    rows = [{"id": str(i), "question": "Halve 1.", "answer": gold} for i, gold in enumerate(spellings)]
    rows += [{"id": "s", "question": "Root 8?", "answer": r"\sqrt{8}"}]
    rows += [{"id": "t", "question": "Root 8?", "answer": r"2\sqrt{2}"}]
    rows += [{"id": "u", "question": "Which?", "answer": "1"}, {"id": "v", "question": "Which?", "answer": "1.5"}]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert prepare("--dataset", "gsm8k", "--from", file, "--out", tmp_path) == 0
    report = json.loads((tmp_path / "gsm8k.report.json").read_text())
    assert (report["kept"], report["dropped"]["duplicate"]["rows"]) == (2, 5)
    assert report["dropped"]["conflicting_golds"]["rows"] == 2
    kept = pq.read_table(tmp_path / "gsm8k.parquet").to_pylist()
    assert [r["reward_model"]["ground_truth"] for r in kept] == [r"\frac{1}{2}", r"\sqrt{8}"]


def test_a_boxed_gold_is_kept_and_can_be_answered(tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"id": "a", "question": "2 + 3?", "answer": r"\boxed{5}"}])
    assert prepare("--dataset", "gsm8k", "--from", file, "--out", tmp_path) == 0
    (row,) = pq.read_table(tmp_path / "gsm8k.parquet").to_pylist()
    gold = row["reward_model"]["ground_truth"]
    assert compute_score("gsm8k", r"So \boxed{5}.", gold, row["extra_info"])["score"] == 1.0
