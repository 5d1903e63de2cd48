"""The example with instructions: what its questions ask, and what its demonstrations are worth."""

import random
import sys

import pytest

from soup_verl.launch.run_rules import check_run
from soup_verl.method.config import SoupConfig
from soup_verl.tasks.reward import compute_score
from tests.unit.preflight_files import ROOT
from tests.unit.test_tools_example import settings

pytestmark = pytest.mark.e2e  # the examples' model imports torch and transformers


@pytest.fixture(scope="module")
def teach():
    folder = str(ROOT / "examples" / "text")
    sys.path.insert(0, folder)
    import teach as module

    sys.path.remove(folder)
    yield module
    del sys.modules["teach"]


def test_a_whole_demonstration_follows_all_and_a_hasty_one_all_but_the_form(teach):
    every = teach.wishes(named=1)
    assert len(every) == len({wish.question for wish in every}) == 8 * 7 * 3 * 3
    rng = random.Random(0)
    for row, wish in zip(teach.rows(every, "train").to_dict("records"), every, strict=True):
        whole, hasty = (
            compute_score("colours", shown.solution, row["reward_model"]["ground_truth"], row["extra_info"])
            for shown in (teach.demonstrate(wish, rng), teach.demonstrate(wish, rng, hasty=1.0))
        )
        assert (whole["score"], whole["acc"]) == (1.0, 1.0), wish
        assert (hasty["score"], hasty["acc"], hasty["pred"]) == (0.75, 0.0, wish.form.check)


def test_a_question_is_what_its_gold_checks(teach):
    wish = teach.Wish.read("red, not blue, 4 words or more, in quotes")
    assert wish == teach.Wish(("red",), "blue", 4, wish.form)
    assert wish.question == "red, not blue, 4 words or more, in quotes"
    unmet = [
        compute_score("colours", said, wish.gold, {"domain": "instructions"})["pred"]
        for said in (
            '"gold red pink grey"',
            '"gold gold pink grey"',
            '"red blue gold pink"',
            '"red"',
            "red red red red",
        )
    ]
    names = ("keywords:existence", "keywords:forbidden_words", "length_constraints:number_words", "startend:quotation")
    assert unmet == ["", *names]


def test_no_question_is_both_trained_on_and_validated(teach):
    val, rest, _ = teach.deal(seed=0)
    assert len(val) == 64 and len(rest) >= teach.TRAIN and not {w.question for w in val} & {w.question for w in rest}


@pytest.mark.parametrize("environment", [{}, {"METHOD": "grpo"}])
def test_the_run_passes_every_check(tmp_path, environment):
    config = settings(tmp_path, "text", **environment)
    soup = SoupConfig.parse(config["soup"])
    check_run(soup, config)
    assert soup.mixing is ("METHOD" not in environment)
    assert config["reward"]["custom_reward_function"]["path"] == "pkg://soup_verl.reward"
