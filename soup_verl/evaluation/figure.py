"""The figure of an evaluation: pass@k over k, a line a data file, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Okabe and Ito's, apart for every colour vision; more files than these repeat them with other lines and markers.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = (("-", "o"), ("--", "s"), (":", "^"))


def plot_pass_at_k(results: Mapping[str, Any], ks: Sequence[int], title: str, path: Path) -> None:
    """Write the figure as PNG.

    Args:
        results: what `results.summarize` returns.
        ks: values of k.
        title: above the figure.
        path: the file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.0), layout="constrained")
    axes = figure.subplots()
    for number, (file, result) in enumerate(results.items()):
        points = [result["metrics"][f"pass@{k}"] for k in ks]
        line, marker = _STYLES[number // len(_COLOURS) % len(_STYLES)]
        colour = _COLOURS[number % len(_COLOURS)]
        label = f"{file} ({result['problems']} problems)"
        axes.plot(ks, [p["mean"] for p in points], line, marker=marker, color=colour, label=label)
        if all(p["low"] is not None for p in points):
            low, high = [p["low"] for p in points], [p["high"] for p in points]
            axes.fill_between(ks, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.set(title=title, xlabel="k, samples a problem", ylabel="pass@k", ylim=(0, 1))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, title="band: 95% interval over problems")
    figure.savefig(path, dpi=150)
