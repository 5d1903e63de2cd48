"""A model between two: python -m soup_verl.evaluation.average --model A --with B --weight 0.5 --out DIR

    theta = (1 - weight) A + weight B, in float32, stored in A's precision; weight 0 is A and 1 is B, bit for bit

WiSE-FT (arXiv 2504.10478; its abstract only was at hand) averages a model with an early checkpoint of its training: the
cheap baseline for what history gives to pass@k. A and B are what `soup_verl.evaluate` takes as `--model`; verl's
checkpoints are merged as it does, in bfloat16.

    A's shards   read, averaged with B's and written a piece at a time, whatever the size of the model; A's layout
    A's text     copied: configuration, generation_config.json, tokenizer, chat template, index of the shards
    average.json what was averaged
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from soup_verl.evaluation import EvaluationError
from soup_verl.evaluation.checkpoints import resolve
from soup_verl.records.files import new_folder, write_json
from soup_verl.tasks.command_line import Parser
from soup_verl.tasks.shrink_model import TEXT, WEIGHTS

INDEX = f"{WEIGHTS}.index.json"
RECORD = "average.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""By safetensors' names: what can be averaged."""
PIECE = 1 << 20  # elements; a dozen MiB while they are averaged
_LENGTH = 8  # bytes at the head of a file, the length of its header


@dataclass(frozen=True)
class Stored:
    """Where a tensor stands.

    Args:
        file: of safetensors.
        dtype: safetensors' name.
        shape: sizes.
        begin, end: bytes from the start of the file.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Shard:
    """A file of safetensors, without its numbers.

    Args:
        file: its path.
        head: its first bytes, up to where the numbers begin.
        tensors: by name, in the order of their numbers.
    """

    file: Path
    head: bytes
    tensors: dict[str, Stored]

    @classmethod
    def read(cls, file: Path, what: str) -> Shard:
        """
        Args:
            what: whose file it is, for messages.

        Raises:
            EvaluationError: it is not there, torn, or not of safetensors.
        """
        try:
            with file.open("rb") as stream:
                head = stream.read(_LENGTH)
                head += stream.read(min(int.from_bytes(head, "little"), file.stat().st_size))
            header = json.loads(head[_LENGTH:])
            header.pop("__metadata__", None)
            found = [cls._stored(file, len(head), name, entry) for name, entry in header.items()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(f"{what}: {file} is no readable file of safetensors ({error})") from None
        end = max((stored.end for _, stored in found), default=len(head))
        if file.stat().st_size != end:
            raise EvaluationError(f"{what}: {file} has {file.stat().st_size} bytes, expected {end}: it is not whole")
        return cls(file, head, dict(sorted(found, key=lambda item: item[1].begin)))

    @staticmethod
    def _stored(file: Path, start: int, name: str, entry: Mapping[str, Any]) -> tuple[str, Stored]:
        begin, end = entry["data_offsets"]
        return name, Stored(file, entry["dtype"], tuple(entry["shape"]), start + begin, start + end)


def shards(model: Path, what: str) -> list[Shard]:
    """The files that hold the model's weights.

    Args:
        model: its folder.
        what: whose it is, for messages.

    Raises:
        EvaluationError: there are none, or they are not what the index says.
    """
    if not (model / INDEX).is_file():
        if not (model / WEIGHTS).is_file():
            raise EvaluationError(f"{what}: {model} has neither {WEIGHTS} nor {INDEX}; other formats are not read")
        return [Shard.read(model / WEIGHTS, what)]
    try:
        places: dict[str, str] = json.loads((model / INDEX).read_text())["weight_map"]
        names = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(f"{what}: {model / INDEX} is no readable index ({error})") from None
    found = [Shard.read(model / name, what) for name in names]
    if {tensor: shard.file.name for shard in found for tensor in shard.tensors} != places:
        raise EvaluationError(f"{what}: the shards in {model} do not hold what {INDEX} says")
    return found


def check_alike(a: Mapping[str, Stored], b: Mapping[str, Stored]) -> None:
    """Every tensor of one is there in the other, with its shape, and can be averaged.

    Raises:
        EvaluationError: names the first that is not so.
    """
    for one, other, option in ((a, b, "--with"), (b, a, "--model")):
        if missing := sorted(one.keys() - other.keys()):
            raise EvaluationError(f"{option} has no {missing[0]} ({len(missing)} such of {len(one)}): another model")
    for name, stored in a.items():
        if stored.shape != b[name].shape:
            raise EvaluationError(
                f"{name} has shape {list(stored.shape)} in --model and {list(b[name].shape)} in --with: another model"
            )
        for option, dtype in (("--model", stored.dtype), ("--with", b[name].dtype)):
            if dtype not in DTYPES:
                raise EvaluationError(f"{name} is {dtype} in {option}: expected one of {', '.join(DTYPES)}")


def average(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """(1 - weight) a + weight b in float32, as `a`'s dtype; `a` itself at weight 0, `b` at weight 1."""
    if weight == 0:
        return a
    if weight == 1:
        return b.to(a.dtype)
    return a.float().mul(1 - weight).add_(b.float(), alpha=weight).to(a.dtype)


def write_average(model: Path, other: Path, out: Path, *, weight: float, names: tuple[str, str]) -> int:
    """Make the folder `out`; returns the number of parameters.

    Args:
        model, other: folders of models, A and B.
        weight: of `other`, 0 to 1.
        names: of the two as the user gave them, for the record.

    Raises:
        EvaluationError: `out` exists, the weights cannot be read or are not alike, or a value is not finite.
    """
    if not 0 <= weight <= 1:
        raise EvaluationError(f"--weight={weight}: expected 0 (--model alone) to 1 (--with alone)")
    if out.exists():
        raise EvaluationError(f"--out={out}: exists; remove it or choose another")
    own = shards(model, f"--model={names[0]}")
    others = {name: stored for shard in shards(other, f"--with={names[1]}") for name, stored in shard.tensors.items()}
    check_alike({name: stored for shard in own for name, stored in shard.tensors.items()}, others)
    with new_folder(out) as folder:
        for file in model.iterdir():
            if file.suffix in TEXT and file.is_file():
                shutil.copyfile(file, folder / file.name)
        write_json(folder / RECORD, {"model": names[0], "with": names[1], "weight": weight})
        return sum(_write_shard(shard, others, folder / shard.file.name, weight) for shard in own)


def _write_shard(shard: Shard, others: Mapping[str, Stored], target: Path, weight: float) -> int:
    """A shard of A's layout; returns the number of parameters in it."""
    parameters = 0
    with target.open("wb") as out:
        out.write(shard.head)
        for name, stored in shard.tensors.items():
            out.seek(stored.begin)
            parameters += _write_tensor(out, name, stored, others[name], weight)
    return parameters


def _write_tensor(out: BinaryIO, name: str, a: Stored, b: Stored, weight: float) -> int:
    count = (a.end - a.begin) // DTYPES[a.dtype].itemsize
    with a.file.open("rb") as file_of_a, b.file.open("rb") as file_of_b:
        file_of_a.seek(a.begin)
        file_of_b.seek(b.begin)
        for start in range(0, count, PIECE):
            length = min(PIECE, count - start)
            one, other = _numbers(file_of_a, a.dtype, length), _numbers(file_of_b, b.dtype, length)
            mean = average(one, other, weight)
            if not mean.isfinite().all():
                raise EvaluationError(f"{name}: values that are not finite, of a model or of the average as {a.dtype}")
            out.write(mean.view(torch.uint8).numpy().data)
    return count


def _numbers(file: BinaryIO, dtype: str, count: int) -> Tensor:
    """The next `count` numbers of a file; (count,)."""
    content = bytearray(count * DTYPES[dtype].itemsize)
    read = file.readinto(content)  # type: ignore[attr-defined]
    assert read == len(content), "a file that got shorter"
    return torch.frombuffer(content, dtype=DTYPES[dtype])


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 after one line on stderr."""
    parser = Parser(
        prog="python -m soup_verl.evaluation.average",
        description="Average the weights of two models, for soup_verl.evaluate.",
    )
    add = parser.add_argument
    add("--model", required=True, metavar="A", help="model folder, hub name, or verl checkpoint (global_step_N)")
    add("--with", required=True, metavar="B", dest="other", help="another of the same shape, such as an early one")
    add("--weight", type=float, default=0.5, metavar="W", help="of B, 0 to 1 (0.5)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    arguments = parser.parse_args(argv)
    merged = arguments.out.absolute().parent / "merged_checkpoints"  # where an evaluation beside it looks too
    find = partial(resolve, merged=merged, announce=partial(print, file=sys.stderr))
    try:
        model, other = find(arguments.model, option="--model"), find(arguments.other, option="--with")
        names = (arguments.model, arguments.other)
        parameters = write_average(model, other, arguments.out, weight=arguments.weight, names=names)
    except (EvaluationError, OSError) as error:
        sys.stderr.write(" ".join(f"error: {error}".split()) + "\n")
        return 1
    sys.stdout.write(f"wrote {arguments.out}: {parameters:,} parameters\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
