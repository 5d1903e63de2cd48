"""Progress bars for runs whose output goes to a file: reads the steps from their metrics until the process ends."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from soup_verl.records import run_log


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


WAITING = "waiting (start-up takes about a minute)"


def latest(folder: Path) -> tuple[int, str]:
    """The last step logged, and what to say of it."""
    try:
        steps = run_log.read(folder)
    except FileNotFoundError:
        return 0, WAITING
    if not steps:
        return 0, WAITING
    step = max(steps)
    accuracy = [value for data in steps.values() for name, value in data.items() if "/acc/mean@" in name]
    reward = steps[step].get("critic/score/mean")
    parts = [f"reward {reward:.2f}" if reward is not None else "", f"validation {accuracy[-1]:.2f}" if accuracy else ""]
    return step, ", ".join(part for part in parts if part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of the runs")
    parser.add_argument("--steps", type=int, required=True, help="steps of each")
    parser.add_argument("--process", type=int, required=True, help="process id that trains them")
    args = parser.parse_args()
    columns = (TextColumn("{task.fields[name]}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn()) as progress:
        bars = {folder: progress.add_task("", total=args.steps, name=folder.name) for folder in args.runs}
        running = True
        while running:
            running = is_running(args.process)
            for folder, bar in bars.items():
                step, text = latest(folder)
                progress.update(bar, completed=step, description=text)
            time.sleep(1 if running else 0)


if __name__ == "__main__":
    main()
