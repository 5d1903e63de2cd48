"""Tasks of the domains beside mathematics, scored by the project's own scorers, and what remembers their verdicts.

    code    "a plus b times c"       a program that prints b*c+a      its question's tests, in the sandbox
    puzzle  "kaizkaiz"               <answer>akizzika</answer>        reasoning-gym's palindrome_generation, its scorer
    text    "red, gold, not blue, 4 words or more, in quotes"
                                     "gold red pink grey"              a check for each instruction, all of them

A question says all that its answers are judged by: the gold of its domain is made from it. A batch has many equal
responses to one question, and a run asks each question many times: a verdict is asked for once (`judged`), but for one
that the machine may have made wrong.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import factorial, prod
from pathlib import Path
from typing import Any

from benchmarks import rewards
from benchmarks.rewards import Verdict
from soup_verl.tasks.data.puzzle_maker import entries
from soup_verl.tasks.data.puzzles import gold_text as gold_of_puzzle
from soup_verl.tasks.reward import compute_score as score_of_project

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "common"))
from colours import COLOURS, Wish, fulfil, wishes
from formulas import HEAD, NAMES, TAIL, WORDS, from_words, in_words, signed_products, tests_of

REMEMBERED = 1 << 17
"""Verdicts; the one that was not asked for the longest time goes first."""
UNSURE = ("timeout", "memory", "crashed")
"""A scorer's `error` for which a busy or failing machine may be the reason as well as the response; a program that ends
with an error of its own is `crashed`, too."""


# ---- code ----

TERMS = 5
PROGRAM = (f"{HEAD}print(", f"){TAIL}")
"""What all programs have in common; a token each."""


def draw_code(rng: random.Random) -> str:
    """A formula of five names, in words."""
    return in_words([rng.choice(NAMES if i % 2 == 0 else tuple(WORDS)) for i in range(2 * TERMS - 1)])


def answer_code(rng: random.Random, question: str) -> str:
    """The program, its summands and factors in random order."""
    products = signed_products(from_words(question))
    spelled = [sign + "*".join(rng.sample(names, len(names))) for sign, names in rng.sample(products, len(products))]
    return "".join(spelled).removeprefix("+").join(PROGRAM)


def slip_code(rng: random.Random, question: str) -> str:
    """The program without the formula's last term."""
    return answer_code(rng, in_words(from_words(question)[:-2]))


def gold_code(question: str) -> str:
    """The same tests whenever the question is asked."""
    return tests_of(from_words(question), random.Random(question))


# ---- puzzle ----

FAMILY, SIZES = "palindrome_generation", {"min_length": 6, "max_length": 9}
ANSWER = ("<answer>", "</answer>")


def draw_puzzle(rng: random.Random) -> str:
    """The letters of one of reasoning-gym's puzzles, in its order."""
    return "".join(next(entries(FAMILY, rng.getrandbits(32), SIZES))["metadata"]["letters"])


def answer_puzzle(rng: random.Random, question: str) -> str:
    """One letter of each pair in random order, the odd one, and the same backwards."""
    count = Counter(question)
    half = [letter for letter in count for _ in range(count[letter] // 2)]
    rng.shuffle(half)
    middle = [letter for letter in count if count[letter] % 2]
    return "".join([*half, *middle, *reversed(half)]).join(ANSWER)


def slip_puzzle(rng: random.Random, question: str) -> str:
    """The letters in any order."""
    return "".join(rng.sample(question, len(question))).join(ANSWER)


def key_puzzle(question: str) -> str:
    return "".join(sorted(question))


def gold_puzzle(question: str) -> str:
    """Several answers are right, so none is given; the scorer reads the letters."""
    return gold_of_puzzle(FAMILY, SIZES, {"answer": None, "metadata": {"letters": list(question)}})


def count_puzzle(question: str) -> int:
    """Orders of one letter of each pair."""
    pairs = [count // 2 for count in Counter(question).values()]
    return factorial(sum(pairs)) // prod(map(factorial, pairs))


# ---- text ----

WISHES = wishes(named=2)
LISTED = COLOURS
"""In questions and answers; a token each."""


def draw_text(rng: random.Random) -> str:
    """Two colours that are named, one that is not, the fewest words and a form."""
    return rng.choice(WISHES).question


def answer_text(rng: random.Random, question: str) -> str:
    """The fewest words that follow every instruction, in random order."""
    return fulfil(Wish.read(question), rng)


def slip_text(rng: random.Random, question: str) -> str:
    """All instructions but the form."""
    return fulfil(Wish.read(question), rng, hasty=1.0)


def key_text(question: str) -> str:
    """The named colours in one order."""
    wish = Wish.read(question)
    return replace(wish, named=tuple(sorted(wish.named))).question


def gold_text(question: str) -> str:
    """A check for each instruction."""
    return Wish.read(question).gold


Draw = Callable[[random.Random], str]
Answer = Callable[[random.Random, str], str]
PARTS: dict[str, tuple[Draw, Answer, Answer, Callable[[str], str]]] = {
    "code": (draw_code, answer_code, slip_code, str),
    "puzzle": (draw_puzzle, answer_puzzle, slip_puzzle, key_puzzle),
    "text": (draw_text, answer_text, slip_text, key_text),
}
"""`draw`, `answer`, `slip` and `key` of `tasks.Task`."""


# ---- judging ----


@dataclass(frozen=True)
class Judge:
    """Args:
    domain: one of `soup_verl.tasks.domains`.
    gold: question -> what the domain judges by.
    keywords: of its scorer.
    """

    domain: str
    gold: Callable[[str], str]
    keywords: Mapping[str, Any] = field(default_factory=dict)


JUDGES = {
    "code": Judge("code", gold_code, {"test_time_limit_s": 2}),
    "puzzle": Judge("puzzles", gold_puzzle),
    "text": Judge("instructions", gold_text),
}
COUNTS = rewards.COUNTS | {"puzzle": count_puzzle}
"""How many answers are valid; not known of every task."""


class Unsure(Exception):
    """A verdict that may be another one next time: `args[0]`."""


@lru_cache(maxsize=REMEMBERED)
def judged(task: str, question: str, response: str) -> Verdict:
    """What the project's scorer says: whether the response is right, and the response, "" where it has no answer.

    Raises:
        Unsure: see `UNSURE`; what is raised is not remembered.
    """
    judge = JUDGES[task]
    found = score_of_project(task, response, judge.gold(question), {"domain": judge.domain}, **judge.keywords)
    verdict = found["acc"] == 1.0, response if found["format"] == 1.0 else ""
    if found["error"] in UNSURE:
        raise Unsure(verdict)
    return verdict


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> dict[str, float | str]:
    """`rewards.compute_score` for all tasks, as verl calls it; what a row has besides says nothing here."""
    if data_source not in JUDGES:
        return rewards.compute_score(data_source, solution_str, ground_truth)
    try:
        right, spelling = judged(data_source, ground_truth, solution_str)
    except Unsure as unsure:
        right, spelling = unsure.args[0]
    return {"score": float(right), "acc": float(right), "pred": spelling}
