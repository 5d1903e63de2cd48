"""The example with programs: what its questions ask, and what its demonstrations are worth."""

import random
import sys

import pytest

from soup_verl.launch.run_rules import check_run
from soup_verl.method.config import SoupConfig
from soup_verl.tasks.domains import check_keywords
from soup_verl.tasks.reward import compute_score
from tests.faults.sandbox_under_fire import NEEDS_NAMESPACES
from tests.unit.preflight_files import ROOT
from tests.unit.test_tools_example import settings

pytestmark = pytest.mark.e2e  # the quickstart's module imports torch and transformers


@pytest.fixture(scope="module")
def teach():
    folder = str(ROOT / "examples" / "code")
    sys.path.insert(0, folder)
    import teach as module

    sys.path.remove(folder)
    yield module
    del sys.modules["teach"]


@NEEDS_NAMESPACES
def test_a_whole_demonstration_is_right_and_a_hasty_one_wrong(teach):
    rng = random.Random(0)
    formulas = teach.formulas(teach.TERMS)
    assert len(formulas) == 3**7
    for formula in rng.sample(formulas, 20):
        whole, hasty = (teach.task(formula, rng, hasty=share) for share in (0.0, 1.0))
        row = teach.rows([whole], "train").iloc[0]
        scored = [
            compute_score("formulas", solution, row["reward_model"]["ground_truth"], row["extra_info"])["acc"]
            for solution in (whole.solution, hasty.solution)
        ]
        assert scored == [1.0, 0.0], whole


@pytest.mark.parametrize("environment", [{}, {"METHOD": "grpo"}, {"KEYWORDS": "isolation=limits"}])
def test_the_run_passes_every_check(tmp_path, environment):
    config = settings(tmp_path, "code", **environment)
    soup, function = SoupConfig.parse(config["soup"]), config["reward"]["custom_reward_function"]
    check_run(soup, config)
    keywords = function.get("reward_kwargs", {})
    check_keywords(keywords)
    assert soup.mixing is ("METHOD" not in environment) and function["path"] == "pkg://soup_verl.reward"
    assert keywords == ({"isolation": "limits"} if "KEYWORDS" in environment else {})


def test_a_formula_in_words_has_the_value_that_python_gives_it(teach):
    formulas = sys.modules[teach.formulas.__module__]
    # 2 + 3 * 4 - 2
    assert formulas.value(("a", "+", "b", "*", "c", "-", "a"), [2, 3, 4]) == 12
    asked = teach.task(("a", "+", "b", "*", "c", "-", "a"), random.Random(0))
    assert asked.question == "a plus b times c minus a" and "print(a+b*c-a)" in asked.solution
