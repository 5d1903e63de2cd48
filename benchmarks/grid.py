"""Run the grid's points on the search instrument, one after another; a point that is finished is skipped.

    python -m benchmarks.grid --assets data/benchmarks --out runs/sim --tasks countdown --seeds 5 [--shard 0/2]

A point is finished when its `result.json` is there, which is written under another name and renamed. Seed by seed, so
that an unfinished grid holds the same methods for every seed but the last. `--shard 0/2` and `1/2` are two workers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks import neighbors
from benchmarks.tasks import task_named

if TYPE_CHECKING:
    from benchmarks.run_inputs import RunSettings

GRID = Path(__file__).with_name("grid.yaml")
SIDES = ("grpo", "rival", "soup", "variant")
BELOW = "a name such as `masked` or `neighbor` is all below it; default all but the recipe's neighbours"
BELOW += "; `neighbor:first` is each of them at its own setting"
NEIGHBOR = "neighbor/"
"""Begins the name of a point whose settings are those of a file of the recipe."""
FIRST = ":first"
"""Ends a name that is, of all below it, the first point of each method."""


@dataclass(frozen=True)
class Point:
    """One setting of one method on one task.

    Args:
        task, method: names of the grid.
        side: one of `SIDES`.
        title: what the method is called in tables.
        knob, value: the setting that varies; None for a method without.
        settings: dotted keys.
    """

    task: str
    method: str
    side: str
    title: str
    knob: str | None
    value: float | str | None
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """Folder of the point, below that of its task."""
        return self.method if self.knob is None else f"{self.method}/{self.value}"

    @property
    def label(self) -> dict[str, Any]:
        """What `result.json` says of the point; the task by its name in the grid."""
        return {name: getattr(self, name) for name in ("task", "method", "side", "title", "knob", "value")}


def read_grid(path: Path) -> dict[str, Any]:
    """What is written in `grid.yaml`."""
    return yaml.safe_load(path.read_text())


def read_points(path: Path, task: str) -> list[Point]:
    """The points of a task, in the grid's order; last the recipe's neighbours that can be run here.

    Raises:
        ValueError: the task is not in the grid, or a method has an unknown side or neighbour.
    """
    grid = read_grid(path)
    if task not in grid["tasks"]:
        raise ValueError(f"--tasks {task}: expected some of {', '.join(grid['tasks'])} of {path}")
    length, prompts = task_named(task).max_response_tokens, grid["common"]["prompts"]
    files = neighbors.all_of(response_length=length, prompts=prompts)
    methods = {name: _on_neighbor(name, method, files) for name, method in grid["methods"].items()}
    methods |= _neighbors(grid.get("neighbors"), files)
    return [point for name, method in methods.items() for point in _points(grid, task, name, method)]


def _on_neighbor(name: str, method: dict[str, Any], files: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The method with its neighbour's settings, all but the mixing, below its own."""
    neighbor = method.get("neighbor")
    if neighbor is None:
        return method
    if neighbor not in files:
        raise ValueError(f"methods.{name}.neighbor={neighbor!r}: expected one of {', '.join(files)}")
    below = {key: value for key, value in files[neighbor].items() if not key.startswith("soup.")}
    return method | {"set": below | method.get("set", {})}


def _points(grid: dict[str, Any], task: str, name: str, method: dict[str, Any]) -> Iterator[Point]:
    if method["side"] not in SIDES:
        raise ValueError(f"methods.{name}.side={method['side']!r}: expected one of {', '.join(SIDES)}")
    own, of_task = method.get("set", {}), grid["tasks"][task]
    if not any(key.startswith("soup.") for key in own):
        of_task = {key: value for key, value in of_task.items() if not key.startswith("soup.")}
    if "soup.prefix_length.unit" in own:  # the task's are tokens
        of_task = {key: value for key, value in of_task.items() if not key.startswith("soup.prefix_length.")}
    settings = grid["common"] | of_task | own | method.get("per_task", {}).get(task, {})
    knob = method.get("knob")
    for value in method["values"] if knob else [None]:
        varied = settings if knob is None else settings | dict.fromkeys([knob, *method.get("also", [])], value)
        yield Point(task, name, method["side"], method["title"], knob, value, varied)


def _neighbors(given: dict[str, Any] | None, files: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The recipe's neighbours as methods of the grid, but for those that it has under another name."""
    if given is None:
        return {}
    return {
        NEIGHBOR + name: _neighbor(given, name, given["set"] | settings)
        for name, settings in files.items()
        if name not in given["elsewhere"]
    }


def _neighbor(given: dict[str, Any], name: str, settings: dict[str, Any]) -> dict[str, Any]:
    mixing = settings["soup.mixed_fraction"] > 0
    varied = given["knobs"].get(name, {})
    if not varied and mixing and settings["soup.source"] == "lookahead":
        varied = {key: given[key] for key in ("knob", "values")}
    side = "variant" if mixing else "rival"
    return {"side": side, "title": neighbors.title(name), "set": settings, **varied}


def not_here(path: Path) -> dict[str, str]:
    """Neighbours of the recipe that are no points of their own -> why."""
    grid = read_grid(path)
    whys = {name: neighbors.refusal(name, prompts=grid["common"]["prompts"]) for name in neighbors.names()}
    refused = {name: why for name, why in whys.items() if why is not None}
    return {name: f"is the grid's `{point}`" for name, point in grid["neighbors"]["elsewhere"].items()} | refused


def chosen(points: Sequence[Point], names: Sequence[str] | None) -> list[Point]:
    """The points of these names: `masked/64`, or all of `masked`, or all of `neighbor`, or with `neighbor:first` the
    first of each of its methods. Without names all points but the recipe's neighbours.

    Raises:
        ValueError: there is none of a name.
    """
    if not names:
        return [point for point in points if not point.name.startswith(NEIGHBOR)]
    found: dict[str, Point] = {}
    for name in names:
        top = name.removesuffix(FIRST)
        below = [point for point in points if f"{point.name}/".startswith(f"{top}/")]
        if not below:
            raise ValueError(f"--points {name}: {_why_none(points, top)}")
        if top != name:
            below = [next(of_method) for _, of_method in groupby(below, lambda point: point.method)]
        found |= {point.name: point for point in below}
    return list(found.values())


def _why_none(points: Sequence[Point], name: str) -> str:
    if name.startswith(NEIGHBOR):
        refused = neighbors.refusal(name.removeprefix(NEIGHBOR), prompts=points[0].settings["prompts"])
        if refused is not None:
            return refused
    return f"expected some of {', '.join(point.name for point in points)}"


def settings_of(point: Point, seed: int, for_all: dict[str, Any]) -> RunSettings:
    """A point's settings; the knob wins over what holds for all.

    Raises:
        ValueError: a key is unknown.
    """
    from benchmarks.run_inputs import nested, parse_settings  # torch: only where something is run

    knob = {} if point.knob is None else {point.knob: point.value}
    return parse_settings(nested(point.settings | for_all | knob) | {"seed": seed})


def run_points(todo: list[tuple[Point, int]], assets: Path, out: Path, for_all: Sequence[str] = ()) -> None:
    """Run each (point, seed) that is not finished, on one core; one line each, with the time left.

    Args:
        todo: what to run.
        assets, out: folders with one folder a task.
        for_all: "key=value" of every point.

    Raises:
        ValueError: a finished one was made with other settings or from another warm start.
    """
    import torch

    from benchmarks.run_inputs import Assets
    from benchmarks.simulate import RESULT, assignments, run

    torch.set_num_threads(1)
    of_task = {task: Assets.read(assets / task) for task in {point.task for point, _ in todo}}
    unfinished = []
    for point, seed in todo:
        settings = settings_of(point, seed, assignments(for_all))
        if not finished(folder_of(out, point, seed) / RESULT, settings, of_task[point.task].start):
            unfinished.append((point, seed, settings))
    print(f"{len(todo) - len(unfinished)} of {len(todo)} points are finished", flush=True)
    started = time.perf_counter()
    for done, (point, seed, settings) in enumerate(unfinished, start=1):
        result = run(of_task[point.task], settings, folder_of(out, point, seed), point.label)
        last = result["checkpoints"][-1]
        left = (time.perf_counter() - started) / done * (len(unfinished) - done) / 3600
        said = {"point": f"{point.task}/{point.name}", "seed": seed, "seconds": round(result["seconds"])}
        said |= {key: round(value, 3) for key, value in last.items() if key in ("pass@1", "pass@32")}
        print(json.dumps(said | {"points_left": len(unfinished) - done, "hours_left": round(left, 2)}), flush=True)


def finished(file: Path, settings: RunSettings, start: dict[str, float]) -> bool:
    """Whether a result is there.

    Raises:
        ValueError: it is that of other settings or of another warm start.
    """
    from benchmarks.run_inputs import check_same

    if not file.exists():
        return False
    result = json.loads(file.read_text())
    check_same(file, result["settings"], settings)
    if result["start"] != start:
        raise ValueError(f"{file}: began with another warm start than --assets has; choose another --out")
    return True


def folder_of(out: Path, point: Point, seed: int) -> Path:
    """Where a run of the point writes."""
    return out / point.task / point.name / f"seed_{seed}"


def main() -> None:
    """Parse the command line and run this worker's share."""
    parser = argparse.ArgumentParser(description="Run the grid on the search instrument.")
    parser.add_argument("--grid", type=Path, default=GRID)
    parser.add_argument("--assets", type=Path, required=True, help="folder with one folder a task, from prepare")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--points", nargs="+", help=f"only these, as --list names them; {BELOW}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0, help="fresh seeds for a confirmation")
    parser.add_argument("--shard", default="0/1", help="this worker's share, counted from 0: 0/2 or 1/2")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for all points: steps, samples, ..")
    parser.add_argument("--list", action="store_true", help="only list the points")
    arguments = parser.parse_args()
    os.nice(19 - os.nice(0))
    try:
        points = [p for task in arguments.tasks for p in chosen(read_points(arguments.grid, task), arguments.points)]
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        share, shares = map(int, arguments.shard.split("/"))
        todo = [(point, seed) for seed in seeds for point in points][share::shares]
        if arguments.list:
            print("\n".join(f"{p.task}/{p.name} seed {seed}" for p, seed in todo))
            return
        run_points(todo, arguments.assets, arguments.out, arguments.set)
    except (ValueError, OSError) as error:
        sys.exit(f"grid: {error}")


if __name__ == "__main__":
    main()
