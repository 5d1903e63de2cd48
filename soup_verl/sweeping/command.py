"""The command `python -m recipe.soup.sweep FILE`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from soup_verl.launch.finished import is_finished
from soup_verl.launch.overrides import Compose
from soup_verl.launch.preflight.provenance import RUN_FILE
from soup_verl.method.checks import ConfigError
from soup_verl.records.files import write_json
from soup_verl.reporting import __main__ as report
from soup_verl.reporting.runs import ReportError
from soup_verl.sweeping import SweepError, here, plan, slurm, states, table
from soup_verl.sweeping.plan import Run, Sweep
from soup_verl.tasks.command_line import Parser

Train = Callable[[here.Configs, Path], object]
RESULTS, PAGE = "sweep.json", "report.html"
"""In the sweep's folder."""


@dataclass(frozen=True)
class Recipe:
    """What is swept.

    Args:
        compose: overrides -> configuration.
        scripts: what a Slurm job is, and the run script that it is given.
    """

    compose: Compose
    scripts: Sequence[Path]


def main(arguments: Sequence[str], recipe: Recipe, train: Train = here.train) -> int:
    """Exit code 0 if every run has finished, or was sent; 1 after a line that says why not; 2 for a command line that
    cannot be read."""
    options = parse(arguments)
    try:
        return _sweep(options, recipe, train)
    except (ConfigError, SweepError, ReportError, OSError) as error:
        sys.stderr.write(" ".join(f"error: {options.file}: {error}".split()) + "\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("sweep: interrupted; the same command goes on from the last checkpoint\n")
        return 130


def _sweep(options: argparse.Namespace, recipe: Recipe, train: Train) -> int:
    sweep = plan.read(options.file)
    runs = list(sweep.runs())
    configs = plan.composed(runs, recipe.compose)
    states.check_unchanged(configs)
    todo = [run for run in runs if not is_finished(configs[run.name])]
    if options.dry_run:
        _show(runs, todo, sweep, recipe if options.slurm else None)
        return 0
    if options.slurm:
        slurm.send(todo, recipe.scripts, sweep.slurm)
    elif not options.table:
        _refuse_sent(todo)
        with here.alone(Path(sweep.out)):
            here.check(configs)
            train(configs, Path(sweep.out) / here.LOG)
    missing = [run for run in runs if not is_finished(configs[run.name])]
    _conclude(sweep, runs, missing)
    return 0 if options.slurm else int(bool(missing))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m recipe.soup.sweep", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", metavar="FILE", type=Path, help="methods, settings and seeds (docs/sweep.md)")
    parser.add_argument(
        "--dry-run", action="store_true", help="show the runs; with --slurm the commands that send them"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--slurm", action="store_true", help="send a Slurm job for each run that has none and is not done")
    how.add_argument("--table", action="store_true", help="train nothing: the table and the page of what there is")
    return parser.parse_args(arguments)


def _show(runs: Sequence[Run], todo: Sequence[Run], sweep: Sweep, to_send: Recipe | None) -> None:
    lines = [] if to_send else [f"all: {' '.join(sweep.shared)}"]
    for number, run in enumerate(runs, start=1):
        state = states.of(run.folder) if run in todo else "finished"
        lines.append(f"{number} of {len(runs)}: {run.name} ({state}): {' '.join(run.own)}")
        if to_send and run in todo:
            lines.append("  " + shlex.join(slurm.command(run, to_send.scripts, sweep.slurm)))
    sys.stdout.write("\n".join(lines) + "\n")


def _refuse_sent(todo: Sequence[Run]) -> None:
    for run in todo:
        if job := slurm.job_of(run):
            remedy = f"Add --slurm, or remove {run.folder / slurm.JOB} once the job has ended."
            raise SweepError(f"{run.name}: job {job} was sent for it. {remedy}")


def _conclude(sweep: Sweep, runs: Sequence[Run], missing: Sequence[Run]) -> None:
    """The table, and the page; what is missing by name."""
    out = Path(sweep.out)
    found = {run.name: table.last_validation(run.folder) for run in runs if run not in missing}
    rows = table.rows(runs, found, sweep.baseline)
    said = {run.name: _missing(run) for run in missing}
    if rows:
        console = Console() if sys.stdout.isatty() else Console(width=160)
        console.print(table.as_table(rows, sweep.baseline))
    elif found:
        sys.stdout.write("no validation in the runs' metrics: trainer.test_freq says how often they validate\n")
    for name, state in said.items():
        sys.stdout.write(f"missing: {name}: {state}\n")
    if found:
        write_json(out / RESULTS, {"baseline": sweep.baseline, "rows": table.as_json(rows), "missing": said})
    _write_page(runs, sweep.baseline, out / PAGE)


def _missing(run: Run) -> str:
    job = slurm.job_of(run)
    return states.of(run.folder) + (f", job {job}" if job else "")


def _write_page(runs: Sequence[Run], baseline: str, page: Path) -> None:
    """Of every run that has begun; a page that cannot be made is a line on stderr and no failure of the sweep."""
    begun = [run for run in runs if (run.folder / RUN_FILE).exists()]
    if begun:
        first = next((run for run in begun if run.method == baseline), begun[0])
        folders = [str(run.folder) for run in begun]
        report.main([*folders, "--baseline", str(first.folder), "--out", str(page)])
