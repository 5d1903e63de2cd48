r"""Calls a reward function on the golds of rows, in a process of its own that may be killed at any time:

    python -m soup_verl.tasks.golds REQUEST RESULTS

REQUEST is a JSON file, see `Request`. RESULTS gets JSON lines: `{"loaded": true}` or `{"failed": why}` first; then, of
each row by its place in the request, `{"begun": i}` and `{"done": i, "right": bool, "error": ""}`. It ends when all are
done, or after so many seconds since the function was loaded.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from soup_verl.tasks.domains import domain_of
from soup_verl.tasks.reward_function import Reward, call, is_ours, load_module


@dataclass(frozen=True)
class Request:
    """What to call on what.

    Args:
        path, name: as in `reward.custom_reward_function`; without a path verl's own function.
        keywords: `reward_kwargs`.
        seconds: that all rows together may take.
        rows: `data_source`, `gold` and `extra` of each.
    """

    path: str | None
    name: str
    keywords: Mapping[str, Any]
    seconds: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self), default=str))


class MissingFunction(LookupError):
    """What is expected of a name that is not there."""


def load(path: str | None, name: str) -> Reward:
    """As verl does.

    Raises:
        MissingFunction: the module has no such function; names those it has.
        Exception: whatever the module raises while it is imported.
    """
    if path is None:
        from verl.utils.reward_score import default_compute_score

        return default_compute_score
    module = load_module(path)
    function = getattr(module, name, None)
    if not callable(function):
        own = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_") and not isinstance(v, type)]
        raise MissingFunction(f"a function of {path}; it has {', '.join(own[:8]) or 'none'}")
    return function


def responses(gold: Any) -> Iterator[str]:
    """Right answers to the row, as functions like to have them."""
    text = str(gold)
    yield f"<answer>{text}</answer>\n#### {text}\nAnswer: {text}\n" + (
        text if r"\boxed" in text else rf"\boxed{{{text}}}"
    )
    yield text


def right_answers(row: Mapping[str, Any]) -> list[str]:
    """Those that the row's domain makes up. Raises ValueError of a broken row."""
    domain = domain_of(row["extra"])
    domain.check_row(str(row["data_source"]), row["gold"], row["extra"])
    return list(domain.right_answers(row["gold"], row["extra"]))


def verdict(function: Reward, row: Mapping[str, Any], keywords: Mapping[str, Any], *, ours: bool) -> tuple[bool, str]:
    """Whether the function takes the row's gold for right; and why it gave no number, or "". A row of ours whose domain
    makes up no answer is only checked."""
    extra = {**(row["extra"] or {}), "num_turns": 2, "rollout_reward_scores": {}}  # as verl's reward managers add
    try:
        tried = right_answers(row) if ours else responses(row["gold"])
        for response in tried:
            fields = call(
                function,
                data_source=row["data_source"],
                response=response,
                gold=row["gold"],
                extra=extra,
                keywords=keywords,
            )
            if fields["correct"]:
                return True, ""
        return tried == [], ""
    except BaseException as error:  # it is the user's: it may even exit
        return False, f"{type(error).__name__}: {error}"[:400]


def main(request_file: str, results_file: str) -> None:
    request = Request(**json.loads(Path(request_file).read_text()))
    with Path(results_file).open("w", buffering=1) as results:
        answer(request, lambda **fields: results.write(json.dumps(fields) + "\n"))
        results.flush()
        os._exit(0)  # whatever a function still does; the checker's processes end with this one


def answer(request: Request, write: Callable[..., Any]) -> None:
    """Say what the module's docstring says that is said, until all is done or time is over."""
    try:
        function = load(request.path, request.name)
    except BaseException as error:  # a module may do whatever it likes while it is imported
        missing = isinstance(error, MissingFunction)
        write(failed=(str(error) if missing else f"{type(error).__name__}: {error}")[:400], missing=missing)
        return
    write(loaded=True)
    loaded, lock = time.monotonic(), threading.Lock()
    ours, todo = is_ours(request.path, request.name), iter(enumerate(request.rows))

    def work() -> None:
        while True:
            with lock:
                i, row = next(todo, (None, {}))
                if i is None:
                    return
                write(begun=i, at=time.monotonic() - loaded)
            right, error = verdict(function, row, request.keywords, ours=ours)
            with lock:
                write(done=i, right=right, error=error)

    # Ours waits for processes of its own. A user's may hold the interpreter, and a row beside it would be blamed.
    workers = os.cpu_count() or 1 if ours else 1
    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, loaded + request.seconds - time.monotonic()))


if __name__ == "__main__":
    main(*sys.argv[1:])
