r"""What the reward says of an answer, and why; beside math-verify, which it is often compared with.

    python -m soup_verl.grade --gold '\frac{1}{2}' --pred '0.5'   one answer: the verdict and every step
    python -m soup_verl.grade --file rows.jsonl                   rows: where math-verify says otherwise
    python -m soup_verl.grade --file cases.jsonl --table          rows with `kind` and `expected`: a table

A row of the file is a JSON object with `gold` (or `ground_truth`) and `pred` (the answer) or `response` (the whole
text, whose last box is the answer); `extra_info` is what the reward gets of a data row. Rows may say what is right,
`expected` (0 or 1), of which `kind` they are, and that it is a matter of taste (`debatable`). docs/grading.md has the
rules and the keywords (`--set boxes=row`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soup_verl.tasks.command_line import Parser
from soup_verl.tasks.data.files import read_rows
from soup_verl.tasks.data.layouts import DataError
from soup_verl.tasks.domains import MATHEMATICS, domain_name
from soup_verl.tasks.grading.comparison import RULES, Rules
from soup_verl.tasks.grading.judge import Verdict, judge, read_row
from soup_verl.tasks.grading.killable import Budget, CheckFailed, shared_pool
from soup_verl.tasks.mathematics import TIME_LIMIT_S


class GradeError(ValueError):
    """What the user can mend, in one line."""


@dataclass(frozen=True)
class Case:
    """A row of a file. `expected`: what is right, None where the row does not say."""

    name: str
    gold: str
    response: str
    extra: Mapping[str, Any] | None = None
    expected: bool | None = None
    kind: str = ""
    debatable: bool = False


@dataclass(frozen=True)
class Graded:
    """A case with both verdicts. `peer`: math-verify's; without an answer in time that is no."""

    case: Case
    verdict: Verdict
    peer: bool


def read_cases(path: Path) -> Iterator[Case]:
    """The rows of a file, of any kind that `read_rows` reads. Raises GradeError with the row."""
    try:
        number = 0
        for number, row in read_rows(path):
            yield _case(row, f"{path}, row {number}", number)
    except DataError as error:
        raise GradeError(str(error)) from None
    if number == 0:
        raise GradeError(f"{path}: holds no rows")


def _case(row: Mapping[str, Any], where: str, number: int) -> Case:
    gold = _first_of(row, ("gold", "ground_truth"), where)
    answer = _first_of(row, ("response", "pred", "prediction"), where)
    extra = row.get("extra_info", row.get("extra"))
    if (domain := domain_name(extra)) != MATHEMATICS:
        raise GradeError(
            f"{where}: extra_info.domain={domain!r}: expected {MATHEMATICS}, which alone has steps to show"
        )
    is_whole = "response" in row or bool(row.get("whole_response"))
    expected = row.get("expected")
    return Case(
        name=str(row.get("id", number)),
        gold=str(gold),
        response=str(answer) if is_whole else boxed(str(answer)),
        extra=extra,
        expected=None if expected is None else bool(expected),
        kind=str(row.get("kind", "")),
        debatable=bool(row.get("debatable")),
    )


def _first_of(row: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise GradeError(f"{where}: expected a field {' or '.join(map(repr, names))}, found {', '.join(sorted(row))}")


def boxed(answer: str) -> str:
    return rf"The answer is $\boxed{{{answer}}}$."


def grade(case: Case, rules: Rules, time_limit_s: float) -> Graded:
    try:
        row = read_row(case.name, case.gold, case.extra)
    except ValueError as error:
        raise GradeError(f"row {case.name}: {error}") from None
    verdict = judge(case.response, row, rules, Budget(time_limit_s))
    try:
        peer = shared_pool().check({"gold": case.gold, "response": case.response}, Budget(time_limit_s))
    except CheckFailed:
        peer = False
    return Graded(case, verdict, peer)


def record(verdict: Verdict) -> str:
    """The verdict and its steps, one a line, what was compared within another thing below it."""
    said = "right" if verdict.correct else "wrong"
    if verdict.answer is None:
        return f"{said}: the response gives no answer ({verdict.error})"
    lines = [f"{said}{f': no verdict ({verdict.error})' if verdict.error else ''}: {verdict.gold!r} expected"]
    lines[0] += f", {verdict.answer!r} given; decided by: {verdict.steps[0].kind if verdict.steps else 'same spelling'}"
    for step in verdict.steps:
        outcome = {True: "same", False: "other", None: "undecided"}[step.same]
        lines.append(f"  {'  ' * step.depth}{step.kind}: {step.gold} | {step.pred}: {outcome}")
    return "\n".join(lines)


def disagreements(graded: Sequence[Graded]) -> str:
    """The rows about which this project and math-verify say different things."""
    differ = [g for g in graded if g.verdict.correct != g.peer]
    right = sum(g.verdict.correct for g in graded)
    lines = [f"{len(graded)} rows, {right} right; math-verify says otherwise of {len(differ)}:"]
    for g in differ:
        ours = "right" if g.verdict.correct else "wrong"
        kind = g.verdict.steps[0].kind if g.verdict.steps else g.verdict.error
        lines.append(f"  {g.case.name}: {ours} here ({kind}): {g.case.gold!r} expected, {g.verdict.answer!r} given")
    unlike = [g for g in graded if g.case.expected not in (None, g.verdict.correct)]
    if any(g.case.expected is not None for g in graded):
        lines.append(f"other than `expected`: {len(unlike)}{':' if unlike else ''}")
    lines += [f"  {g.case.name}: {g.case.gold!r} expected, {g.verdict.answer!r} given" for g in unlike]
    return "\n".join(lines)


def table(graded: Sequence[Graded]) -> str:
    """As Markdown, a line a kind: how many are judged as expected, of those to accept and of those to refuse."""
    lines = [
        "| kind | to accept | here | math-verify | to refuse | here | math-verify |",
        "|---|---|---|---|---|---|---|",
    ]
    for debatable in (False, True):
        rows = [g for g in graded if g.case.debatable == debatable and g.case.expected is not None]
        kinds = sorted({g.case.kind for g in rows}) if not debatable else []
        for kind in kinds:
            lines.append(_line(kind.rpartition(":")[2], [g for g in rows if g.case.kind == kind]))
        if rows:
            lines.append(_line("**all, debatable ones**" if debatable else "**all that are not debatable**", rows))
    return "\n".join(lines)


def _line(name: str, rows: Sequence[Graded]) -> str:
    cells = [name]
    for wanted in (True, False):
        asked = [g for g in rows if g.case.expected is wanted]
        cells += [str(len(asked)), str(sum(g.verdict.correct is wanted for g in asked))]
        cells.append(str(sum(g.peer is wanted for g in asked)))
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = parse(arguments)
    try:
        rules = Rules(**dict(map(_setting, options.set)))
        if options.file is None:
            case = Case("", options.gold, options.response or boxed(options.pred), options.extra)
            graded = grade(case, rules, options.time_limit_s)
            said = f"{record(graded.verdict)}\nmath-verify alone: {'right' if graded.peer else 'wrong'}"
        else:
            rows = [grade(case, rules, options.time_limit_s) for case in read_cases(options.file)]
            said = table(rows) if options.table else disagreements(rows)
        sys.stdout.write(said + "\n")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    finally:
        shared_pool().close()
    return 0


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    if name not in RULES:
        raise GradeError(f"--set {text!r}: expected one of {', '.join(RULES)}")
    return name, {"true": True, "false": False}.get(value.lower(), value)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line options."""
    parser = Parser(
        prog="python -m soup_verl.grade", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gold", help="the expected answer")
    parser.add_argument("--pred", help="the answer, as it would stand in the box")
    parser.add_argument("--response", help="a whole response instead of --pred")
    parser.add_argument("--extra", type=json.loads, default=None, help="extra_info of the row, as JSON")
    parser.add_argument("--file", type=Path, help="rows (.jsonl, .json, .parquet) instead of --gold and --pred")
    parser.add_argument("--table", action="store_true", help="of --file: counts by kind instead of disagreements")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a keyword of the reward")
    parser.add_argument("--time-limit-s", type=float, default=TIME_LIMIT_S, help="seconds an answer (default 3)")
    options = parser.parse_args(arguments)
    if options.file is None and (options.gold is None or (options.pred is None) == (options.response is None)):
        parser.error("expected --file, or --gold with --pred or with --response")
    if options.file is not None and (options.gold, options.pred, options.response) != (None, None, None):
        parser.error("--file takes gold and answer from its rows")
    return options


if __name__ == "__main__":
    sys.exit(main())
