"""The reward under hostile model outputs: nothing raises, nothing runs, nothing wins, nothing stays behind."""

import hashlib
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from soup_verl.tasks.grading.answers import Comparison
from soup_verl.tasks.grading.boxes import last_box
from soup_verl.tasks.grading.comparison import Undecided
from soup_verl.tasks.grading.judge import MAX_ANSWER
from soup_verl.tasks.mathematics import TIME_LIMIT_S
from tests.faults.hostile_text import MAKERS, handwritten, hostile_texts

ROOT = Path(__file__).parents[2]
KINDS = len(MAKERS) + 1  # and `code`
EACH = 150
LIMIT_S = 0.3


def digest(attacks):
    return hashlib.sha256(repr([*attacks]).encode()).hexdigest()


def test_the_corpus_is_large_and_its_seed_makes_it_again():
    assert EACH * KINDS >= 2000
    assert digest(hostile_texts(seed=0, each=2)) == digest(hostile_texts(seed=0, each=2))
    assert digest(hostile_texts(seed=0, each=2)) != digest(hostile_texts(seed=1, each=2))
    first = [*islice(hostile_texts(seed=0, each=EACH), 4 * KINDS)]
    assert len({attack.kind for attack in first}) == KINDS and len({attack.text for attack in first}) > 3 * KINDS


def test_what_is_decided_in_this_process_raises_nothing_and_agrees_to_nothing():
    """All that comes before math-verify, without its processes: `decide` says no."""
    comparison, asked = Comparison(decide=lambda question: False), 0
    for attack in [*handwritten(), *hostile_texts(seed=2, each=20)]:
        content, _ = last_box(attack.text, max_chars=max(MAX_ANSWER, 2 * len(attack.gold)))
        if content is None:
            continue
        asked += 1
        try:
            assert not comparison.same(attack.gold, content), attack
        except Undecided as error:
            assert error.reason == "not_allowed"
    assert asked > 10 * KINDS


@pytest.fixture(scope="module")
def fired(tmp_path_factory):
    """The report of `reward_under_fire` on the whole corpus, and its folder."""
    folder = tmp_path_factory.mktemp("fire")
    ended = subprocess.run(
        [sys.executable, "-m", "tests.faults.reward_under_fire", str(EACH), str(LIMIT_S), str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "SOUP_TEST_MARK": str(folder)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout), folder


@pytest.mark.e2e
def test_every_call_returns_its_fields_and_no_text_scores(fired):
    report, _ = fired
    assert report["problems"] == []
    assert len(report["seconds"]) == EACH * KINDS + len([*handwritten()])
    assert {"timeout", "not_allowed", "too_long", "unclosed_box", "no_box", "empty_box"} <= set(report["reasons"])


@pytest.mark.e2e
def test_nothing_that_a_text_says_is_executed(fired):
    report, folder = fired
    assert not (folder / "canary").exists()
    assert report["executed"] == {}
    assert os.listdir(folder / "events") == []


@pytest.mark.e2e
def test_99_of_100_calls_end_within_the_limit_of_a_response(fired):
    seconds = fired[0]["seconds"]
    assert seconds[int(0.99 * len(seconds))] < TIME_LIMIT_S
    assert seconds[len(seconds) // 2] < 0.05


@pytest.mark.e2e
def test_no_process_and_no_thread_stays_behind(fired):
    from tests.e2e.launch import survivors

    report, folder = fired
    assert report["threads_left"] == 0
    assert survivors(folder) == []


@pytest.mark.e2e
def test_memory_stays_flat():
    """A short run of what `--leak 50000` measures; the command itself says no where memory grows."""
    ended = subprocess.run(
        [sys.executable, "scripts/bench_reward.py", "--leak", "3000"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "flat" in ended.stdout.splitlines()[-1]
