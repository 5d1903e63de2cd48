"""The command line of `soup_verl.evaluate`: its options, and what can be wrong with them."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soup_verl.evaluation import EvaluationError
from soup_verl.evaluation.engine import DEVICES, DTYPES
from soup_verl.evaluation.scoring import DEFAULT
from soup_verl.method.estimators import powers_of_two
from soup_verl.tasks.command_line import Parser
from soup_verl.tasks.reward_function import FUNCTION


def _token_range(text: str) -> list[int]:
    low, _, high = text.partition(":")
    return [int(low), int(high)]


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


def _keyword(text: str) -> tuple[str, Any]:
    """The value is read as on a run's command line: true, null, numbers and [lists] are themselves, the rest text."""
    import yaml

    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise ValueError(text)
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        return name, value


def parse_args(argv: Sequence[str] | None, description: str) -> argparse.Namespace:
    """Read the command line; what cannot be read is one line on stderr and exit code 2."""
    parser = Parser(prog="python -m soup_verl.evaluate", description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--model", required=True, metavar="MODEL", help="model folder, hub name, or verl checkpoint (global_step_N)")
    add("--data", required=True, type=Path, nargs="+", metavar="FILE", help="verl's .parquet, .json or .jsonl files")
    add("--max-tokens", required=True, type=int, metavar="N", help="budget of a response, prefix included")
    add("--out", required=True, type=Path, metavar="DIR", help="samples and results; goes on where it stands")
    add("--n", type=int, default=32, metavar="N", help="samples a problem (32); may be raised later")
    add("--temperature", type=float, default=0.6, metavar="T", help="0.6")
    add("--top-p", type=float, default=0.95, metavar="P", help="0.95")
    add("--k", type=int, nargs="+", metavar="K", help="of pass@k and maj@k (1, 2, 4 .. n)")
    add("--seed", type=int, default=0, metavar="N", help="of every sample and interval (0)")
    add("--historical", nargs="+", default=[], metavar="CKPT", help="SOUP inference: prefixes come from these in turn")
    add("--prefix-tokens", type=_token_range, metavar="LOW:HIGH", help="length of those prefixes, uniform")
    add(
        "--reward",
        default=DEFAULT,
        metavar="FILE.py[:FUNCTION]",
        help=f"or pkg://MODULE[:FUNCTION]; FUNCTION is {FUNCTION} if not given ({DEFAULT})",
    )
    add(
        "--reward-kwargs",
        type=_keyword,
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="keywords of that function, as reward.custom_reward_function.reward_kwargs of a run",
    )
    add(
        "--chat-template-args", type=_json_object, default={}, metavar="JSON", help="as data.apply_chat_template_kwargs"
    )
    add("--device", choices=DEVICES, default="auto", help="auto: what the installed vLLM runs on")
    add("--gpus", type=int, default=1, metavar="N", help="tensor-parallel size (1)")
    add("--dtype", choices=DTYPES, default="auto", help="auto: float32 on a CPU, bfloat16 on a GPU")
    return parser.parse_args(argv)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Ranges, and options that need each other; fills in the default of `--k`, and makes `--reward-kwargs` a dict.

    Raises:
        EvaluationError: names the option.
    """
    n, ks = arguments.n, arguments.k
    _require(1 <= n <= 1000, "--n", n, "1 to 1000")
    _require(0 <= arguments.temperature < math.inf, "--temperature", arguments.temperature, "0 or more")
    _require(arguments.temperature > 0 or n == 1, "--n", n, "1 at temperature 0, where all samples are the same")
    _require(0 < arguments.top_p <= 1, "--top-p", arguments.top_p, "above 0 and at most 1")
    _require(arguments.max_tokens >= 1, "--max-tokens", arguments.max_tokens, "1 or more")
    _require(arguments.gpus >= 1, "--gpus", arguments.gpus, "1 or more")
    _require(all(1 <= k <= n for k in ks or [1]), "--k", ks, f"values from 1 to --n={n}")
    arguments.k = sorted(set(ks)) if ks else powers_of_two(n)
    both = bool(arguments.historical) == bool(arguments.prefix_tokens)
    _require(both, "--prefix-tokens", arguments.prefix_tokens, "to be given together with --historical")
    if arguments.prefix_tokens:
        low, high = arguments.prefix_tokens
        shown = f"{low}:{high}"
        _require(1 <= low <= high < arguments.max_tokens, "--prefix-tokens", shown, "1 <= LOW <= HIGH < --max-tokens")
    names = [name for name, _ in arguments.reward_kwargs]
    again = [name for name in names if names.count(name) > 1]
    _require(not again, "--reward-kwargs", again[:1], "each keyword once")
    arguments.reward_kwargs = dict(arguments.reward_kwargs)
    twice = [name for name in arguments.historical if arguments.historical.count(name) > 1]
    _require(not twice, "--historical", twice[:1], "each checkpoint once")


def _require(ok: bool, option: str, value: Any, expected: str) -> None:
    if not ok:
        raise EvaluationError(f"{option}={value}: expected {expected}")
