"""Rehearse a run script on this machine's CPU: REHEARSE=1 bash recipe/soup/run_<any>.sh [settings]

    settings ──► model (small copy) ──► data ──► overrides ──► preflight ──► validation ──► training, to a checkpoint
             ──► kill (SIGKILL) ──► resume, to the end ──► evaluation ──► report ──► a table, rehearsal.json

The script's own command with a list of overrides, which is printed: the CPU platform, small sizes, places of its own.
Exit code 0 only if every stage ran; 1 after one line that names the stage that did not, 2 if nothing was started.
REHEARSE=steps ends after the steps. docs/rehearsal.md has more.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from soup_verl.evaluation import EvaluationError
from soup_verl.evaluation.engine import installed_vllm
from soup_verl.rehearsal.data import Preparation
from soup_verl.rehearsal.processes import Processes
from soup_verl.rehearsal.record import FILE, Record, show
from soup_verl.rehearsal.stages import ALL, STEPS, Rehearsal
from soup_verl.tasks.command_line import Parser

EXTENTS = {"1": ALL, "steps": STEPS}


class NotStarted(Exception):
    """The rehearsal cannot begin; says why."""


def parse_args(argv: Sequence[str]) -> tuple[argparse.Namespace, list[Preparation], list[str]]:
    """Options, the script's preparations (`--made FILE MODULE ARGUMENTS...`) and its settings (after `--`)."""
    place = list(argv).index("--") if "--" in argv else len(argv)
    head, script = list(argv[:place]), list(argv[place + 1 :])
    starts = [i for i, argument in enumerate(head) if argument == "--made"]
    parser = Parser(prog="python -m soup_verl.rehearsal", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="folder of the rehearsal")
    parser.add_argument("--extent", default="1", help=" or ".join(EXTENTS))
    parser.add_argument("--model", required=True, help="folder, or name on the hub")
    parser.add_argument("--data-dir", required=True, help="the script's folder of prepared data; only read")
    options = parser.parse_args(head[: starts[0]] if starts else head)
    ends = [*starts[1:], len(head)]
    made = [Preparation(head[i + 1], head[i + 2 : end]) for i, end in zip(starts, ends, strict=False)]
    return options, made, script


def check_environment() -> None:
    """
    Raises:
        NotStarted: vLLM is missing, or is not the one for CPUs.
    """
    remedy = "bash scripts/install.sh .venv-cpu cpu,report, then PYTHON=.venv-cpu/bin/python REHEARSE=1 ..."
    try:
        version, device = installed_vllm()
    except EvaluationError:
        raise NotStarted(f"vLLM is not installed for {sys.executable}: {remedy}") from None
    if device != "cpu":
        raise NotStarted(f"the vLLM of {sys.executable} ({version}) runs on GPUs alone: {remedy}")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Have `folder` for this rehearsal alone, empty.

    Raises:
        NotStarted: another rehearsal is under way there, or it holds something else than a rehearsal.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise NotStarted(f"{folder}: expected a folder that can be written ({error.strerror})") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise NotStarted(f"{folder}: a rehearsal is under way there") from None
        content = list(folder.iterdir())
        if content and not (folder / FILE).is_file():
            raise NotStarted(f"{folder}: expected an empty folder or one with {FILE}, not {content[0].name}")
        if content:
            sys.stdout.write(f"{folder}: replacing the rehearsal that is there\n")
        Processes(folder).end_all()  # of one that was killed
        for item in sorted(content, key=lambda path: path.name == FILE):  # the mark goes last
            shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
        yield
    finally:
        os.close(lock)


def rehearse(options: argparse.Namespace, made: Sequence[Preparation], script: Sequence[str]) -> Record:
    """Run every stage, or as far as they go; nothing of it runs any more when this returns."""
    folder = options.out.absolute()
    if options.extent not in EXTENTS:
        raise NotStarted(f"REHEARSE={options.extent}: expected {' or '.join(EXTENTS)}")
    check_environment()
    with claimed(folder):
        record = Record(folder, script, ALL, EXTENTS[options.extent])
        rehearsal = Rehearsal(record, options.model, options.data_dir, made)
        try:
            rehearsal.run()
        except Exception:
            if record.failed is None:
                raise
        finally:
            rehearsal.end()
            record.write()
        return record


def main(argv: Sequence[str] | None = None) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what is in its background deaf to the first
        signal.signal(number, _interrupt)
    try:
        record = rehearse(*parse_args(sys.argv[1:] if argv is None else argv))
    except NotStarted as error:
        sys.stderr.write(f"rehearse: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("rehearse: interrupted; every process of it has been ended\n")
        return 130
    show(record)
    if (failed := record.failed) is not None:
        log = f" (log: {failed.log})" if failed.log else ""
        sys.stderr.write(f"rehearse: {failed.name} failed: {failed.seen}{log}\n")
    return 0 if record.complete else 1


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
