"""Evaluate a model or a checkpoint: python -m soup_verl.evaluate --model M --data FILE... --max-tokens N --out DIR

    problems ──► [prefixes from --historical ──► prefixes.jsonl] ──► responses ──► unscored.jsonl
             ──► scores ──► samples.jsonl
             ──► avg@n, pass@k, maj@k with intervals: a table, results.json, pass_at_k.png

Killed at any moment, the same command goes on where it stood. docs/evaluate.md says what each number means.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from soup_verl.evaluation import EvaluationError, checkpoints, engine, samples, scoring
from soup_verl.evaluation.command_line import check_arguments, parse_args
from soup_verl.evaluation.engine import EngineSettings, Request, Response
from soup_verl.evaluation.figure import plot_pass_at_k
from soup_verl.evaluation.problems import (
    Problem,
    digest,
    prompt_ids,
    read_problems,
    repeated,
)
from soup_verl.evaluation.results import as_table, summarize
from soup_verl.evaluation.samples import Key, SampleFile, key_of
from soup_verl.evaluation.soup_inference import planned_length, planned_policy, prefix_row
from soup_verl.method.mixing import stable_seed
from soup_verl.records.files import write_json
from soup_verl.tasks.chat_template import load_tokenizer, stop_token_ids

SCORED_AT_ONCE = 256  # responses; a kill costs their scores


@dataclass(frozen=True)
class Job:
    """All that the sampling needs.

    Args:
        arguments: the command line's.
        problems: (file, row) -> problem, in the files' order.
        prompts: (file, row) -> token ids.
        model: folder of the main model.
        historical: name as given -> folder of an earlier model.
        tokenizer: the main model's.
        engine: of the main model.
        reward: the reward function.
        progress: where the samples are counted.
    """

    arguments: argparse.Namespace
    problems: dict[tuple[str, int], Problem]
    prompts: dict[tuple[str, int], list[int]]
    model: Path
    historical: dict[str, Path]
    tokenizer: Any
    engine: EngineSettings
    reward: scoring.Reward
    progress: Progress

    def all_keys(self) -> list[Key]:
        """Every sample, session by session: what is there after a kill is spread over all problems."""
        return [(*problem, session) for session in range(self.arguments.n) for problem in self.problems]


def evaluate(arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Sample what is missing in `--out` and write the results; returns them.

    Raises:
        EvaluationError: something cannot work; what was sampled stays.
    """
    check_arguments(arguments)
    reward, reward_identity = scoring.load_reward(arguments.reward, arguments.reward_kwargs)
    device = engine.choose_device(arguments.device, arguments.gpus)
    problems = read_problems(arguments.data)
    if again := repeated(problems):
        progress.console.print(
            f"warning: {len(again)} of {len(problems)} rows repeat an earlier one (first: row {again[0].index} of "
            f"{again[0].file}). Each counts as a problem of its own, so the intervals are too narrow.",
            markup=False,
        )
    scoring.try_out(reward, problems)
    with samples.claim(arguments.out):
        job = _prepare(arguments, device, reward, problems, progress)
        samples.bind(arguments.out, _settings(job, reward_identity))
        prefixes = sample_prefixes(job) if job.historical else {}
        rows = sample_responses(job, prefixes)
        return _write_results(job, rows)


def _prepare(
    arguments: argparse.Namespace, device: str, reward: scoring.Reward, problems: list[Problem], progress: Progress
) -> Job:
    merged = arguments.out.absolute().parent / "merged_checkpoints"
    resolve = partial(checkpoints.resolve, merged=merged, announce=partial(progress.console.print, markup=False))
    model = resolve(arguments.model, option="--model")
    historical = {name: resolve(name, option="--historical") for name in arguments.historical}
    tokenizer = load_tokenizer(str(model), f"--model={arguments.model}", EvaluationError)
    for name, folder in historical.items():
        its = load_tokenizer(str(folder), f"--historical={name}", EvaluationError)
        if its.get_vocab() != tokenizer.get_vocab():
            raise EvaluationError(f"--historical={name}: another vocabulary than --model's, so its tokens mean others")
    prompts = {(p.file, p.index): prompt_ids(tokenizer, p, arguments.chat_template_args) for p in problems}
    longest = max(map(len, prompts.values())) + arguments.max_tokens
    for folder in (model, *historical.values()):  # each engine is made for sequences of this length
        checkpoints.check_window(folder, longest, f"--max-tokens={arguments.max_tokens}")
    settings = EngineSettings(
        model=model,
        device=device,
        dtype=_dtype(arguments.dtype, device),
        gpus=arguments.gpus,
        max_model_len=longest,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        log=arguments.out / "engine.log",
    )
    by_place = {(p.file, p.index): p for p in problems}
    return Job(arguments, by_place, prompts, model, historical, tokenizer, settings, reward, progress)


def _dtype(wanted: str, device: str) -> str:
    """What `auto` means: the precision that training samples in."""
    return {"cpu": "float32", "gpu": "bfloat16"}[device] if wanted == "auto" else wanted


def _settings(job: Job, reward_identity: str) -> dict[str, Any]:
    """What decides about a sample; not `--n`, so that more samples can be added later."""
    arguments = job.arguments
    keywords = {"reward_kwargs": arguments.reward_kwargs} if arguments.reward_kwargs else {}
    return keywords | {
        "model": _identity(arguments.model, job.model),
        "historical": [_identity(name, folder) for name, folder in job.historical.items()],
        "prefix_tokens": arguments.prefix_tokens,
        "data": {file.name: digest(file) for file in arguments.data},
        "chat_template_args": arguments.chat_template_args,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "max_tokens": arguments.max_tokens,
        "seed": arguments.seed,
        "reward": reward_identity,
        "dtype": job.engine.dtype,
        "vllm": engine.installed_vllm()[0],
    }


def _identity(name: str, folder: Path) -> list[str]:
    """A model's name, however its path was written, and what its files are."""
    given = Path(name).expanduser()
    return [str(given.absolute()) if given.exists() else name, checkpoints.fingerprint(checkpoints.model_files(folder))]


def sample_prefixes(job: Job) -> dict[Key, dict[str, Any]]:
    """The line of prefixes.jsonl of every sample; the missing are sampled, one historical model at a time."""
    arguments = job.arguments
    low, high = arguments.prefix_tokens
    ends = stop_token_ids(str(job.model), job.tokenizer)
    file = SampleFile(arguments.out / "prefixes.jsonl")
    for place, (name, folder) in enumerate(job.historical.items()):
        own = [key for key in job.all_keys() if planned_policy(arguments.seed, key, len(job.historical)) == place]
        wanted = {key: planned_length(arguments.seed, key, low, high) for key in own}
        requests = [
            Request(key, job.prompts[key[:2]], wanted[key], stable_seed("evaluation_prefix", arguments.seed, *key))
            for key in file.missing(own)
        ]
        settings = replace(job.engine, model=folder)
        with closing(_sample(job, settings, requests, len(own), f"prefixes of {_short(name)}")) as batches:
            for finished in batches:
                file.append(prefix_row(r, wanted=wanted[r.key], policy=name, end_tokens=ends) for r in finished)
    file.close()
    return file.rows


def sample_responses(job: Job, prefixes: dict[Key, dict[str, Any]]) -> list[dict[str, Any]]:
    """The line of samples.jsonl of every sample, without the response; the missing are sampled, then scored."""
    arguments, keys = job.arguments, job.all_keys()
    scored = SampleFile(arguments.out / samples.SCORED, on_disk=samples.RESPONSES)
    unscored = SampleFile(arguments.out / samples.UNSCORED, on_disk=samples.RESPONSES)
    requests = []
    for key in unscored.missing(scored.missing(keys)):
        head = prefixes[key]["prefix_ids"] if prefixes else []
        seed = stable_seed("evaluation_response", arguments.seed, *key)
        requests.append(Request(key, [*job.prompts[key[:2]], *head], arguments.max_tokens - len(head), seed))
    with closing(_sample(job, job.engine, requests, len(keys), "responses")) as batches:
        for finished in batches:
            unscored.append(response_row(response) for response in finished)
    _score(job, unscored, scored, prefixes)
    scored.close()
    unscored.close()
    unscored.path.unlink()  # samples.jsonl has it all
    return [scored.rows[key] for key in keys]


def _score(job: Job, unscored: SampleFile, scored: SampleFile, prefixes: dict[Key, dict[str, Any]]) -> None:
    """Score what is sampled and not scored, in the order it was sampled."""
    left = len(scored.missing(unscored.rows))
    task = job.progress.add_task("scores", total=len(unscored.rows), completed=len(unscored.rows) - left)
    todo = (row for row in unscored.read() if key_of(row) not in scored.rows)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while piece := list(itertools.islice(todo, SCORED_AT_ONCE)):
            scored.append(list(pool.map(lambda row: sample_row(job, row, prefixes), piece)))
            job.progress.advance(task, len(piece))


def response_row(response: Response) -> dict[str, Any]:
    """A line of unscored.jsonl: what the engine gave, behind the prefix if there is one."""
    file, index, session = response.key
    where = {"file": file, "index": index, "session": session}
    return where | {"token_ids": response.token_ids, "finish_reason": response.finish_reason}


def _sample(
    job: Job, settings: EngineSettings, requests: list[Request], of: int, what: str
) -> Generator[list[Response]]:
    """Responses as they finish, counted; close it to end the engine."""
    task = job.progress.add_task(what, total=of, completed=of - len(requests))
    if not requests:
        return
    with closing(engine.sample(settings, requests)) as batches:
        for finished in batches:
            yield finished
            job.progress.advance(task, len(finished))


def sample_row(job: Job, response: Mapping[str, Any], prefixes: dict[Key, dict[str, Any]]) -> dict[str, Any]:
    """A line of samples.jsonl: the whole response, prefix and continuation, and what the reward function says of it.

    Args:
        response: a line of unscored.jsonl.
    """
    file, index, session = key = key_of(response)
    prefix = prefixes.get(key, {"prefix_ids": [], "wanted": 0, "policy": None})
    ids = [*prefix["prefix_ids"], *response["token_ids"]]
    text = job.tokenizer.decode(ids, skip_special_tokens=True)  # as verl's reward managers read a response
    return {
        **scoring.score(job.reward, job.problems[file, index], text),
        "file": file,
        "index": index,
        "session": session,
        "prompt_tokens": len(job.prompts[file, index]),
        "response_ids": ids,
        "response": text,
        "response_length": len(ids),
        "finish_reason": response["finish_reason"],
        "prefix_length": len(prefix["prefix_ids"]),
        "prefix_wanted": prefix["wanted"],
        "prefix_policy": prefix["policy"],
    }


def _write_results(job: Job, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    arguments, out = job.arguments, job.arguments.out
    files = summarize(rows, ks=arguments.k, seed=arguments.seed)
    settings = json.loads((out / "settings.json").read_text())
    results = {"settings": settings | {"n": arguments.n, "device": job.engine.device}, "k": arguments.k, "files": files}
    write_json(out / "results.json", results)
    plot_pass_at_k(files, arguments.k, _title(arguments), out / "pass_at_k.png")
    return results


def _short(name: str) -> str:
    """The end of a path that tells checkpoints apart: RUN/global_step_N."""
    return "/".join(Path(name).parts[-2:])


def _title(arguments: argparse.Namespace) -> str:
    mixed = "" if not arguments.prefix_tokens else ", prefixes {}-{} tokens".format(*arguments.prefix_tokens)
    return (
        f"{_short(arguments.model)}, n = {arguments.n}, T = {arguments.temperature:g}, top-p {arguments.top_p:g}{mixed}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 after one line on stderr; 2 for a command line that cannot be read."""
    arguments = parse_args(argv, (__doc__ or "").splitlines()[0])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
            results = evaluate(arguments, progress)
    except (EvaluationError, OSError) as error:
        sys.stderr.write(" ".join(f"error: {error}".split()) + "\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted; the same command goes on where {arguments.out} stands\n")
        return 130
    # Where nobody sees a window's edge, a table may be as wide as it likes.
    console = Console() if sys.stdout.isatty() else Console(width=40 + 40 * len(results["files"]))
    console.print(as_table(results["files"]))
    console.print(f"{arguments.out}: results.json, pass_at_k.png, samples.jsonl", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
