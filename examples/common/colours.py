"""Wishes for a list of colours: a short line of instructions, whose gold names a check of `soup_verl.tasks.text.checks`
for each.

    red, not blue, 4 words or more, in quotes        "gold red pink grey"
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

COLOURS = ("red", "blue", "green", "gold", "pink", "grey", "black", "white")
COUNTS = (3, 4, 5)


@dataclass(frozen=True)
class Form:
    """The last instruction: how it is asked, its check and the arguments of that, and colours that follow it."""

    asked: str
    check: str
    arguments: Mapping[str, Any]
    follow: Callable[[list[str]], str]


FORMS = (
    Form("in quotes", "startend:quotation", {}, lambda words: f'"{" ".join(words)}"'),
    Form("with a title", "detectable_format:title", {}, lambda words: f"<<{words[0]}>> {' '.join(words[1:])}"),
    Form("end with done", "startend:end_checker", {"end_phrase": "done"}, lambda words: f"{' '.join(words)} done"),
)


@dataclass(frozen=True)
class Wish:
    """What is asked for: colours that are named and one that is not, the fewest words, and a form."""

    named: tuple[str, ...]
    forbidden: str
    count: int
    form: Form

    @property
    def question(self) -> str:
        """As the user says it."""
        return f"{', '.join(self.named)}, not {self.forbidden}, {self.count} words or more, {self.form.asked}"

    @classmethod
    def read(cls, question: str) -> Wish:
        """The wish that a question says."""
        *named, forbidden, count, asked = question.split(", ")
        (form,) = (form for form in FORMS if form.asked == asked)
        return cls(tuple(named), forbidden.removeprefix("not "), int(count.split()[0]), form)

    @property
    def gold(self) -> str:
        """As the domain `instructions` reads it."""
        checks: dict[str, Mapping[str, Any]] = {
            "keywords:existence": {"keywords": list(self.named)},
            "keywords:forbidden_words": {"forbidden_words": [self.forbidden]},
            "length_constraints:number_words": {"num_words": self.count, "relation": "at least"},
            self.form.check: self.form.arguments,
        }
        return json.dumps({"instruction_id_list": list(checks), "kwargs": list(checks.values())})


def wishes(named: int) -> list[Wish]:
    """All with so many colours named, in every order of them."""
    colours = itertools.permutations(COLOURS, named + 1)
    return [Wish(tuple(c[:-1]), c[-1], count, form) for c, count, form in itertools.product(colours, COUNTS, FORMS)]


def fulfil(wish: Wish, rng: random.Random, *, hasty: float = 0.0) -> str:
    """Follow every instruction; with the probability `hasty` all but the form."""
    others = [rng.choice([c for c in COLOURS if c != wish.forbidden]) for _ in range(wish.count - len(wish.named))]
    words = [*others, *wish.named]
    rng.shuffle(words)
    return " ".join(words) if rng.random() < hasty else wish.form.follow(words)
