"""Run points of the grid on the real stack: verl, vLLM, Ray and FSDP on a CPU, many runs on one set of processes.

    python -m benchmarks.real_stack --assets data/benchmarks --out runs/real --tasks countdown \\
        --points grpo lookahead_age/64 snapshot/8 replay/6 masked/64 --seeds 5 --set steps=200 samples=16

Tasks, models and points are those of the search instrument. A run is a run of the recipe, in OUT/TASK/POINT/seed_N;
one that has finished is skipped, one that was interrupted goes on from its last checkpoint. Two to three seconds a step
on 2 cores. Writes a `result.json` a run, as `benchmarks.simulate` does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from benchmarks.grid import BELOW, GRID, NEIGHBOR, Point, chosen, folder_of, read_points, settings_of
from benchmarks.neighbors import NAMES
from benchmarks.run_inputs import Assets, RunSettings, check_same
from benchmarks.sampling import summarize
from benchmarks.simulate import DECODED, RESULT, assignments, curve, summary
from benchmarks.tasks import TASKS
from recipe.soup.main_series import compose
from soup_verl.launch.series import run_series
from soup_verl.method.sections import SQUARED_LOSSES
from soup_verl.records import run_log
from soup_verl.records.files import read_json_lines, write_json
from soup_verl.records.settings import flatten

INSTRUMENT = "real stack (verl, vLLM, Ray, FSDP on a CPU)"
REWARDS = "pkg://benchmarks.domains"
VALIDATION, SETTINGS = "validation", "settings.json"
LONGEST_PROMPT = max(task.max_prompt_tokens for task in TASKS.values())


def overrides(assets: Assets, settings: RunSettings, folder: Path) -> list[str]:
    """A run's settings in verl's names."""
    loss, response = settings.loss, assets.response_length
    given = {
        "platform": "cpu",
        "trainer.default_local_dir": folder,
        "trainer.validation_data_dir": folder / VALIDATION,
        "trainer.total_training_steps": settings.steps,
        "trainer.total_epochs": 10_000,
        "trainer.val_before_train": False,
        "trainer.test_freq": settings.evaluate_every,
        "trainer.save_freq": 100,
        "trainer.max_actor_ckpt_to_keep": 1,
        "data.train_files": assets.folder / "train.parquet",
        "data.val_files": assets.folder / "val.parquet",
        "data.train_batch_size": settings.prompts,
        "data.max_prompt_length": LONGEST_PROMPT,
        "data.max_response_length": response,
        "data.seed": settings.seed,
        "actor_rollout_ref.model.path": assets.folder / "model",
        "actor_rollout_ref.actor.optim.lr": settings.lr,
        "actor_rollout_ref.actor.optim.weight_decay": settings.weight_decay,
        "actor_rollout_ref.actor.ppo_mini_batch_size": settings.prompts // settings.mini_batches,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": settings.prompts
        * settings.trained
        // settings.mini_batches,
        "actor_rollout_ref.actor.use_kl_loss": loss.kl_loss_coef > 0,
        "actor_rollout_ref.actor.kl_loss_coef": loss.kl_loss_coef,
        "actor_rollout_ref.rollout.n": settings.n,
        "actor_rollout_ref.rollout.temperature": settings.temperature,
        "actor_rollout_ref.rollout.max_model_len": LONGEST_PROMPT + response,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": settings.prompts * settings.trained,
        "actor_rollout_ref.rollout.val_kwargs.n": settings.samples,
        "actor_rollout_ref.rollout.val_kwargs.temperature": 1.0,
        "actor_rollout_ref.rollout.val_kwargs.do_sample": True,
        "reward.custom_reward_function.path": REWARDS,
        "soup.seed": settings.seed,
        "soup.sampling_seed": settings.seed,
    }
    flat = flatten(asdict(settings))
    given |= {verls: flat[ours] for verls, ours in NAMES.items() if flat.get(ours) is not None}
    given |= _loss_of(settings.soup.get("policy_loss", {}).get("name")) | flatten({"soup": settings.soup})
    return [f"{key}={value}" for key, value in given.items()]


def _loss_of(name: str | None) -> dict[str, Any]:
    """What verl must be told where the loss is one of SOUP's own; see `recipe/soup/config/neighbors`."""
    given: dict[str, Any] = {} if name is None else {"actor_rollout_ref.actor.policy_loss.loss_mode": "soup"}
    if name in SQUARED_LOSSES:
        given["actor_rollout_ref.actor.loss_agg_mode"] = "seq-mean-token-sum"
        given["algorithm.rollout_correction.bypass_mode"] = name == "oapl"
    return given


def claim(folder: Path, settings: RunSettings) -> None:
    """Write down what a run is made with, or compare it: an unfinished one goes on only as itself.

    Raises:
        ValueError: the folder has a run with other settings.
    """
    file = folder / SETTINGS
    if file.exists():
        check_same(file, json.loads(file.read_text()), settings)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(settings))


def write_result(assets: Assets, settings: RunSettings, point: Point, folder: Path) -> dict[str, Any]:
    """What the run's log and validation samples say, in the form of the search instrument."""
    log = run_log.read(folder)
    history = [data | {DECODED: decoded(data)} for data in log.values()]
    result = {
        "instrument": INSTRUMENT,
        "task": assets.task,
        **point.label,
        "seed": settings.seed,
        "settings": asdict(settings),
        "start": assets.start,
        "checkpoints": [{"step": step} | validation(folder, step, log) for step in validated(folder)],
        "decode_tokens": sum(data[DECODED] for data in history),
        "seconds": sum(data["timing_s/step"] for data in history),
        **summary(history),
        "curve": curve(history),
    }
    write_json(folder / RESULT, result)
    return result


def validated(folder: Path) -> list[int]:
    """Steps after which the validation questions were answered."""
    return sorted(int(file.stem) for file in (folder / VALIDATION).glob("*.jsonl"))


def validation(folder: Path, step: int, log: dict[int, dict[str, float]]) -> dict[str, float]:
    """pass@k and distinct answers; `entropy` is that of the step's training responses, under the policy before it."""
    answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for _, answer in read_json_lines(folder / VALIDATION / f"{step}.jsonl"):
        answers[answer["input"]].append(answer)
    valid = [[a["acc"] == 1.0 for a in of_question] for of_question in answers.values()]
    spelled = [[str(a["pred"]) for a in of_question] for of_question in answers.values()]
    return summarize(valid, spelled) | {"entropy": log[step]["actor/entropy"]}


def decoded(data: dict[str, float]) -> float:
    """Response tokens that had to be decoded for a step; without mixing all of them."""
    segments = ("prefix", "continuation", "onpolicy")
    every = sum(data.get(f"soup/{segment}_tokens_total", 0.0) for segment in segments)
    return data.get(DECODED, every)


def main() -> None:
    """Parse the command line and train what is not finished."""
    parser = argparse.ArgumentParser(description="Run points of the grid on the real stack.")
    parser.add_argument("--grid", type=Path, default=GRID)
    parser.add_argument("--assets", type=Path, required=True, help="folder with one folder a task, from prepare")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--points", nargs="+", help=f"only these, as `benchmarks.grid --list` names them; {BELOW}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for all points: steps, samples, ..")
    arguments = parser.parse_args()
    try:
        for task in arguments.tasks:
            _run_task(task, arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"real_stack: {error}")


def _run_task(task: str, arguments: argparse.Namespace) -> None:
    assets = Assets.read(arguments.assets / task)
    points = chosen(read_points(arguments.grid, task), arguments.points)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    todo = [(point, settings_of(point, seed, assignments(arguments.set))) for seed in seeds for point in points]
    folders = [folder_of(arguments.out, point, settings.seed) for point, settings in todo]
    for (_, settings), folder in zip(todo, folders, strict=True):
        claim(folder, settings)
    configs = [_config(assets, *one, folder) for one, folder in zip(todo, folders, strict=True)]
    run_series(configs)
    for (point, settings), folder in zip(todo, folders, strict=True):
        write_result(assets, settings, point, folder)


def _config(assets: Assets, point: Point, settings: RunSettings, folder: Path) -> DictConfig:
    """A neighbour's own file first: it has keys that change nothing on the search instrument."""
    file = [f"neighbors={point.method.removeprefix(NEIGHBOR)}"] if point.method.startswith(NEIGHBOR) else []
    return compose(file + overrides(assets, settings, folder))


if __name__ == "__main__":
    main()
