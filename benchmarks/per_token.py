"""Quality per decoded token: every point beside the best rival that decodes no more.

GRPO's checkpoints are rivals with the tokens decoded until then, where a result has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from benchmarks.figures import TOKENS, draw_per_token
from benchmarks.results import STOPPED, Measured, grpo_of
from benchmarks.tables import COLUMNS, difference, shown_interval, table

TRAINED = "trained_pass@1"
AS_MANY = 1.02
"""Ratio of tokens up to which two points decode as many: lengths drift by less between runs of the same settings."""
APART = 1.05
"""Ratio of the most to the fewest tokens of a task's points, from which on there is something to compare."""


def tokens_of(point: Measured, seeds: Sequence[int]) -> float:
    """Mean over the seeds."""
    return mean(point.over(seeds, TOKENS))


def counted(points: Sequence[Measured], seeds: Sequence[int]) -> list[Measured]:
    """The points whose decoded tokens are known."""
    return [point for point in points if None not in point.over(seeds, TOKENS)]


def differ(points: Sequence[Measured], seeds: Sequence[int]) -> bool:
    """Whether some runs, stopped ones apart, decoded more than others."""
    tokens = [tokens_of(point, seeds) for point in points if point.method != STOPPED]
    return len(tokens) > 1 and max(tokens) > APART * min(tokens)


def best_affordable(point: Measured, rivals: Sequence[Measured], seeds: Sequence[int], key: str) -> Measured | None:
    """The rival of the highest mean among those that decode no more than the point; None where all decode more."""
    most = AS_MANY * tokens_of(point, seeds)
    known = [rival for rival in rivals if rival is not point and None not in rival.over(seeds, key)]
    affordable = [rival for rival in known if tokens_of(rival, seeds) <= most]
    return max(affordable, key=lambda rival: mean(rival.over(seeds, key)), default=None)


def tokens_table(points: Sequence[Measured], seeds: Sequence[int], keys: Sequence[str]) -> str:
    """Every point but GRPO, the fewest tokens first: differences to GRPO, and to the best rival of no more tokens."""
    grpo, rivals = grpo_of(points), [p for p in points if p.side in ("grpo", "rival")]
    others = [p for p in points if p.method not in (grpo.method, STOPPED)]
    rows = []
    for point in sorted(others, key=lambda p: tokens_of(p, seeds)):
        cells = [point.name, f"{tokens_of(point, seeds) / tokens_of(grpo, seeds):.2f}"]
        for key in keys:
            rival = best_affordable(point, rivals, seeds, key)
            found = "-" if rival is None else f"{shown_interval(difference(point, rival, seeds, key))} ({rival.name})"
            cells += [shown_interval(difference(point, grpo, seeds, key)), found]
        rows.append(cells)
    titles = [COLUMNS[key] for key in keys]
    columns = [column for title in titles for column in (f"{title} − GRPO", f"{title} − best rival of no more tokens")]
    return table(["point", "decoded tokens / GRPO's", *columns], rows)


def section(points: Sequence[Measured], seeds: Sequence[int], k: int, title: str, figure: Path) -> list[str]:
    """Figure and table of a task; nothing where all runs decoded about as much."""
    known = counted(points, seeds)
    if not differ(known, seeds):
        return []
    runs = [p for p in known if p.method != STOPPED]
    keys = [key for key in ("pass@1", f"pass@{k}", TRAINED) if all(None not in p.over(seeds, key) for p in runs)]
    draw_per_token(known, seeds, keys, title, figure)
    return [f"![pass@k against decoded tokens](FIGURES/{figure.name})", tokens_table(known, seeds, keys)]
