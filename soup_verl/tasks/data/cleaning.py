r"""Repairs and filters between a data set and the problems that are trained on. Each is counted; nothing is silent.
What they are is a domain's `RowRules`; those of mathematics are here:

    repair          control characters: \f + "rac" was meant as \frac; the others go
    drop_far_...    alternative answers that are another number than the gold
    row_fault       empty question, empty gold, gold that does not parse, level outside the data set's choice
    merge_repeats   conflicting golds, duplicates                          (training sets only)
    drop_overlap    prompts that contain a benchmark question              (training sets only)

A row is dropped for one reason, the first that applies in the order of `DROPS`, so that rows in = kept + dropped.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

from soup_verl.tasks.data.benchmark_index import BenchmarkIndex, normalise_question
from soup_verl.tasks.data.datasets import Problem
from soup_verl.tasks.grading import latex_text
from soup_verl.tasks.grading.comparison import Rules
from soup_verl.tasks.grading.judge import expected_answer, judge, read_row
from soup_verl.tasks.grading.killable import Budget
from soup_verl.tasks.grading.quantities import parse_quantity

DROPS = {
    "empty_question": "the question is empty",
    "empty_gold": "the gold is empty",
    "unparsable_gold": "the gold does not parse",
    "outside_levels": "not of the levels asked for",
    "conflicting_golds": "same question, different golds: all of them go",
    "duplicate": "same question and gold as an earlier row",
    "benchmark_overlap": "contains a benchmark question",
    "over_long": "more prompt tokens than allowed",
}
# Asked for rather than wrong: no reason for --strict to refuse.
SELECTIONS = {"outside_levels"}
REPAIRS = {
    "latex_restored": r"a control character where a LaTeX command began, such as a form feed in \frac",
    "ligatures_restored": "a control character where a TeX font has fi or ff: de?ne, satis?es",
    "control_characters_removed": "other control characters and lone surrogates; CR and CRLF became LF",
    "alternates_dropped": "an alternative answer that is another number than the gold, by more than a twentieth",
}
MAX_SPELLINGS = 8
"""Of one gold, at most; more are different golds."""
GOLD_LIMIT_S = 3.0
FAR_OFF = Fraction(1, 20)  # relative; alternatives may be rounded otherwise than the gold


@dataclass
class Finding:
    """What one reason did: rows, the first of them, and what was seen there."""

    rows: int = 0
    first_row: int | None = None
    detail: str = ""

    def add(self, row: int, rows: int, detail: str) -> None:
        self.rows += rows
        if self.first_row is None or row < self.first_row:
            self.first_row, self.detail = row, detail


@dataclass
class Tally:
    """Rows in, dropped by reason, repaired by kind; a row may be repaired in two ways and still be dropped."""

    rows_in: int = 0
    dropped: dict[str, Finding] = field(default_factory=lambda: {reason: Finding() for reason in DROPS})
    repaired: dict[str, Finding] = field(default_factory=lambda: {kind: Finding() for kind in REPAIRS})

    def drop(self, reason: str, row: int, *, rows: int = 1, detail: str = "") -> None:
        self.dropped.setdefault(reason, Finding()).add(row, rows, detail)

    def repair(self, kind: str, row: int, detail: str = "") -> None:
        self.repaired[kind].add(row, 1, detail)

    def check(self, kept: int) -> None:
        dropped = sum(f.rows for f in self.dropped.values())
        assert self.rows_in == kept + dropped, f"{self.rows_in} rows in, {kept} kept, {dropped} dropped"

    def first_flaw(self) -> tuple[int, str, str] | None:
        """(row, reason, detail) of the first row that was dropped for a flaw or repaired; None if there is none."""
        findings = {r: f for r, f in self.dropped.items() if r not in SELECTIONS} | self.repaired
        flaws = [(f.first_row, reason, f.detail) for reason, f in findings.items() if f.first_row is not None]
        return min(flaws, default=None)


Fault = tuple[str, str]


def _empty_gold(problem: Problem) -> Fault | None:
    return None if problem.gold.strip() else ("empty_gold", "")


@dataclass(frozen=True)
class RowRules:
    """What a domain makes of its rows.

    Args:
        fault: (reason, detail) of a row that cannot be used, or None; a reason is of `DROPS`, of `drops`, or one that
            tells itself.
        drops: reasons of the domain's own, and what they mean.
        mend: the problem with its texts repaired; counts the repairs.
        question_key, gold_key: equal texts for what is one question, and for spellings of one gold.
        same_gold: whether two golds of one question, of unlike keys, are the same nevertheless.
    """

    fault: Callable[[Problem], Fault | None] = _empty_gold
    drops: Mapping[str, str] = field(default_factory=dict)
    mend: Callable[[Problem, Tally], Problem] = lambda problem, _: problem
    question_key: Callable[[str], str] = lambda text: " ".join(text.split())
    gold_key: Callable[[str], str] = str
    same_gold: Callable[[str, str], bool] = operator.eq


# What is left of a LaTeX command whose backslash and first letter were read as an escape. Only tails that do not occur
# as words of their own: a tab or a line break may well stand before "op" or "u".
_TAILS = {
    "\a": ("a", "lpha|pprox|ngle|lign"),
    "\b": ("b", "inom|eta|egin|oxed|ar|mod|igcup|igcap|ig[lr]?|f|ot|ullet|ecause"),
    "\t": ("t", r"ext(?:bf|it|rm)?|imes|heta|au|frac|binom|riangle|ilde|herefore|o|an(?=\s*[\\^({\d])"),
    "\n": ("n", "eq|abla|otin"),
    "\v": ("v", "ec|ert|arepsilon|arphi|dots"),
    "\f": ("f", "rac|orall|lat|box"),
    "\r": ("r", "ight|ho|ceil"),
}
_EATEN = [
    (re.compile(f"{re.escape(character)}(?=(?:{tails})(?![a-zA-Z]))"), rf"\\{letter}")
    for character, (letter, tails) in _TAILS.items()
]


def restore_latex(text: str) -> str:
    r"""Put back what an escape has eaten: a form feed before "rac" was `\frac`, a tab before "imes" was `\times`."""
    for pattern, command in _EATEN:
        text = pattern.sub(command, text)
    return text


# Form feed and vertical tab are fi and ff in TeX's old fonts; out of a PDF they come beside the letters or for them.
_LIGATURES = [
    (re.compile(r"(?<=fi)\f(?=[a-z])|\f(?=fi)|(?<=ff)\v(?=[a-z])|\v(?=ff)"), ""),
    (re.compile(r"(?<=[a-z])\f(?=[a-z])|\f(?=(?:nds?|nding|rst|ves?|nite|gures?|lled|lls?|tting|xed|nally?)\b)"), "fi"),
    (re.compile(r"(?<=[a-z])\v(?=[a-z])"), "ff"),
]


def restore_ligatures(text: str) -> str:
    """Put back fi and ff where a control character stands for them; to be called after `restore_latex`."""
    for pattern, letters in _LIGATURES:
        text = pattern.sub(letters, text)
    return text


_LINE_BREAK = re.compile(r"\r\n?")
_BREAKING = re.compile(r"[\v\f\x1c-\x1f\x85]")
_OTHER_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")


def remove_control(text: str) -> str:
    """Without control characters but tab and LF: breaks become LF or a space, the others nothing."""
    return _OTHER_CONTROL.sub("", _BREAKING.sub(" ", _LINE_BREAK.sub("\n", text)))


# What the repairs below can change; nearly every text has none of it.
_SUSPECT = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]|\n(?=eq|abla|otin)")
_REPAIRS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("latex_restored", restore_latex),
    ("ligatures_restored", restore_ligatures),
    ("control_characters_removed", remove_control),
)


def repair(problem: Problem, tally: Tally) -> Problem:
    """The problem with its texts repaired, spaces around question and gold aside."""
    texts = [problem.question, problem.gold, *problem.alt_answers]
    if not any(map(_SUSPECT.search, texts)):
        return replace(problem, question=problem.question.strip(), gold=problem.gold.strip())
    for kind, function in _REPAIRS:
        before, texts = texts, [function(text) for text in texts]
        changed = next((i for i, text in enumerate(texts) if text != before[i]), None)
        if changed is not None:
            tally.repair(kind, problem.row, _first_difference(before[changed], texts[changed]))
    question, gold, *alt_answers = texts
    return replace(problem, question=question.strip(), gold=gold.strip(), alt_answers=tuple(alt_answers))


def drop_far_alternates(problem: Problem, tally: Tally) -> Problem:
    """The problem without numeric alternatives that contradict a numeric gold: they are another row's."""
    gold = parse_quantity(latex_text.clean(problem.gold))
    if gold is None or not problem.alt_answers:
        return problem
    numbers = [parse_quantity(latex_text.clean(alternative)) for alternative in problem.alt_answers]
    far = [n is not None and abs(n.value - gold.value) > FAR_OFF * abs(gold.value) for n in numbers]
    if not any(far):
        return problem
    tally.repair("alternates_dropped", problem.row, f"{problem.alt_answers[far.index(True)]!r} for {problem.gold!r}")
    kept = tuple(a for a, is_far in zip(problem.alt_answers, far, strict=True) if not is_far)
    return replace(problem, alt_answers=kept)


def _first_difference(before: str, after: str) -> str:
    """A few characters around the first place where the texts differ, control characters escaped."""
    start = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    window = slice(max(start - 8, 0), start + 12)
    return f"{before[window]!a} -> {after[window]!a}"


def gold_fault(gold: str) -> str | None:
    r"""Why a gold cannot be an answer, judged by its brackets alone; None if nothing is wrong.

    Braces and `\left ... \right` must pair up, and a command must not end before its name. Whether the mathematics
    means anything is for the reward function.
    """
    bare = re.sub(r"\\[\\{}$]", " ", gold)
    depth = 0
    for character in bare:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            break
    if depth != 0:
        return "braces do not pair up"
    if len(re.findall(r"\\left(?![a-zA-Z])", bare)) != len(re.findall(r"\\right(?![a-zA-Z])", bare)):
        return r"\left and \right do not pair up"
    return "ends in a backslash" if bare.endswith("\\") else None


def row_fault(problem: Problem) -> Fault | None:
    """(reason, detail) of a gold that cannot be an answer, whatever the other rows are."""
    if re.sub(r"\{\s*\}|[$.\s]", "", problem.gold).lower() in ("", "nan"):  # pandas writes a missing text as "nan"
        return "empty_gold", ""
    if fault := gold_fault(problem.gold):
        return "unparsable_gold", f"{fault}: {problem.gold[:60]!r}"
    return None


def normalise_gold(text: str) -> str:
    """A gold as it is compared with another: typesetting aside, case kept; 2.0 is 2."""
    text = re.sub(r"[\s$]|\\[,;:! ]|\\(?:left|right)(?![a-zA-Z])", "", text).rstrip(".")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", re.sub(r"\\[dt]frac", r"\\frac", text))
    text = re.sub(r"\\(?:mathbf|mathrm|textbf|text)\{([^{}]*)\}", r"\1", text)
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


@dataclass
class _Repeats:
    """The rows that ask one question. `golds`: in each spelling, the first row that has it."""

    first: Problem
    rows: list[int]
    golds: dict[str, Problem] = field(default_factory=dict)
    conflict: str = ""


def same_gold(one: str, other: str) -> bool:
    """Whether the reward takes each of the two for the other, as in 1/2 and 0.5; undecided in time is no."""

    def accepts(gold: str, answer: str) -> bool:
        row = read_row("golds", gold, None)
        return judge(rf"\boxed{{{expected_answer(answer)}}}", row, Rules(), Budget(GOLD_LIMIT_S)).correct

    return accepts(one, other) and accepts(other, one)


MATHEMATICS = RowRules(
    fault=row_fault,
    mend=lambda problem, tally: drop_far_alternates(repair(problem, tally), tally),
    question_key=normalise_question,
    gold_key=normalise_gold,
    same_gold=same_gold,
)


def _conflict(of_one_question: list[Problem], rules: RowRules) -> str:
    """The first two whose golds are not the same; "" if all are. Every two are compared, so order does not count."""
    if len(of_one_question) > MAX_SPELLINGS:
        return f"{len(of_one_question)} golds, such as {of_one_question[0].gold[:40]!r}"
    for one, other in itertools.combinations(of_one_question, 2):
        if not rules.same_gold(one.gold, other.gold):
            return f"{one.gold[:40]!r} in row {one.row}, {other.gold[:40]!r} in row {other.row}"
    return ""


def merge_repeats(problems: Iterable[Problem], tally: Tally, rules: RowRules = MATHEMATICS) -> list[Problem]:
    """One problem a question, the first; none where the golds differ in more than spelling. In the order of their
    rows."""
    groups: dict[str, _Repeats] = {}
    for problem in problems:
        group = groups.setdefault(rules.question_key(problem.question), _Repeats(problem, []))
        group.rows.append(problem.row)
        group.golds.setdefault(rules.gold_key(problem.gold), problem)
    for group in groups.values():
        group.conflict = _conflict(list(group.golds.values()), rules)
        if group.conflict:
            tally.drop("conflicting_golds", group.first.row, rows=len(group.rows), detail=group.conflict)
        elif len(group.rows) > 1:
            tally.drop("duplicate", group.rows[1], rows=len(group.rows) - 1, detail=f"of row {group.rows[0]}")
    return [group.first for group in groups.values() if not group.conflict]


def drop_overlap(problems: Iterable[Problem], index: BenchmarkIndex, tally: Tally) -> list[Problem]:
    """The problems that contain no benchmark question; the index counts the hits of each benchmark."""
    kept = []
    for problem in problems:
        label = index.find(problem.question)
        if label is None:
            kept.append(problem)
        else:
            tally.drop("benchmark_overlap", problem.row, detail=label)
            index.hits[label.split(" of ", 1)[1]] += 1
    return kept


def drop_over_long(problems: list[Problem], lengths: list[int], limit: int, tally: Tally) -> list[Problem]:
    """The problems whose prompt has at most `limit` tokens; `lengths` are theirs, in order."""
    kept = []
    for problem, length in zip(problems, lengths, strict=True):
        if length <= limit:
            kept.append(problem)
        else:
            tally.drop("over_long", problem.row, detail=f"{length} tokens")
    return kept


def clean(
    problems: Iterable[Problem],
    tally: Tally,
    *,
    is_benchmark: bool,
    levels: tuple[int, int] | None = None,
    index: BenchmarkIndex | None = None,
    rules: RowRules = MATHEMATICS,
) -> list[Problem]:
    """All of the above but the length, which needs a tokenizer.

    Args:
        tally: counts what happens; `rows_in` too.
        is_benchmark: keep rows that repeat another, and do not look for benchmark questions.
        index: the benchmarks to keep out of the training set; None: not looked for.
        rules: the domain's.
    """
    tally.dropped |= {reason: Finding() for reason in rules.drops}
    usable = _usable(problems, levels, tally, rules)
    if is_benchmark:
        return list(usable)
    kept = merge_repeats(usable, tally, rules)
    return kept if index is None else drop_overlap(kept, index, tally)


def _usable(
    problems: Iterable[Problem], levels: tuple[int, int] | None, tally: Tally, rules: RowRules
) -> Iterator[Problem]:
    for problem in problems:
        tally.rows_in += 1
        problem = rules.mend(problem, tally)
        fault = ("empty_question", "") if not problem.question.strip() else rules.fault(problem)
        fault = fault or _outside(problem, levels)
        if fault is None:
            yield problem
        else:
            tally.drop(fault[0], problem.row, detail=fault[1])


def _outside(problem: Problem, levels: tuple[int, int] | None) -> Fault | None:
    inside = levels is None or (problem.level is not None and levels[0] <= problem.level <= levels[1])
    return None if inside else ("outside_levels", "")
