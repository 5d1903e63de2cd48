r"""Make a data set ready for verl: python -m soup_verl.prepare_data --dataset NAME --out DIR

    read rows (hub or --from) -> clean -> drop over-long prompts -> DIR/NAME.parquet, DIR/NAME.report.json

The report, a table on stdout too, says what became of every row: rows in = kept + dropped by reason. With --strict a
row that would be dropped or repaired ends the command with exit code 1, and nothing is written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from soup_verl.tasks.chat_template import load_tokenizer
from soup_verl.tasks.command_line import Parser
from soup_verl.tasks.data.benchmark_index import BenchmarkIndex
from soup_verl.tasks.data.cleaning import DROPS, REPAIRS, Finding, Tally, clean, drop_over_long
from soup_verl.tasks.data.datasets import DATASETS, DatasetSpec, Problem, find_dataset
from soup_verl.tasks.data.files import KINDS, Rows, benchmark_files, hub_rows, read_questions, read_rows, write_files
from soup_verl.tasks.data.layouts import DataError
from soup_verl.tasks.data.prompt_templates import TEMPLATES, Template, find_template, prompt_tokens
from soup_verl.tasks.data.puzzles import PREFIX, SIZE, is_puzzles, puzzle_spec
from soup_verl.tasks.domains import MATHEMATICS, find_domain


@dataclass
class Report:
    """What became of the rows of one data set; `not_checked` maps a reason to why nothing was dropped for it, `drops`
    to what it means."""

    dataset: str
    source: str
    licence: str
    template: str
    tally: Tally
    kept: int
    not_checked: dict[str, str]
    benchmarks: dict[str, dict[str, int]] = field(default_factory=dict)
    drops: Mapping[str, str] = field(default_factory=lambda: DROPS)

    def as_json(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "source": self.source,
            "licence": self.licence,
            "template": self.template,
            "rows_in": self.tally.rows_in,
            "kept": self.kept,
            "dropped": {reason: asdict(finding) for reason, finding in self.tally.dropped.items()},
            "repaired": {kind: asdict(finding) for kind, finding in self.tally.repaired.items()},
            "not_checked": self.not_checked,
            "benchmarks": self.benchmarks,
        }

    def as_table(self) -> str:
        lines = [f"{self.dataset} from {self.source} (licence: {self.licence}), template {self.template}"]
        lines.append(_line("rows in", self.tally.rows_in))
        for reason, finding in self.tally.dropped.items():
            if reason in self.not_checked:
                lines.append(f"  - {reason:<28}{'not checked':>11}  {self.not_checked[reason]}")
            else:
                lines.append(_line(f"  - {reason}", finding.rows, _first(finding) or self.drops[reason]))
        lines.append(_line("= kept", self.kept))
        lines.append("repaired, in kept and dropped rows alike:")
        lines += [_line(f"    {k}", f.rows, _first(f) or REPAIRS[k]) for k, f in self.tally.repaired.items()]
        for name, counts in self.benchmarks.items():
            lines.append(f"benchmark {name}: {counts['questions']} questions, in {counts['rows_dropped']} rows")
        return "\n".join(lines) + "\n"


def _line(label: str, count: int, remark: str = "") -> str:
    return f"{label:<32}{count:>11}  {remark}".rstrip()


def _first(finding: Finding) -> str:
    if finding.first_row is None:
        return ""
    return f"first: row {finding.first_row}" + (f", {finding.detail}" if finding.detail else "")


def build_index(paths: Sequence[Path], training_file: Path | None) -> BenchmarkIndex:
    """The questions of every file among `paths`, a folder standing for its files.

    Raises:
        DataError: nothing found, or the training file is one of them.
    """
    files = [file for path in paths for file in benchmark_files(path)]
    if not files:
        raise DataError(f"--benchmarks-from={', '.join(map(str, paths))}: expected a folder with {KINDS} files")
    index = BenchmarkIndex()
    for file in files:
        if training_file is not None and file.resolve() == training_file.resolve():
            raise DataError(f"--benchmarks-from: {file} is the training set itself. Give a folder of benchmarks alone.")
        index.add(file.name, read_questions(file))
    return index


def check_hits(index: BenchmarkIndex, rows: int) -> None:
    """Refuse a "benchmark" that more than half of the training rows contain: it is a training set."""
    for name, hits in index.hits.items():
        if 2 * hits > rows:
            raise DataError(
                f"--benchmarks-from: {hits} of {rows} rows contain a question of {name}. Is that a training set? "
                "Give a folder of benchmarks alone."
            )


def to_verl_row(problem: Problem, *, spec: DatasetSpec, template: Template, index: int) -> dict[str, Any]:
    """One row of verl's data set; `index` is its place in the file, from 0."""
    return {
        "data_source": spec.name,
        "prompt": template(problem.question, find_domain(problem.domain).INSTRUCTION),
        "ability": "math" if problem.domain == MATHEMATICS else problem.domain,
        "reward_model": {"style": "rule", "ground_truth": problem.gold},
        "extra_info": {
            "index": index,
            "split": "test" if spec.is_benchmark else "train",
            "domain": problem.domain,
            "id": problem.id,
            "question": problem.question,
            "alt_answers": list(problem.alt_answers),
            "tolerance": problem.tolerance,
            "is_multiple_answer": problem.is_multiple_answer,
            "unit": problem.unit,
            "level": problem.level,
            "subject": problem.subject,
            **(problem.extra or {}),
        },
    }


def write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    """The rows under one schema, whichever fields are empty in all of them; a domain's own fields by their values."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    extra = {"index": pa.int64(), "split": text, "domain": text, "id": text, "question": text}
    extra |= {"alt_answers": pa.list_(text), "tolerance": pa.float64(), "is_multiple_answer": pa.bool_(), "unit": text}
    extra |= {"level": pa.int64(), "subject": text}
    for name in dict.fromkeys(name for row in rows for name in row["extra_info"] if name not in extra):
        extra[name] = pa.array([row["extra_info"].get(name) for row in rows]).type
    columns = {
        "data_source": text,
        "prompt": pa.list_(pa.struct({"role": text, "content": text})),
        "ability": text,
        "reward_model": pa.struct({"style": text, "ground_truth": text}),
        "extra_info": pa.struct(extra),
    }
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(columns)), path)


def prepare(args: argparse.Namespace) -> Report:
    """Read, clean, write; see the module.

    Raises:
        DataError: one line for the user; nothing was written.
    """
    spec, template = choose_dataset(args), find_template(args.template)
    if (args.tokenizer is None) != (args.max_prompt_tokens is None):
        raise DataError("--tokenizer and --max-prompt-tokens: give both or neither, expected both to limit prompts")
    if args.max_prompt_tokens is not None and args.max_prompt_tokens < 1:
        raise DataError(f"--max-prompt-tokens={args.max_prompt_tokens}: expected a number of at least 1")
    tokenizer = None
    if args.tokenizer is not None:
        tokenizer = load_tokenizer(args.tokenizer, f"--tokenizer={args.tokenizer!r}", DataError)
    index = build_index(args.benchmarks_from, args.file) if args.benchmarks_from and not spec.is_benchmark else None

    tally, domain = Tally(), find_domain(spec.domain)
    problems = domain.problems(spec, rows_of(args.file, spec))
    kept = clean(problems, tally, is_benchmark=spec.is_benchmark, levels=spec.levels, index=index, rules=domain.ROWS)
    if index is not None:
        check_hits(index, tally.rows_in)
    if tokenizer is not None:
        lengths = prompt_tokens(tokenizer, (template(p.question, domain.INSTRUCTION) for p in kept))
        kept = drop_over_long(kept, lengths, args.max_prompt_tokens, tally)
    tally.check(len(kept))
    refuse(tally, kept, strict=args.strict)

    report = _report(args, spec, tally, kept, index)
    rows = [to_verl_row(p, spec=spec, template=template, index=i) for i, p in enumerate(kept)]
    _write(args.out, spec.name, rows, report)
    return report


def choose_dataset(args: argparse.Namespace) -> DatasetSpec:
    """The data set that the arguments name, or describe."""
    if is_puzzles(args.dataset):
        if args.file is not None:
            raise DataError(f"--from={args.file}: expected no file, as reasoning-gym makes the rows")
        return puzzle_spec(args.dataset, size=args.size, seed=args.seed, settings=args.set)
    for name in ("size", "seed", "set"):
        if getattr(args, name):
            raise DataError(
                f"--{name}={getattr(args, name)}: expected with reasoning-gym:NAME alone, whose rows are made"
            )
    return find_dataset(args.dataset)


def rows_of(file: Path | None, spec: DatasetSpec) -> Rows:
    """(row number from 1, row) of a file, made on demand, or of the hub."""
    if file is not None:
        return read_rows(file)
    return hub_rows(spec) if spec.made is None else spec.made


def refuse(tally: Tally, kept: list[Problem], *, strict: bool) -> None:
    """Raise DataError if no row is left, or if `strict` and any row was dropped for a flaw or repaired."""
    flaw = tally.first_flaw()
    if strict and flaw is not None:
        row, reason, detail = flaw
        raise DataError(f"--strict: row {row}: {reason}{f' ({detail})' if detail else ''}. Nothing was written.")
    if not kept:
        reasons = "; ".join(f"{f.rows} {reason}, {_first(f)}" for reason, f in tally.dropped.items() if f.rows)
        raise DataError(f"no row is left of {tally.rows_in} ({reasons or 'the file is empty'}). Nothing was written.")


def _report(
    args: argparse.Namespace, spec: DatasetSpec, tally: Tally, kept: list[Problem], index: BenchmarkIndex | None
) -> Report:
    not_checked: dict[str, str] = {}
    if spec.is_benchmark:
        repeats = ("conflicting_golds", "duplicate", "benchmark_overlap")
        not_checked |= dict.fromkeys(repeats, "a benchmark is kept as it is published")
    elif spec.made is not None:
        not_checked["benchmark_overlap"] = "training and test share no question, whatever their seeds"
    elif index is None:
        not_checked["benchmark_overlap"] = "NO CHECK AGAINST BENCHMARKS WAS DONE: give --benchmarks-from DIR"
    if args.tokenizer is None:
        not_checked["over_long"] = "give --tokenizer and --max-prompt-tokens"
    if spec.levels is None:
        not_checked["outside_levels"] = "all levels are taken"
    hub = f"hub:{spec.hub}" + (f":{spec.config}" if spec.config else "")
    source = str(args.file) if args.file is not None else hub if spec.made is None else spec.hub
    sizes = index.sizes if index is not None else {}
    hits = {name: {"questions": n, "rows_dropped": index.hits[name] if index else 0} for name, n in sizes.items()}
    drops = {**DROPS, **find_domain(spec.domain).ROWS.drops}
    return Report(spec.name, source, spec.licence, args.template, tally, len(kept), not_checked, hits, drops)


def _write(out: Path, name: str, rows: list[dict[str, Any]], report: Report) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.as_json(), indent=1, ensure_ascii=False) + "\n"
    # The parquet last: where it is, so is its report.
    write_files(
        {
            out / f"{name}.report.json": lambda path: _write_text(path, text),
            out / f"{name}.parquet": partial(write_parquet, rows),
        }
    )


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m soup_verl.prepare_data", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, metavar="NAME", help=", ".join((*DATASETS, f"{PREFIX}NAME")))
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where NAME.parquet goes")
    parser.add_argument(
        "--from", dest="file", type=Path, metavar="PATH", help="a file or folder of the same rows, for the hub"
    )
    parser.add_argument("--size", type=int, metavar="N", help=f"{PREFIX}NAME: puzzles ({SIZE})")
    parser.add_argument("--seed", type=int, metavar="S", help=f"{PREFIX}NAME: other seeds, other puzzles (0)")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help=f"{PREFIX}NAME: its settings")
    parser.add_argument("--template", default="qwen-math", metavar="NAME", help=", ".join(TEMPLATES))
    parser.add_argument("--tokenizer", metavar="PATH", help="the model's, for --max-prompt-tokens")
    parser.add_argument("--max-prompt-tokens", type=int, metavar="N", help="drop prompts that are longer")
    parser.add_argument("--strict", action="store_true", help="refuse rather than drop or repair a row")
    parser.add_argument(
        "--benchmarks-from",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folders or files of benchmarks that a training set must not contain",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 after one line on stderr; 2 for a command line that cannot be read."""
    try:
        report = prepare(parse_args(argv))
    except (DataError, OSError) as error:
        sys.stderr.write(" ".join(f"error: {error}".split()) + "\n")
        return 1
    sys.stdout.write(report.as_table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
