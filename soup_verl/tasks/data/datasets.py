"""The data sets there are: where each lives on the hub, what it may be used for, and how its columns read.

A data set is one `DatasetSpec`; another one is one more entry of `DATASETS`. Rows arrive as plain mappings, from the
hub or from a file, and leave as `Problem`s. Only plain Python here: `files` reads, `cleaning` filters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from soup_verl.tasks.data.layouts import (
    DataError,
    Layout,
    after_hashes,
    as_texts,
    last_boxed,
    last_user_turn,
    member,
    own_index,
)


@dataclass(frozen=True)
class Problem:
    """One problem of a data set.

    Args:
        row: its number in the file or hub data set it came from, from 1.
        gold: the answer as the data set spells it; `alt_answers` are further spellings that are right too.
        tolerance: how far off, absolutely, a numeric answer may be; None: not at all.
        is_multiple_answer: the gold lists several values and all of them are asked for.
        unit: the unit the answer is in, not part of the gold.
        level: difficulty in the data set's own scale.
        domain: what it is judged as, a name of `domains.DOMAINS`.
        extra: further fields of `extra_info` that the domain reads.
    """

    row: int
    id: str
    question: str
    gold: str
    alt_answers: tuple[str, ...] = ()
    tolerance: float | None = None
    is_multiple_answer: bool = False
    unit: str | None = None
    level: int | None = None
    subject: str | None = None
    domain: str = "mathematics"
    extra: Mapping[str, Any] | None = None


# DAPO asks for a last line "Answer: ..."; the reward wants a box, so its instruction must go.
_DAPO_HEAD = re.compile(r"\ASolve the following math problem step by step\..*?is the answer to the problem\.\s+", re.S)
_DAPO_TAIL = re.compile(r"\s+Remember to put your answer on its own line after \"Answer:\"\.?\s*\Z")


def without_dapo_instruction(text: str) -> str:
    """The question alone. A text without the instruction is returned as it is.

    Raises:
        DataError: half of the instruction is there, so it is worded in a way we do not know.
    """
    text, heads = _DAPO_HEAD.subn("", text)
    text, tails = _DAPO_TAIL.subn("", text)
    if heads != tails:
        seen = "first" if heads else "last"
        raise DataError(f"{text[:60]!r}, expected DAPO's instruction before and after the question, not only {seen}")
    return text


_REST = ("alt_answers", "is_multiple_answer", "unit", "subject")
PLAIN = Layout(
    {"id": "id", "question": "question", "gold": "answer", "tolerance": "error", "level": "level"}
    | {name: name for name in _REST},
    required=("id", "question", "gold"),
)
PLAIN_BY_DIFFICULTY = Layout({**PLAIN.columns, "level": "difficulty"}, required=PLAIN.required)
PLAIN_CHOICE = Layout(
    {"id": "id", "question": "question", "options": "options", "gold": "answer", "subject": "subject"},
    required=("id", "question", "options", "gold"),
)
PLAIN_SUMMARY = Layout({"question": "document", "gold": "summary", "id": "id"})  # XSum's own


@dataclass(frozen=True)
class DatasetSpec:
    """One data set.

    Args:
        hub, config, split: what `datasets.load_dataset` takes.
        licence: of the texts, as their publisher states it.
        is_benchmark: for validation only: every row counts, so none is dropped for resembling another.
        layout: the hub's columns. A file may have the plain ones instead: id, question, answer and the optional rest.
        levels: lowest and highest level taken, both included; None: all, with or without a level.
        domain: whose `problems` reads the rows.
        made: the rows themselves, where they are made up on demand; `hub` then says by what.
        has_script: the hub has a program that makes the rows, which `datasets` no longer runs.
    """

    name: str
    hub: str
    split: str
    licence: str
    layout: Layout
    config: str | None = None
    is_benchmark: bool = False
    levels: tuple[int, int] | None = None
    domain: str = "mathematics"
    made: Iterator[tuple[int, dict[str, Any]]] | None = None
    has_script: bool = False


_DAPO = Layout(
    {"question": "prompt", "gold": "reward_model", "id": "extra_info"},
    {
        "question": lambda messages: without_dapo_instruction(last_user_turn(messages)),
        "gold": member("ground_truth"),
        "id": own_index,
    },
)
# Its system turn asks for a thought format of its own; only the question is taken.
_OPENR1 = Layout(
    {"question": "prompt", "gold": "reward_model"},
    {"question": last_user_turn, "gold": member("ground_truth")},
)
_MATH = Layout(
    {"question": "problem", "gold": "answer", "id": "unique_id", "level": "level", "subject": "subject"},
)
_GSM8K = Layout({"question": "question", "gold": "answer"}, {"gold": after_hashes})
_OLYMPIAD = Layout(
    {"question": "question", "gold": "final_answer", "id": "id", "tolerance": "error", "subject": "subfield"}
    | {name: name for name in ("is_multiple_answer", "unit")},
    {"gold": lambda answers: ",".join(as_texts(answers))},
)
_AIME24 = Layout({"question": "problem", "gold": "solution", "id": "id"}, {"gold": last_boxed})
_AIME25 = Layout({"question": "problem", "gold": "answer", "id": "id"})
_QUESTION_ANSWER = Layout({"question": "question", "gold": "answer", "id": "id"})
_MATHARENA = Layout(
    {"question": "problem", "gold": "answer", "id": "problem_idx", "subject": "problem_type"},
    {"subject": lambda types: ", ".join(as_texts(types))},
)
_WRONG = {f"wrong_{i}": f"Incorrect Answer {i}" for i in (1, 2, 3)}
# The right answer has a column of its own: `choice.problems` gives the options an order.
_GPQA = Layout(
    {"question": "Question", "right": "Correct Answer", **_WRONG, "id": "Record ID", "subject": "High-level domain"},
    required=("question", "right", *_WRONG),
)
_MMLU_PRO = Layout(
    {"question": "question", "options": "options", "gold": "answer", "id": "question_id", "subject": "category"},
    required=("question", "options", "gold"),
)
_ARC = Layout(
    {"question": "question", "options": "choices", "labels": "choices", "gold": "answerKey", "id": "id"},
    {"options": member("text"), "labels": member("label")},
    required=("question", "options", "labels", "gold"),
)

# Read by tasks/text/instructions.py; here are the columns to take.
_IFEVAL = Layout({"id": "key", "question": "prompt", "gold": "instruction_id_list", "kwargs": "kwargs"})
_IF_RLVR = Layout({"id": "key", "question": "messages", "gold": "ground_truth"})
_CNN = Layout({"question": "article", "gold": "highlights", "id": "id"})

_READ_BY_CODE = Layout({"question": "question", "gold": "tests"})  # `code/rows.py` knows the hubs' columns

_MAA = "texts: Mathematical Association of America"
_MATHARENA_LICENCE = "CC BY-NC-SA 4.0"
_SPECS = (
    DatasetSpec("dapo-math-17k", "BytedTsinghua-SIA/DAPO-Math-17k", "train", "Apache-2.0", _DAPO),
    DatasetSpec("openr1-math-46k", "Elliott/Openr1-Math-46k-8192", "train", "see its card", _OPENR1),
    # MATH less the 500 of MATH-500: 12,000 problems, of which about 8,000 are of level 3 to 5.
    DatasetSpec("math-level3-5", "nlile/hendrycks-MATH-benchmark", "train", "MIT", _MATH, levels=(3, 5)),
    DatasetSpec("gsm8k", "openai/gsm8k", "train", "MIT", _GSM8K, config="main"),
    DatasetSpec("math-500", "HuggingFaceH4/MATH-500", "test", "MIT", _MATH, is_benchmark=True),
    DatasetSpec("amc23", "math-ai/amc23", "test", _MAA, _QUESTION_ANSWER, is_benchmark=True),
    DatasetSpec("aime24", "math-ai/aime24", "test", _MAA, _AIME24, is_benchmark=True),
    DatasetSpec("aime25", "math-ai/aime25", "test", _MAA, _AIME25, is_benchmark=True),
    DatasetSpec("aime26", "math-ai/aime26", "test", _MAA, _AIME25, is_benchmark=True),
    # The only split of MathArena's data sets is called train.
    DatasetSpec("hmmt25-feb", "MathArena/hmmt_feb_2025", "train", _MATHARENA_LICENCE, _MATHARENA, is_benchmark=True),
    DatasetSpec("hmmt25-nov", "MathArena/hmmt_nov_2025", "train", _MATHARENA_LICENCE, _MATHARENA, is_benchmark=True),
    DatasetSpec("minerva", "math-ai/minervamath", "test", "see its card", _QUESTION_ANSWER, is_benchmark=True),
    DatasetSpec(
        "olympiadbench",
        "Hothan/OlympiadBench",
        "train",  # the only split it has
        "Apache-2.0",
        _OLYMPIAD,
        config="OE_TO_maths_en_COMP",
        is_benchmark=True,
    ),
    DatasetSpec("ifeval", "google/IFEval", "train", "Apache-2.0", _IFEVAL, is_benchmark=True, domain="instructions"),
    DatasetSpec(
        "if-rlvr", "allenai/IF_multi_constraints_upto5", "train", "ODC-BY-1.0", _IF_RLVR, domain="instructions"
    ),
    DatasetSpec("xsum", "EdinburghNLP/xsum", "train", "see its card", PLAIN_SUMMARY, domain="summaries"),
    DatasetSpec(
        "xsum-validation",
        "EdinburghNLP/xsum",
        "validation",
        "see its card",
        PLAIN_SUMMARY,
        is_benchmark=True,
        domain="summaries",
    ),
    DatasetSpec(
        "cnn-dailymail", "abisee/cnn_dailymail", "train", "Apache-2.0", _CNN, config="3.0.0", domain="summaries"
    ),
    DatasetSpec("gsm8k-test", "openai/gsm8k", "test", "MIT", _GSM8K, config="main", is_benchmark=True),
    DatasetSpec(
        "gpqa-diamond",
        "Idavidrein/gpqa",
        "train",  # the only split it has
        "CC BY 4.0; its authors ask not to publish questions; the hub asks for a login",
        _GPQA,
        config="gpqa_diamond",
        is_benchmark=True,
        domain="choice",
    ),
    DatasetSpec("mmlu-pro", "TIGER-Lab/MMLU-Pro", "test", "MIT", _MMLU_PRO, is_benchmark=True, domain="choice"),
    DatasetSpec(
        "arc-c",
        "allenai/ai2_arc",
        "test",
        "CC BY-SA 4.0",
        _ARC,
        config="ARC-Challenge",
        is_benchmark=True,
        domain="choice",
    ),
    *(
        DatasetSpec(
            name,
            hub,
            split,
            licence,
            _READ_BY_CODE,
            config,
            is_benchmark=split == "test",
            domain="code",
            has_script=name == "livecodebench",
        )
        for name, hub, config, split, licence in (
            ("mbpp", "google-research-datasets/mbpp", "full", "train", "CC-BY-4.0"),
            ("mbpp-test", "google-research-datasets/mbpp", "full", "test", "CC-BY-4.0"),
            ("mbpp-plus", "evalplus/mbppplus", None, "test", "Apache-2.0"),
            ("humaneval-plus", "evalplus/humanevalplus", None, "test", "Apache-2.0"),
            ("deepcoder", "agentica-org/DeepCoder-Preview-Dataset", "primeintellect", "train", "MIT"),
            ("livecodebench", "livecodebench/code_generation_lite", "release_v5", "test", "see its card"),
        )
    ),
)
DATASETS = {spec.name: spec for spec in _SPECS}
assert len(DATASETS) == len(_SPECS), "two data sets of one name"


def find_dataset(name: str) -> DatasetSpec:
    """The data set of this name.

    Raises:
        DataError: lists the names there are.
    """
    if name not in DATASETS:
        raise DataError(f"--dataset={name!r}: expected one of {', '.join(DATASETS)}, reasoning-gym:NAME")
    return DATASETS[name]


def choose_layout(spec: DatasetSpec, columns: Iterable[str], plain: Layout = PLAIN) -> Layout:
    """The plain layout where its columns are there, else the hub's.

    Raises:
        DataError: neither fits, or a column says that the rows are of another kind; names the columns found and those
            expected.
    """
    found = list(columns)
    if plain is PLAIN and (options := {"options", "choices"} & set(found)):
        others = ", ".join(name for name, other in DATASETS.items() if other.domain == "choice")
        raise DataError(
            f"the column {min(options)!r} is one of multiple choice, and {spec.name} is {spec.domain}: expected rows "
            f"without it, or one of {others}"
        )
    if set(plain.required_columns) <= set(found):
        return plain if plain is not PLAIN or "level" in found else PLAIN_BY_DIFFICULTY
    if set(spec.layout.required_columns) <= set(found):
        return spec.layout
    hub = ", ".join(dict.fromkeys(spec.layout.required_columns))
    others = "" if plain is spec.layout else f" or {', '.join(plain.required_columns)}"
    raise DataError(
        f"the columns are {', '.join(found) or 'none'}: expected {hub} (as on the hub in {spec.hub}){others}"
    )


def read_fields(
    spec: DatasetSpec, rows: Iterable[tuple[int, Mapping[str, Any]]], plain: Layout = PLAIN
) -> Iterator[dict[str, Any]]:
    """The fields of each of (row number, row), with `row` and `id`; the first row decides which layout all must have.

    Raises:
        DataError: names the row.
    """
    layout: Layout | None = None
    for number, row in rows:
        try:
            layout = layout or choose_layout(spec, row, plain)
            fields = layout.read(row)
        except DataError as error:
            raise DataError(f"row {number}: {error}") from None
        yield {**fields, "row": number, "id": fields.get("id") or f"{spec.name}/{number}"}


def to_problems(spec: DatasetSpec, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[Problem]:
    """Problems of mathematics. Raises DataError as `read_fields`."""
    return (Problem(**fields) for fields in read_fields(spec, rows))
