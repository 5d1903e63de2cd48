r"""A check from outside: inspect's own graders on the samples of an evaluation, and where they disagree with ours.

    python -m soup_verl.evaluation.inspect_scores OUT --data FILE...      # the --out and --data of soup_verl.evaluate

    samples.jsonl ──► an inspect Task a file and domain, one epoch a session ──► its solver plays the samples back
                  ──► inspect's scorer: `math` or `choice` ──► a table, OUT/inspect/disagreements.jsonl, inspect's logs

`math` is shown what follows the thoughts, and finds the box itself. `choice` looks for a line "ANSWER: B", which our
prompts do not ask for, so it is shown one with what the last box holds, fonts aside; it takes a letter at its beginning
for the answer, whatever follows, and no texts. inspect-ai is this project's extra `inspect`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from soup_verl.evaluation import EvaluationError
from soup_verl.evaluation.comparison import Evaluation, read
from soup_verl.evaluation.problems import Problem, digest, read_problems
from soup_verl.evaluation.samples import SCORED
from soup_verl.records.files import read_json_lines, write_text
from soup_verl.tasks.command_line import Parser
from soup_verl.tasks.domains import MATHEMATICS, domain_name
from soup_verl.tasks.grading.boxes import answer_part, last_box
from soup_verl.tasks.grading.judge import expected_answer
from soup_verl.tasks.grading.options import plain

FOLDER = "inspect"
SHOWN = 20
MAX_BOX = 4000
Responses = Mapping[tuple[int, int], Mapping[str, Any]]
"""(row, session) -> a line of samples.jsonl."""


@dataclass(frozen=True)
class Verdict:
    """Of one sample. `theirs`: None where inspect's scorer gave no verdict."""

    file: str
    index: int
    session: int
    gold: str
    ours: bool
    theirs: bool | None
    our_answer: str
    their_answer: str


@dataclass(frozen=True)
class Grader:
    """How inspect scores a domain. `sample`: fields of its Sample; `completion`: what its scorer is shown."""

    scorer: str
    sample: Callable[[Problem], dict[str, Any]]
    completion: Callable[[str], str]


def _mathematics(problem: Problem) -> dict[str, Any]:
    others = problem.extra_info.get("alt_answers")
    golds = [problem.ground_truth, *([] if others is None else others)]
    return {"target": [expected_answer(gold) for gold in golds]}


def _choice(problem: Problem) -> dict[str, Any]:
    return {"target": problem.ground_truth, "choices": list(map(str, problem.extra_info["options"]))}


def _answer_line(response: str) -> str:
    box, _ = last_box(answer_part(response), max_chars=MAX_BOX)
    return "" if box is None else f"ANSWER: {plain(box)}"


GRADERS = {
    MATHEMATICS: Grader("math", _mathematics, answer_part),
    "choice": Grader("choice", _choice, _answer_line),
}


def compare(evaluation: Evaluation, files: Sequence[Path]) -> tuple[list[Verdict], dict[str, int]]:
    """Both verdicts on every sample of an evaluation; and, by domain, how many problems inspect has no grader for.

    Raises:
        EvaluationError: the evaluation lacks samples, or was made with other data files.
    """
    for file in files:
        made_with = evaluation.settings["data"].get(file.name)
        if not file.exists() or made_with != digest(file):
            expected = f"a file as it was evaluated, one of {', '.join(evaluation.settings['data'])}"
            raise EvaluationError(f"--data={file}: {evaluation.folder} is of other data: expected {expected}")
    samples = _read_samples(evaluation.folder / SCORED)
    groups: dict[tuple[str, str], list[Problem]] = defaultdict(list)
    for problem in read_problems(files):
        groups[problem.file, domain_name(problem.extra_info)].append(problem)
    verdicts: list[Verdict] = []
    left_out: dict[str, int] = {}
    n, logs = evaluation.settings["n"], evaluation.folder / FOLDER
    for (name, domain), problems in groups.items():
        wanted = {(problem.index, session) for problem in problems for session in range(n)}
        if missing := sorted(wanted - samples[name].keys()):
            row, session = missing[0]
            expected = f"row {row} of {name}, session {session}: finish the evaluation first, by the same command"
            raise EvaluationError(f"{evaluation.folder / SCORED}: expected {expected}")
        if domain in GRADERS:
            verdicts += _scored(GRADERS[domain], problems, samples[name], n, logs)
        else:
            left_out[domain] = left_out.get(domain, 0) + len(problems)
    return verdicts, left_out


def _require_inspect() -> None:
    try:
        import inspect_ai  # noqa: F401
    except ImportError:
        raise EvaluationError(
            "inspect-ai: not installed, expected this project's extra `inspect` "
            "(python -m pip install --editable '.[inspect]')"
        ) from None


def _read_samples(path: Path) -> dict[str, dict[tuple[int, int], dict[str, Any]]]:
    """By file, then by row and session."""
    samples: dict[str, dict[tuple[int, int], dict[str, Any]]] = defaultdict(dict)
    try:
        for _, row in read_json_lines(path):
            kept = {name: row.get(name) for name in ("response", "correct", "pred")}
            samples[row["file"]][row["index"], row["session"]] = kept
    except (KeyError, TypeError, ValueError) as error:
        raise EvaluationError(f"{path}: not the samples of an evaluation ({error})") from None
    return samples


def _scored(grader: Grader, problems: Sequence[Problem], samples: Responses, n: int, logs: Path) -> list[Verdict]:
    """The samples of problems of one file and domain, scored by inspect: session s is its epoch s + 1."""
    import inspect_ai
    from inspect_ai import scorer
    from inspect_ai.dataset import MemoryDataset, Sample

    dataset = MemoryDataset([Sample(input="", id=problem.index, **grader.sample(problem)) for problem in problems])
    (log,) = inspect_ai.eval(
        inspect_ai.Task(
            dataset=dataset,
            solver=_played_back(grader, samples),
            scorer=getattr(scorer, grader.scorer)(),
            epochs=n,
            name=Path(problems[0].file).stem,
        ),
        model="mockllm/model",  # never asked
        display="none",
        log_dir=str(logs),
        fail_on_error=False,
    )
    if log.status != "success":
        raise EvaluationError(f"inspect: {log.error.message if log.error else log.status}; its log: {log.location}")
    scores = {(int(done.id), done.epoch - 1): (done.scores or {}).get(grader.scorer) for done in log.samples or []}
    verdict = {scorer.CORRECT: True, scorer.INCORRECT: False, scorer.NOANSWER: False}
    return [
        Verdict(
            problem.file,
            problem.index,
            session,
            str(problem.ground_truth),
            bool(ours["correct"]),
            None if theirs is None else verdict.get(str(theirs.value)),
            str(ours["pred"] or ""),
            str(theirs.answer or "") if theirs else "",
        )
        for problem in problems
        for session in range(n)
        for ours, theirs in [(samples[problem.index, session], scores.get((problem.index, session)))]
    ]


def _played_back(grader: Grader, samples: Responses) -> Any:
    """A solver that gives the stored response for the model's; inspect's `multiple_choice` reads it where there are
    options."""
    from inspect_ai.model import ModelOutput
    from inspect_ai.solver import multiple_choice, solver

    @solver
    def played_back() -> Any:
        async def give(state: Any, *_: Any, **__: Any) -> Any:
            response = samples[int(state.sample_id), state.epoch - 1]["response"]
            state.output = ModelOutput.from_content("stored", grader.completion(response))
            return state

        async def solve(state: Any, generate: Any) -> Any:
            return await (multiple_choice()(state, give) if state.choices else give(state))

        return solve

    return played_back()


def as_table(verdicts: Iterable[Verdict]) -> Table:
    """A line a file: the share that is right to either, and how many verdicts are the same."""
    table = Table("file", "samples", "ours", "inspect", "same verdict", "only ours", "only inspect", "no verdict")
    by_file: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by_file[verdict.file].append(verdict)
    for file, rows in by_file.items():
        judged = [v for v in rows if v.theirs is not None]
        shares = [sum(right) / len(rows) for right in ([v.ours for v in rows], [bool(v.theirs) for v in rows])]
        same = sum(v.ours == v.theirs for v in judged)
        ours, theirs = sum(v.ours and not v.theirs for v in judged), sum(bool(v.theirs) and not v.ours for v in judged)
        counts = map(str, (same, ours, theirs, len(rows) - len(judged)))
        table.add_row(file, str(len(rows)), *(f"{share:.4f}" for share in shares), *counts)
    return table


def disagreements(verdicts: Iterable[Verdict]) -> list[Verdict]:
    return [verdict for verdict in verdicts if verdict.theirs is not None and verdict.ours != verdict.theirs]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 after one line on stderr."""
    arguments = _parse(argv)
    try:
        _require_inspect()
        evaluation = read(arguments.out)
        verdicts, left_out = compare(evaluation, arguments.data)
        differ, file = disagreements(verdicts), evaluation.folder / FOLDER / "disagreements.jsonl"
        if verdicts:
            write_text(file, "".join(json.dumps(asdict(verdict), ensure_ascii=False) + "\n" for verdict in differ))
    except (EvaluationError, OSError) as error:
        sys.stderr.write(" ".join(f"error: {error}".split()) + "\n")
        return 1
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(as_table(verdicts))
    for verdict in differ[:SHOWN]:
        who = "ours" if verdict.ours else "inspect"
        answer = verdict.our_answer if verdict.ours else verdict.their_answer
        place = f"{verdict.file}, row {verdict.index}, session {verdict.session}"
        console.print(f"{place}: right to {who} alone: {verdict.gold!r} expected, {answer!r} read", markup=False)
    if len(differ) > SHOWN:
        console.print(f"and {len(differ) - SHOWN} more: {file}", markup=False)
    for domain, problems in left_out.items():
        console.print(f"{problems} problems of the domain {domain}: inspect has no scorer for them", markup=False)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m soup_verl.evaluation.inspect_scores", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="--out of soup_verl.evaluate")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FILE", help="its --data, or some of it")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
