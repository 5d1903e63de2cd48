r"""Sums asked in words, and the conversation that asks a small model to put the result into a `\boxed{}`.

    draw_problems -> val, train: no sum is in both, however it is worded
    conversation  -> the messages that verl turns into the prompt
    rows          -> what verl's data set reads

The sums are `chain_sum` of reasoning-gym; the words are ours. Plain Python otherwise.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import reasoning_gym

DATA_SOURCE = "sums_in_words"
OPENINGS = ("What is", "How much is", "What do you get for", "Find", "Work out", "Calculate", "Can you tell me")
WORDS = {"+": "plus", "-": "minus"}
INSTRUCTION = r"Write the answer in \boxed{}."
EXAMPLE_EXPRESSION = "6 + 3"
EXAMPLE = ("What is 6 plus 3?", r"6 + 3 = 9. The answer is \boxed{9}.")
"""One worked problem: asked without it, SmolLM2-135M hardly ever writes a box."""
DRAWS = 10  # of reasoning-gym, a problem wanted: many draws repeat a sum, or go below 0


@dataclass(frozen=True)
class Problem:
    """One sum as reasoning-gym writes it ("8 - 3 + 9"), the question that asks for it, and the right result."""

    expression: str
    question: str
    answer: str


def stays_above_zero(expression: str) -> bool:
    """Whether no total on the way is below 0; spaces stand between numbers and operators."""
    first, *rest = expression.split()
    changes = (int(sign + number) for sign, number in zip(rest[::2], rest[1::2], strict=True))
    return min(itertools.accumulate(changes, initial=int(first))) >= 0


def in_words(expression: str, rng: random.Random) -> str:
    """Ask for `expression`: "8 - 3" -> "How much is 8 minus 3?"."""
    opening = rng.choice(OPENINGS)
    spoken = " ".join(WORDS.get(token, token) for token in expression.split())
    return f"{opening} {spoken}{'.' if opening in ('Find', 'Work out', 'Calculate') else '?'}"


def draw_sums(draws: int, *, seed: int, terms: tuple[int, int], digits: tuple[int, int]) -> Iterator[tuple[str, str]]:
    """Yield expression and result of `draws` sums of reasoning-gym, less those that go below 0; sums may repeat.

    `terms` and `digits` are the least and the most: of numbers in a sum, and of digits, which all its numbers share.
    """
    source = reasoning_gym.create_dataset(
        "chain_sum",
        size=draws,
        seed=seed * 10_000_000,  # reasoning-gym draws sum i from seed + i
        min_terms=terms[0],
        max_terms=terms[1],
        min_digits=digits[0],
        max_digits=digits[1],
    )
    for entry in source:
        if stays_above_zero(entry["metadata"]["expression"]):
            yield entry["metadata"]["expression"], entry["answer"]


def draw_problems(
    counts: Mapping[str, int], *, seed: int, terms: tuple[int, int] = (2, 2), digits: tuple[int, int] = (1, 2)
) -> dict[str, list[Problem]]:
    """Draw `counts["val"]` and `counts["train"]` problems.

    Validation has every sum once; training may ask for one in several wordings, but for none of validation's and not
    for the worked example's.

    Raises:
        ValueError: there are not so many.
    """
    sums = draw_sums(DRAWS * sum(counts.values()), seed=seed, terms=terms, digits=digits)
    rng = random.Random(seed)
    problems = (Problem(expression, in_words(expression, rng), answer) for expression, answer in sums)
    taken, splits = {EXAMPLE_EXPRESSION}, {}
    for split, identity in (("val", "expression"), ("train", "question")):
        found: dict[str, Problem] = {}
        while len(found) < counts[split]:
            problem = next(problems, None)
            if problem is None:
                raise ValueError(f"{split}: {len(found)} different problems, expected {counts[split]}: use more digits")
            if problem.expression not in taken:
                found.setdefault(getattr(problem, identity), problem)
        splits[split] = list(found.values())
        taken |= {problem.expression for problem in splits[split]}
    return splits


def conversation(question: str) -> list[dict[str, str]]:
    """The messages that ask `question`: the instruction, the worked example, the question."""
    asked, worked = EXAMPLE
    return [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": asked},
        {"role": "assistant", "content": worked},
        {"role": "user", "content": question},
    ]


def rows(problems: Iterable[Problem], split: str) -> list[dict[str, Any]]:
    """Lay problems out as verl's data set expects them, one row a prompt."""
    return [
        {
            "data_source": DATA_SOURCE,
            "prompt": conversation(problem.question),
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {"index": index, "split": split, "expression": problem.expression},
        }
        for index, problem in enumerate(problems)
    ]
