"""Formulas of three letters, asked for in words; a program that prints one is judged by tests.

("a", "+", "b", "*", "c")     a plus b times c     three inputs, each with what must be printed
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from soup_verl.tasks.code.gold import Suite

WORDS = {"+": "plus", "-": "minus", "*": "times"}
NAMES = "abc"
HEAD, TAIL = "```python\na,b,c=map(int,input().split())\n", "\n```"
"""What all programs have in common, around their last line."""
TESTS = 3

Formula = Sequence[str]
"""Name, sign, name, sign .. name."""


def formulas(terms: int) -> list[tuple[str, ...]]:
    """All of so many names."""
    parts = [NAMES if i % 2 == 0 else tuple(WORDS) for i in range(2 * terms - 1)]
    return list(itertools.product(*parts))


def in_words(formula: Formula) -> str:
    """The question."""
    return " ".join(WORDS.get(part, part) for part in formula)


def from_words(question: str) -> tuple[str, ...]:
    """The formula that a question asks for."""
    signs = {word: sign for sign, word in WORDS.items()}
    return tuple(signs.get(word, word) for word in question.split())


def signed_products(formula: Formula) -> list[tuple[str, list[str]]]:
    """The summands in their order: sign, "+" or "-", and the names that are multiplied."""
    found = [("+", [formula[0]])]
    for operator, name in zip(formula[1::2], formula[2::2], strict=True):
        if operator == "*":
            found[-1][1].append(name)
        else:
            found.append((operator, [name]))
    return found


def value(formula: Formula, row: list[int]) -> int:
    """A formula's value where `NAMES` are the numbers of `row`."""
    numbers = dict(zip(NAMES, row, strict=True))
    total = 0
    for sign, names in signed_products(formula):
        product = 1
        for name in names:
            product *= numbers[name]
        total += product if sign == "+" else -product
    return total


def tests_of(formula: Formula, rng: random.Random) -> str:
    """The gold: random inputs, and what a program must print for each."""
    inputs = [[rng.randint(2, 99) for _ in NAMES] for _ in range(TESTS)]
    tests = tuple((" ".join(map(str, row)) + "\n", f"{value(formula, row)}\n") for row in inputs)
    return Suite("stdin", tests).as_gold()
