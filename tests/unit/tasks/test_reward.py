import asyncio
import itertools
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soup_verl.tasks.grading import killable
from soup_verl.tasks.grading.latex_text import clean
from soup_verl.tasks.grading.quantities import parse_quantity
from soup_verl.tasks.reward import compute_score

ROOT = Path(__file__).parents[3]
ROWS = [json.loads(line) for line in (Path(__file__).parent / "grading" / "math_rows.jsonl").open()]
DATA = Path(os.environ.get("SOUP_TEST_DATA") or ROOT.parent / "shared" / "data")
BENCHMARKS = ["math500", "amc23", "amc_22_23", "aime24", "aime25", "minerva_math", "olympiadbench", "gsm8k_test"]
TRAINING = ["gsm8k_train", "math_train", "aime_1983_2023", "dapo_math_en"]
HOSTILE = [
    r"9^{9^{9^9}}",
    r"10^{10^{10}}!",
    r"\frac{1}{" * 11 + "5" + "}" * 11,
    r"(99999!)!",
    r"\binom{10^{9}}{10^{8}}",
    r"2^{2^{2^{2^{2^{2}}}}}-2^{2^{2^{2^{2^{2}}}}}+5",
]
NASTY = [
    "",
    "\x00",
    "\ud800",
    "\\",
    "{" * 5000,
    r"\boxed{" * 20_000,
    r"\boxed{" * 5000 + "8" + "}" * 5000,
    r"\boxed{" + "(" * 900 + "}",
    r"\boxed{" + "9" * 900 + "}",
    r"\boxed{" + "9" * 100_000 + "}",
    r"\boxed{" + "1,234" * 150 + "}",
    r"\boxed{" + r"\pm1" * 200 + "}",
    r"\boxed{" + "a=" * 300 + "}",
    r"\boxed{" + r"\text{x" * 100 + "}" * 100 + "}",
    r"\boxed{1e9999}",
    r"\boxed{1e99999999}",
    r"\boxed{10^{9999}}",
    r"\boxed{0/0}",
    r"\boxed{\frac{0}{0}}",
    r"\boxed{\frac{}{}}",
    r"\boxed{__import__('os').system('touch /tmp/x')}",
    r"\boxed{\input{/etc/passwd}}",
    r"\boxed{\begin{pmatrix}\end{pmatrix}}",
    r"\boxed{\begin{pmatrix}" + "1&" * 300 + r"\end{pmatrix}}",
    r"\boxed{٣}",
    r"\boxed{🙂}",
    "\\boxed{5\u202e}",
    r"\boxed{\u0000}",
    r"\boxed{nan}",
    r"\boxed{\infty - \infty}",
    r"\boxed{i^i}",
]


def score(answer, gold, extra_info=None, **kwargs):
    return compute_score("test", f"Therefore the answer is $\\boxed{{{answer}}}$.", gold, extra_info, **kwargs)


def load(name):
    path = DATA / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"no {path}: set SOUP_TEST_DATA to the folder of the data sets")
    return [json.loads(line) for line in path.open()]


def extra_of(row):
    """What a prepared row carries in its `extra_info`."""
    error = row.get("error")
    return {
        "alt_answers": row.get("alt_answers"),
        "tolerance": None if error is None else float(error),
        "is_multiple_answer": row.get("is_multiple_answer"),
        "unit": row.get("unit"),
    }


@pytest.fixture(scope="module", autouse=True)
def checker_runs():
    """The first check waits for math-verify's import; that is not what the tests below time."""
    score("1+0", "1")
    yield
    killable.shared_pool().close()


@pytest.mark.parametrize("row", ROWS, ids=[row["answer"] for row in ROWS])
def test_our_own_rows(row):
    for answer in [row["answer"], *row["right"]]:
        assert score(answer, row["answer"], row["extra_info"], time_limit_s=60)["score"] == 1.0, answer
    for answer in row["wrong"]:
        assert score(answer, row["answer"], row["extra_info"])["score"] == 0.0, answer


def test_the_fields_and_their_types():
    assert score("0.5", r"\frac12") == {
        "score": 1.0,
        "acc": 1.0,
        "format": 1.0,
        "timeout": 0.0,
        "error": "",
        "pred": "1/2",
    }
    wrong = score("4", "5")
    assert (wrong["score"], wrong["acc"], wrong["format"], wrong["pred"]) == (0.0, 0.0, 1.0, "4")


@pytest.mark.parametrize(
    ("response", "error", "has_format"),
    [
        ("the answer is 5", "no_box", 0.0),
        (r"\boxed{5} or \boxed{6", "unclosed_box", 0.0),
        (r"\boxed{ }", "empty_box", 0.0),
        (r"\boxed{" + "5" * 100_000 + "}", "too_long", 0.0),
        (r"\boxed{5 \bmod 7}", "not_allowed", 1.0),
        (r"\boxed{4}", "", 1.0),
    ],
)
def test_why_there_is_no_point(response, error, has_format):
    result = compute_score("test", response, "5")
    assert (result["score"], result["error"], result["format"]) == (0.0, error, has_format)


def test_only_the_last_box_counts():
    assert compute_score("test", r"\boxed{5}, no, \boxed{6}", "5")["score"] == 0.0
    assert compute_score("test", r"\boxed{6}, no, \boxed{5}", "5")["score"] == 1.0
    assert compute_score("test", "".join(rf"\boxed{{{i}}}" for i in range(1000)), "5")["score"] == 0.0


@pytest.mark.parametrize(
    "trick",
    [r"12=7", r"5 \bmod 7", r"\int_0^7 1 dx", r"\sum_{k=1}^{7} 1", "7,8", "7 8", "[0,999]", r"\{0,1,...,999\}", "7^x"]
    + [",".join(map(str, range(200))), r"x \in \mathbb{R}", r"7 \text{ or } 8", r"\pm 7", r"x=7=8", "7;", "7|8"],
)
def test_tricks(trick):
    assert score(trick, "7")["score"] == 0.0


def test_an_expected_answer_longer_than_python_reads_is_right_in_its_own_spelling():
    gold = "8" * 5000
    assert score(gold, gold)["score"] == 1.0
    assert score("7" * 6000, gold)["score"] == 0.0


def test_equal_answers_are_one_answer_in_pred():
    assert len({score(a, "5")["pred"] for a in ("0.5", ".50", r"\frac12", r"\dfrac{1}{2}", "1/2")}) == 1
    assert len({score(a, "5")["pred"] for a in (r"\sqrt2", r"\sqrt{2}", r" \sqrt {2} ")}) == 1
    assert score("50%", "5")["pred"] != score("50", "5")["pred"]


def test_extra_info_as_a_table_gives_it():
    extra = {"alt_answers": np.array(["6"], dtype=object), "tolerance": np.float32(0.0), "unit": math.nan}
    extra |= {"is_multiple_answer": np.bool_(False), "num_turns": None, "rollout_reward_scores": {}}
    assert score("6", "5", extra)["score"] == 1.0
    missing = dict.fromkeys(["alt_answers", "tolerance", "is_multiple_answer", "unit"], math.nan)
    assert score("5", "5", missing)["score"] == 1.0
    assert score("5", 5)["score"] == 1.0


@pytest.mark.parametrize(
    ("gold", "extra", "message"),
    [
        ("", None, "ground_truth="),
        (None, None, "ground_truth="),
        ("5", {"alt_answers": "6"}, "extra_info.alt_answers='6'"),
        ("5", {"tolerance": -1}, "extra_info.tolerance=-1"),
        ("5", {"tolerance": "much"}, "extra_info.tolerance='much'"),
    ],
)
def test_a_broken_row_is_refused_by_name(gold, extra, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        score("5", gold, extra)
    assert "data_source='test'" in str(caught.value) and "expected" in str(caught.value)


@pytest.mark.e2e
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_gold_of_a_benchmark_is_right(name):
    for row in load(name):
        for answer in [row["answer"], *(row.get("alt_answers") or [])]:
            result = score(answer, row["answer"], extra_of(row))
            assert result["score"] == 1.0, (row["id"], answer, result)


@pytest.mark.e2e
@pytest.mark.parametrize("name", TRAINING)
def test_every_gold_of_a_training_set_is_right(name):
    failed = [row["id"] for row in load(name) if score(row["answer"], row["answer"], extra_of(row))["score"] != 1.0]
    assert failed == []


def with_left_and_right(gold):
    gold = re.sub(r"\\(?:left|right)(?![A-Za-z])", "", gold)
    if r"\sqrt[" in gold.replace(" ", ""):
        return gold  # the brackets of an order take no sizes
    return re.sub(r"(?<!\\)([)\]])", r"\\right\1", re.sub(r"(?<!\\)([(\[])", r"\\left\1", gold))


SPELLINGS = {
    "braced": lambda gold: f"{{{gold}}}",
    "dollars": lambda gold: f"${gold.strip('$')}$",
    "boxed": lambda gold: rf"\boxed{{{gold}}}",
    "dfrac": lambda gold: gold.replace(r"\frac", r"\dfrac"),
    "displaystyle": lambda gold: rf"\displaystyle {gold}",
    "left, right": with_left_and_right,
    "full stop": lambda gold: f"{gold}.",
}


@pytest.mark.e2e
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", BENCHMARKS)
def test_golds_in_another_spelling_are_right(name, spelling):
    """As the answer, and as the expected answer."""
    write = SPELLINGS[spelling]
    for row in load(name):
        for gold in [row["answer"], *(row.get("alt_answers") or [])]:
            assert score(write(gold), gold, extra_of(row) | {"alt_answers": None})["score"] == 1.0, (row["id"], gold)
            assert score(gold, write(gold), extra_of(row) | {"alt_answers": None})["score"] == 1.0, (row["id"], gold)


def same_value(gold, answer):
    """What can be told without the grader's kinds: the same characters, or the same plain number."""
    one, other = (parse_quantity(clean(text)) for text in (gold, answer))
    return clean(gold) == clean(answer) or (one is not None and other is not None and one.value == other.value)


@pytest.mark.e2e
def test_of_34000_pairs_of_different_golds_none_is_right_that_is_not_the_same_value():
    rows = {row["id"]: row for name in BENCHMARKS if name != "gsm8k_test" for row in load(name)}
    of_row = [(g, name) for name, row in rows.items() for g in [row["answer"], *(row.get("alt_answers") or [])]]
    golds = sorted(dict(of_row))
    Random(0).shuffle(golds)
    # Each with 30 others, both ways; in groups, so that a gold is read as LaTeX once and not for each pair.
    groups = [golds[start::37] for start in range(37)]
    pairs = [pair for group in groups for pair in itertools.permutations(group, 2)]
    assert len(pairs) > 34_000
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        verdicts = list(threads.map(lambda pair: score(pair[1], pair[0])["score"], pairs))
    accepted = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict]
    assert len(accepted) > 5  # 7.26e6 and 7.26 \times 10^6 are different golds
    answers = [{g for g, name in of_row if name == row} for row in rows]  # golds of one row are the same
    known = [*answers, {r"\frac{\pi}{2}", r"90^\circ"}, {r"\pi", r"180^\circ"}]
    assert [pair for pair in accepted if not same_value(*pair) and not any(set(pair) <= same for same in known)] == []


@pytest.mark.e2e
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_perturbed_number_is_wrong(name):
    numbers = 0
    for row in load(name):
        try:
            gold = Fraction(row["answer"])
        except ValueError:
            continue
        numbers += 1
        extra = extra_of(row) | {"alt_answers": None}
        step = Fraction(extra["tolerance"] or 0)
        for wrong in (gold + step + Fraction(1, 1000), gold - step - 1):
            assert score(f"{wrong.numerator}/{wrong.denominator}", row["answer"], extra)["score"] == 0.0, row["id"]
    assert numbers > 20


@pytest.mark.e2e
@pytest.mark.parametrize("answer", HOSTILE)
def test_a_hostile_answer_costs_at_most_its_limit(answer):
    start = time.monotonic()
    result = score(answer, "5", time_limit_s=0.5)
    assert time.monotonic() - start < 30  # by itself each would take minutes, or for ever
    assert result["score"] == 0.0
    assert result["timeout"] == (result["error"] == "timeout")


@pytest.mark.e2e
def test_the_limit_is_for_a_whole_response():
    answer = ",".join(rf"{n}+9^{{9^{{9^9}}}}" for n in range(20))
    start = time.monotonic()
    result = score(answer, ",".join(rf"{n}" for n in range(20)), time_limit_s=2.0)
    assert time.monotonic() - start < 20  # a limit for each part would be 40
    assert result["timeout"] == 1.0


@pytest.mark.e2e
def test_threads_agree_with_one_thread():
    cases = [(a, row) for row in ROWS[::2] for a in row["right"] + row["wrong"]]
    check = lambda case: score(case[0], case[1]["answer"], case[1]["extra_info"], time_limit_s=60)  # noqa: E731
    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(check, cases)) == list(map(check, cases))


def test_the_way_verl_calls_it():
    """From an event loop, through an executor, by keyword, the module loaded from its file."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("custom_module_1", ROOT / "soup_verl" / "reward.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    async def main():
        loop = asyncio.get_running_loop()
        call = lambda: module.compute_score(  # noqa: E731
            data_source="d", solution_str=r"\boxed{\sqrt{9}}", ground_truth="3", extra_info={}, reward_router_address=""
        )
        return await asyncio.gather(*(loop.run_in_executor(None, call) for _ in range(8)))

    assert [r["score"] for r in asyncio.run(main())] == [1.0] * 8


@pytest.mark.parametrize("response", NASTY, ids=range(len(NASTY)))
@pytest.mark.parametrize("gold", ["7", r"\frac{1}{2},\pi", "x=5"])
def test_nasty_text_never_raises(response, gold):
    start = time.process_time()
    result = compute_score("test", response, gold, time_limit_s=0.5)
    assert result["score"] == 0.0
    json.dumps(result).encode()
    assert result["pred"].encode() is not None
    assert time.process_time() - start < 0.5


@given(st.text(max_size=80) | st.text(alphabet=r"\{}()[],;=^_.-+0123456789xyefracsqtdboml !|'&%$<>", max_size=60))
def test_any_text_in_the_box_never_raises(text):
    result = compute_score("test", rf"\boxed{{{text}}}", r"\sqrt{2}+x", time_limit_s=0.5)
    assert result["score"] in (0.0, 1.0) and json.dumps(result)


def test_ordinary_answers_are_fast():
    cases = [(answer, row) for row in ROWS for answer in [row["answer"], *row["wrong"]]]

    def seconds():
        start = time.perf_counter()
        for answer, row in cases:
            score(answer, row["answer"], row["extra_info"])
        return time.perf_counter() - start

    fastest = min(seconds() for _ in range(4))  # the first starts the checker, others may have stood aside
    assert len(cases) / fastest > 50  # a second, of some 3,000; scripts/bench_reward.py measures


def test_importing_it_is_cheap():
    heavy = ("torch", "verl", "math_verify", "sympy", "numpy")
    code = f"import sys, soup_verl.reward; print(*(m for m in {heavy} if m in sys.modules))"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env).stdout.strip() == ""


def test_no_signal_is_used_in_this_process():
    """SIGALRM would be the training process's; here it is not touched, and no thread is left behind."""
    import signal

    before = signal.getsignal(signal.SIGALRM), threading.active_count()
    score(r"\sqrt{9}", "3")
    assert (signal.getsignal(signal.SIGALRM), threading.active_count()) == before
