r"""Whether an answer is the expected one, as a list of kinds of answers.

Both texts are brought into one normal form (`latex_text.clean`). Then each kind, in the order of `KINDS`, says whether
they are the same, or that they are not of this kind. Most kinds split both texts alike and have the pieces compared, by
the same list; the last one hands two expressions, made of known commands and characters, to math-verify.

An answer cannot win by being a different kind of thing than the expected one: `12=7`, `5 \bmod 7`, `\{0,1,...,9\}` and
`[0,9]` are not 7. docs/grading.md says what is decided and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from soup_verl.tasks.grading import lists, real_sets, relations, scalars, shapes, words
from soup_verl.tasks.grading.comparison import BaseComparison, Kind

KINDS: Mapping[str, Kind] = {
    "same spelling": words.same_spelling,
    "choice": words.choice,  # C, \textbf{(C)}\ 5
    "number": scalars.number,  # 1/2, 0.5, 50\%, 5 cm
    "words": words.words,  # \text{even}
    "matrix": shapes.matrix,  # and cases
    "domain": lists.without_domain,  # 3k+1, k \in \mathbb{Z}
    "approximation": relations.approximation,  # 1/3 \approx 0.333
    "named values": lists.named_values,  # x=3, y=2
    "solutions": lists.solutions,  # x=3, y=2; x=4, y=1
    "set of reals": real_sets.real_set,  # x > 2, (2,\infty)
    "union": shapes.union,  # A \cup B
    "list or set": lists.any_order,  # 1,2; \{1,2\}; \pm 1
    "named value": relations.named,  # AB = 5
    "congruence": relations.congruence,  # x \equiv 3 \pmod 7
    "relation": relations.relation,  # 2x + y = 3; x < y
    "tuple or set": shapes.tuple_or_set,  # (1,2), [0,1)
    "parentheses": shapes.in_parentheses,
    "time of day": scalars.clock,  # 3:45 p.m.
    "ratio": scalars.ratio,  # 2:3
    "number in a base": scalars.in_base,  # 2516_8
    "expression": scalars.expression,  # everything else: to math-verify
}


class Comparison(BaseComparison):
    """Compares answers to one problem by `KINDS`."""

    kinds: ClassVar[Mapping[str, Kind]] = KINDS
