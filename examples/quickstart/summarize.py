"""Compare a GRPO and a SOUP run, the quickstart's by default: a table, `summary.json` and `curves.png`.

    python examples/quickstart/summarize.py --grpo runs/quickstart/grpo --soup runs/quickstart/soup \
        --source snapshot --mixed-fraction 0.25 --out runs/quickstart

A run is its `trainer.default_local_dir`, trained with verl's `file` logger. verl writes null for a value that is not a
number.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

from soup_verl.records import run_log

SKIPPED_STEPS = 2  # the first steps pay for warming up
VALIDATION = re.compile(r"val-core/.+/acc/mean@\d+")
STEP_SECONDS = "timing_s/step"
ENTROPY = "actor/entropy"
TRAIN_REWARD = "critic/score/mean"
SOUP_METRICS = {
    "prefix_tokens_share": "soup/prefix_tokens_share",
    "prefix_clip_fraction": "soup/prefix_clip_fraction",
    "prefix_kl": "soup/prefix_kl_k3",
}
COLOURS = {"GRPO": "#0072B2", "SOUP": "#D55E00"}  # blue and vermilion of Okabe and Ito: apart for every colour vision
LINES = {"GRPO": "--", "SOUP": "-"}

Series = list[tuple[int, float]]  # (step, value), by step


@dataclass(frozen=True)
class Run:
    """The metrics of one run by step; a step logged twice keeps the later values."""

    path: Path
    steps: dict[int, dict[str, float]]

    def series(self, metric: str) -> Series:
        """Return (step, value) wherever `metric` was logged as a number."""
        found = ((step, data.get(metric)) for step, data in sorted(self.steps.items()))
        return [(step, float(value)) for step, value in found if isinstance(value, int | float)]

    def settled(self, metric: str) -> float | None:
        """Return the median of `metric` over the training steps after the first two; None if it was never logged."""
        values = [value for step, value in self.series(metric) if step > SKIPPED_STEPS]
        return median(values) if values else None

    def validation(self) -> Series:
        """Return validation accuracy, 0..1, by step.

        Raises:
            ValueError: no validation was logged, or there is more than one validation accuracy.
        """
        names = {name for data in self.steps.values() for name in data if VALIDATION.fullmatch(name)}
        if len(names) != 1:
            raise ValueError(f"{self.path}: expected one val-core/<source>/acc/mean@N, found {sorted(names) or 'none'}")
        return self.series(names.pop())


def read_run(folder: Path) -> Run:
    """Read the metrics of the run in `folder`, the pieces of a resumed run together.

    Raises:
        ValueError: there are none.
    """
    steps = run_log.read(folder)
    if not steps:
        raise ValueError(f"{folder / run_log.FILE}: empty")
    return Run(folder, steps)


def summarize_run(run: Run) -> dict[str, float | int | None]:
    """Return what is reported of every run: steps, seconds, accuracies in 0..1, entropy in nats a token."""
    validation, entropy = run.validation(), run.series(ENTROPY)
    return {
        "steps": max(run.steps),
        "seconds_per_step": run.settled(STEP_SECONDS),
        "val_acc_first": validation[0][1] if validation else None,
        "val_acc_last": validation[-1][1] if validation else None,
        "entropy_last": entropy[-1][1] if entropy else None,
    }


def summarize(grpo: Run, soup: Run, source: str, mixed_fraction: float) -> dict[str, object]:
    """Return the contents of `summary.json`; `step_time_ratio` is SOUP's seconds a step over GRPO's."""
    of_grpo, of_soup = summarize_run(grpo), summarize_run(soup)
    share = SOUP_METRICS["prefix_tokens_share"]  # 0 while there is no history yet
    mixed = Run(soup.path, {step: metrics for step, metrics in soup.steps.items() if metrics.get(share)})
    seconds = (of_soup["seconds_per_step"], of_grpo["seconds_per_step"])
    return {
        "grpo": of_grpo,
        "soup": {
            **of_soup,
            "source": source,
            "mixed_fraction": mixed_fraction,
            **{name: mixed.settled(metric) for name, metric in SOUP_METRICS.items()},
        },
        "step_time_ratio": seconds[0] / seconds[1] if all(seconds) else None,
    }


def shown(value: object) -> str:
    """Format one cell: "-" for what is missing, three decimals for a fraction."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def print_table(summary: dict) -> None:
    """Print both runs side by side."""
    ratio = shown(summary["step_time_ratio"])
    table = Table(title="GRPO and SOUP", caption=f"step time, SOUP / GRPO: {ratio}")
    table.add_column("")
    table.add_column("GRPO", justify="right")
    table.add_column("SOUP", justify="right")
    for key, value in summary["soup"].items():
        table.add_row(key, shown(summary["grpo"].get(key)), shown(value))
    Console().print(table)


def rolling_mean(series: Series, window: int = 5) -> Series:
    """Average each value with up to `window` - 1 values before it."""
    values = [value for _, value in series]
    tails = (values[max(0, end - window) : end] for end in range(1, len(values) + 1))
    return [(step, sum(tail) / len(tail)) for (step, _), tail in zip(series, tails, strict=True)]


def draw(axes: Axes, title: str, unit: str, curves: dict[str, Series], marker: str = "") -> None:
    """Draw the curves of one metric, a run a line."""
    for name, series in curves.items():
        if series:
            axes.plot(*zip(*series, strict=True), LINES[name], marker=marker, color=COLOURS[name], label=name)
    axes.set(title=title, xlabel="training step", ylabel=unit)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()


def plot_curves(grpo: Run, soup: Run, path: Path) -> None:
    """Write a panel each of validation accuracy, training reward, entropy and KL on prefix tokens, as far as logged."""
    runs = {"GRPO": grpo, "SOUP": soup}
    panels = [
        ("Validation accuracy", "fraction right", {k: run.validation() for k, run in runs.items()}, "o"),
        (
            "Training reward (mean of 5 steps)",
            "mean reward",
            {name: rolling_mean(run.series(TRAIN_REWARD)) for name, run in runs.items()},
        ),
        ("Entropy", "nats a token", {name: run.series(ENTROPY) for name, run in runs.items()}),
        (
            "KL on prefix tokens",
            "k3 estimate, nats a token",
            {"SOUP": soup.series(SOUP_METRICS["prefix_kl"])},
        ),
    ]
    panels = [panel for panel in panels if any(panel[2].values())]
    rows = (len(panels) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(10, 3.5 * rows), layout="constrained", squeeze=False)
    for place, panel in zip(axes.flat, panels, strict=False):
        draw(place, *panel)
        if "nats" not in panel[1]:
            place.set_ylim(0, 1)
    for place in axes.flat[len(panels) :]:
        place.remove()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Parse the command line, read both runs, write the summary and the figure."""
    parser = argparse.ArgumentParser(description="Compare a GRPO and a SOUP run.")
    parser.add_argument("--grpo", type=Path, required=True, help="folder of the GRPO run")
    parser.add_argument("--soup", type=Path, required=True, help="folder of the SOUP run")
    parser.add_argument("--source", required=True, help="where SOUP's prefixes came from")
    parser.add_argument("--mixed-fraction", type=float, required=True, help="share of responses that may take a prefix")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder to write to")
    arguments = parser.parse_args()
    try:
        grpo, soup = read_run(arguments.grpo), read_run(arguments.soup)
        summary = summarize(grpo, soup, arguments.source, arguments.mixed_fraction)
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        plot_curves(grpo, soup, arguments.out / "curves.png")
    except (ValueError, OSError) as error:
        sys.exit(f"summarize: {error}")
    print_table(summary)
    print(f"wrote {arguments.out / 'summary.json'} and {arguments.out / 'curves.png'}")


if __name__ == "__main__":
    main()
