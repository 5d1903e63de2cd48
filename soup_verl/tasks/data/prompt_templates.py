"""From a question to the chat messages a model is asked with, and how many tokens they come to.

A template is a function from the question and its domain's instruction to messages; what they look like as text is the
tokenizer's chat template.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from soup_verl.tasks.data.layouts import DataError

Chat = list[dict[str, str]]


class Instruction(NamedTuple):
    """What is asked for beside the question; "" for nothing. `brief`: the same for small models."""

    full: str
    brief: str


Template = Callable[[str, Instruction], Chat]

STEP_BY_STEP = r"Please reason step by step, and put your final answer within \boxed{}."
BRIEF = r"Put the answer in \boxed{}."
BOXED = Instruction(STEP_BY_STEP, BRIEF)


def qwen_math(question: str, instruction: Instruction = BOXED) -> Chat:
    """Qwen2.5-Math: the instruction is the system turn, the question alone the user's."""
    system = [{"role": "system", "content": instruction.full}] if instruction.full else []
    return [*system, {"role": "user", "content": question}]


def r1_distill(question: str, instruction: Instruction = BOXED) -> Chat:
    """DeepSeek-R1 and its distillations: no system turn; their own chat template opens the `<think>`."""
    return [{"role": "user", "content": _below(question, instruction.full)}]


def tiny(question: str, instruction: Instruction = BOXED) -> Chat:
    """Small models: one short sentence after the question."""
    return [{"role": "user", "content": _below(question, instruction.brief)}]


def _below(question: str, sentence: str) -> str:
    return f"{question}\n{sentence}" if sentence else question


TEMPLATES: dict[str, Template] = {"qwen-math": qwen_math, "r1-distill": r1_distill, "tiny": tiny}


def find_template(name: str) -> Template:
    """The template of this name.

    Raises:
        DataError: lists the names there are.
    """
    if name not in TEMPLATES:
        raise DataError(f"--template={name!r}: expected one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def prompt_tokens(tokenizer: Any, chats: Iterable[Chat], *, batch: int = 1024) -> list[int]:
    """Tokens of each chat as the model will see it, with the opening of its answer; encoded `batch` at a time."""
    lengths: list[int] = []
    chats = iter(chats)
    while block := list(itertools.islice(chats, batch)):
        texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in block]
        # The template has written the special tokens already.
        lengths += map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])
    return lengths
