"""One page on one run or several: python -m soup_verl.report RUN... --out report.html

    folders of runs -> reporting.runs -> compare (which differ only in seeds) -> figures -> page

The page holds all it needs and can be opened without a network. With --watch it is written again every so many
seconds, and an open browser follows.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from soup_verl.records.files import write_text
from soup_verl.reporting.runs import ReportError, read_runs
from soup_verl.tasks.command_line import Parser


def main(arguments: Sequence[str] | None = None, sleep: Callable[[float], None] = time.sleep) -> int:
    """The command; returns its exit code."""
    options = parse(arguments)
    try:
        _write(options)
        sys.stdout.write(f"page: {options.out}\n")
        sys.stdout.flush()
        while options.watch is not None:
            sleep(options.watch)
            try:
                _write(options)
            except (
                ReportError,
                OSError,
            ) as error:  # a run that starts again rewrites its files: the next page has them
                sys.stderr.write(f"warning: {error}; the page is as it was\n")
    except KeyboardInterrupt:
        return 0
    except (ReportError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _write(options: argparse.Namespace) -> None:
    page = make_page(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, page)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line options."""
    parser = Parser(prog="python -m soup_verl.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run (trainer.default_local_dir)")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default report.html)")
    parser.add_argument(
        "--baseline", metavar="RUN", type=Path, help="the run to hold the others against (default: the first)"
    )
    parser.add_argument(
        "--evaluation", metavar="DIR", type=Path, action="append", default=[], help="a further results.json"
    )
    parser.add_argument("--watch", metavar="SECONDS", type=_seconds, help="write the page again and again")
    return parser.parse_args(arguments)


def _seconds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of seconds, at least 1")
    return int(text)


def make_page(options: argparse.Namespace) -> str:
    """The page as it is now.

    Raises:
        ReportError: a folder is no run or no evaluation, or a package is missing.
    """
    try:
        from soup_verl.reporting.page import render
    except ModuleNotFoundError as error:
        raise ReportError(f"the report needs {error.name}: pip install plotly Jinja2") from None
    runs = read_runs([*options.runs, *([options.baseline] if options.baseline else [])])
    return render(runs, baseline=options.baseline, evaluations=options.evaluation, refresh=options.watch)


if __name__ == "__main__":
    sys.exit(main())
