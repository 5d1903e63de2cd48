"""From the samples to numbers: a problem's estimates first, then their means and intervals over problems."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from soup_verl.method.estimators import Ballot, bootstrap_intervals, majority_at, pass_at_k

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Judged:
    """One problem's samples and the estimates from them."""

    rows: Sequence[Row]
    estimates: Mapping[str, float]


def summarize(rows: Iterable[Row], *, ks: Sequence[int], seed: int) -> dict[str, Any]:
    """Results by data file, in the order in which the files first come, and over `all` of them where there are several.

    Args:
        rows: the samples; every problem has equally many.
        ks: values of k, each at most the samples of a problem.
        seed: of the bootstrap.
    """
    return {file: summarize_problems(found, seed=seed) for file, found in judge(rows, ks=ks).items()}


def judge(rows: Iterable[Row], *, ks: Sequence[int]) -> dict[str, list[Judged]]:
    """The problems of each data file in their order, and of `all`; arguments as `summarize`."""
    problems: dict[str, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        problems[row["file"]][row["index"]].append(row)
    judged = {
        file: [Judged(found, estimate(found, ks, reported(by_index))) for _, found in sorted(by_index.items())]
        for file, by_index in problems.items()
    }
    if len(judged) > 1:
        judged["all"] = [problem for found in judged.values() for problem in found]
    return judged


def summarize_problems(problems: Sequence[Judged], *, seed: int) -> dict[str, Any]:
    """Counts; `metrics`, name -> mean, low, high (95%, over problems); `correct`, right samples of each problem."""
    common = set.intersection(*(set(p.estimates) for p in problems))
    names = [name for name in problems[0].estimates if name in common]
    values = np.array([[p.estimates[name] for name in names] for p in problems])
    intervals = bootstrap_intervals(values, seed=seed)
    samples = [row for p in problems for row in p.rows]
    lengths = np.array([row["response_length"] for row in samples])
    quantiles = np.quantile(lengths, [0.1, 0.5, 0.9, 1.0]).tolist()
    return {
        "problems": len(problems),
        "samples_per_problem": len(problems[0].rows),
        "metrics": {
            name: {"mean": mean, "low": ends[0] if ends else None, "high": ends[1] if ends else None}
            for name, mean, ends in zip(names, values.mean(axis=0).tolist(), intervals, strict=True)
        },
        "response_length_quantiles": dict(zip(("p10", "p50", "p90", "max"), quantiles, strict=True)),
        "response_tokens_total": int(lengths.sum()),
        "prefix_tokens_total": sum(row["prefix_length"] for row in samples),
        "correct": [sum(row["correct"] for row in p.rows) for p in problems],
    }


def reported(by_index: Mapping[int, Sequence[Row]]) -> set[str]:
    """What the reward function says of a file's samples beyond the score: `pred`, if of any; numbers, if of all."""
    rows = [row for found in by_index.values() for row in found]
    numbers = {name for name in ("format", "timeout") if all(isinstance(row.get(name), (int, float)) for row in rows)}
    return numbers | ({"pred"} if any(row.get("pred") is not None for row in rows) else set())


def estimate(rows: Sequence[Row], ks: Sequence[int], reported: Collection[str]) -> dict[str, float]:
    """One problem's estimates, by metric; maj@k and distinct answers where `pred` is reported: none is no answer."""
    n, right = len(rows), [row["correct"] for row in rows]
    estimates = {f"avg@{n}": sum(right) / n}
    estimates |= {f"pass@{k}": pass_at_k(n=n, correct=sum(right), k=k) for k in ks}
    if "pred" in reported:
        answers = ["" if row.get("pred") is None else str(row["pred"]) for row in rows]
        ballot = Ballot.count(answers, right)
        estimates |= {f"maj@{k}": share for k, share in zip(ks, majority_at(ballot, ks), strict=True)}
        estimates["distinct_answers"] = len(ballot.votes)
        estimates["distinct_correct_answers"] = len({a for a, r in zip(answers, right, strict=True) if a and r})
    estimates["score"] = _mean(row["score"] for row in rows)
    estimates["response_length"] = _mean(row["response_length"] for row in rows)
    estimates["truncated"] = _mean(row["finish_reason"] == "length" for row in rows)
    for name in ("format", "timeout"):
        if name in reported:
            estimates[name] = _mean(row[name] for row in rows)
    if any(row["prefix_wanted"] for row in rows):
        estimates["prefix_length"] = _mean(row["prefix_length"] for row in rows)
    return estimates


def _mean(values: Iterable[float]) -> float:
    found = [float(value) for value in values]
    return sum(found) / len(found)


def as_table(results: Mapping[str, Any]) -> Table:
    """A metric a row, a data file a column: mean [low, high]."""
    table = Table(title="mean [95% bootstrap interval over problems]")
    table.add_column("")
    for file, result in results.items():
        table.add_column(f"{file}\n{result['problems']} x {result['samples_per_problem']}", justify="right")
    for name in dict.fromkeys(name for result in results.values() for name in result["metrics"]):
        table.add_row(name, *(_cell(result["metrics"].get(name)) for result in results.values()))
    return table


def _cell(metric: Mapping[str, float | None] | None) -> str:
    if metric is None:
        return "-"
    mean, low, high = metric["mean"], metric["low"], metric["high"]
    assert mean is not None
    digits = 3 if abs(mean) < 10 else 1
    interval = "" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{mean:.{digits}f}{interval}"
