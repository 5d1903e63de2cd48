"""What SOUP changes against GRPO, by how far its prefixes are from the current policy: all tasks in one figure.

Points that differ from GRPO in more than SOUP's own settings (a KL to the initial policy, a clip) are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.figures import draw_by_prefix_kl
from benchmarks.results import Group, Measured, grpo_of

SHOWN = ("pass@1", "pass@8")
LEAST_SEEDS = 3
"""That a point must share with GRPO."""
Placed = tuple[Measured, Measured, Sequence[int]]
"""A point, GRPO, and the seeds of both."""


def placed(points: Sequence[Measured]) -> list[Placed]:
    """The points of SOUP over its own knobs that have enough seeds and a prefix KL."""
    if not any(p.side == "grpo" for p in points):
        return []
    grpo, own = grpo_of(points), [p for p in points if p.side == "soup" and (p.knob or "").startswith("soup.")]
    shared = [(p, grpo, sorted(set(p.by_seed) & set(grpo.by_seed))) for p in own]
    return [its for its in shared if len(its[2]) >= LEAST_SEEDS and None not in its[0].over(its[2], "prefix_kl")]


def section(results: Mapping[Group, Sequence[Measured]], figures: Path) -> list[str]:
    """The Markdown, and its figure; nothing where no point can be placed."""
    by_task: dict[str, list[Placed]] = {}
    for group, points in results.items():
        if found := placed(points):
            by_task.setdefault(group.task, []).extend(found)
    if not by_task:
        return []
    figure = figures / "by_prefix_kl.png"
    draw_by_prefix_kl(by_task, SHOWN, figure)
    many = sum(map(len, by_task.values()))
    said = f"{many} points of SOUP that share at least {LEAST_SEEDS} seeds with GRPO, each a dot."
    return ["### All tasks, by prefix KL\n", f"{said}\n", f"![SOUP by prefix KL](FIGURES/{figure.name})\n"]
