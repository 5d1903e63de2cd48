"""A progress bar for a run whose output goes to a file: reads the steps from its metrics until the process ends."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from soup_verl import run_log


def is_running(process: int) -> bool:
    """Whether a process of this user with that id exists and has not ended."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        try:
            os.kill(process, 0)  # no /proc on this system
        except ProcessLookupError:
            return False
        return not Path("/proc").is_dir()
    return state != "Z"


def latest(folder: Path) -> tuple[int, str]:
    """The last step logged, and what to say of it."""
    try:
        steps = run_log.read(folder)
    except FileNotFoundError:
        return 0, "starting (about a minute)"
    if not steps:
        return 0, "starting (about a minute)"
    step = max(steps)
    accuracy = [value for data in steps.values() for name, value in data.items() if "/acc/mean@" in name]
    reward = steps[step].get("critic/score/mean")
    parts = [f"reward {reward:.2f}" if reward is not None else "", f"validation {accuracy[-1]:.2f}" if accuracy else ""]
    return step, ", ".join(part for part in parts if part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--steps", type=int, required=True, help="steps in all")
    parser.add_argument("--process", type=int, required=True, help="process id of the run")
    args = parser.parse_args()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns) as progress:
        bar = progress.add_task("starting (about a minute)", total=args.steps)
        while is_running(args.process):
            step, text = latest(args.run)
            progress.update(bar, completed=step, description=text)
            time.sleep(1)
        step, text = latest(args.run)
        progress.update(bar, completed=step, description=text)


if __name__ == "__main__":
    main()
