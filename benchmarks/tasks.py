"""The benchmark tasks: how a question is drawn, how a weak teacher answers it, and verl's rows.

    countdown   "3,9,5,7,3=10"   reach the number after "=" from the others with + and -     several valid answers
    chain_sum   "27+45-13="      add up; running totals first, the result on the last line   one valid answer
    chain_sum_8                  the same with eight numbers, for longer responses
    order       "kdbg:d<k,b<g"   put letters in an order that keeps every pair               many valid answers
    code, puzzle, text           of other domains: see domains.py

    countdown_96                 countdown, its warm start and validation, with 96 of its 960 training questions
    countdown_1200               countdown, trained for 1,200 steps (in grid.yaml)
    hard_96, hard_240, hard_960  chain_sum_8 after a quarter of its warm start (right in 3 of 100), its first questions
    hard_weak_96, hard_fair_96   hard_96 after fewer or more steps of it (right in 1 and in 10 of 100)
    hard_order_96, hard_order_960  order after half of its warm start (right in 4 of 100), its first questions
    hard_code, hard_puzzle, hard_text  code, puzzle and text after a third to a half of their warm starts (right in
                                 5, 4 and 3 of 100), their first 96 questions

`rewards.py` and `domains.py` check answers. A question's `key` is what makes two questions the same; no key is in two
splits.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.domains import ANSWER, COUNTS, LISTED, PARTS, PROGRAM

DRAWN = 960  # training questions


@dataclass(frozen=True)
class Task:
    """One task, and the sizes that suit it.

    Args:
        draw: rng -> question; may be asked again.
        answer: rng, question -> a valid answer.
        slip: rng, question -> an answer such as a careless teacher would give, mostly invalid.
        key: question -> what makes it the same as another.
        slips: share of the demonstrations that are slips.
        sft_steps: steps of the warm start.
        max_prompt_tokens, max_response_tokens: budgets; the latter includes the token that ends a response.
        tokens: texts of answers that are a token each; otherwise a character is one.
        train_questions: how many of the `DRAWN` training questions are trained on, the first ones.
        val_questions: how many are held out.
    """

    name: str
    draw: Callable[[random.Random], str]
    answer: Callable[[random.Random, str], str]
    slip: Callable[[random.Random, str], str]
    key: Callable[[str], str]
    slips: float
    sft_steps: int
    max_prompt_tokens: int
    max_response_tokens: int
    tokens: tuple[str, ...] = ()
    train_questions: int = DRAWN
    val_questions: int = 128


# ---- countdown ----

NUMBERS, LARGEST, HIGHEST_TARGET = 5, 9, 15
LEAST_ANSWERS = 3  # different ones, so that there is something to lose


def draw_countdown(rng: random.Random) -> str:
    """Five numbers of 1 to 9, repeats allowed, and a target of 1 to 15 that at least three different answers reach."""
    while True:
        numbers = rng.choices(range(1, LARGEST + 1), k=NUMBERS)
        question = f"{','.join(map(str, numbers))}={rng.randint(1, HIGHEST_TARGET)}"
        if COUNTS["countdown"](question) >= LEAST_ANSWERS:
            return question


def spelled(terms: list[int]) -> str:
    """Signed numbers as an expression, a positive one first."""
    return "".join(f"{term:+d}" for term in terms).removeprefix("+")


def random_terms(rng: random.Random, numbers: list[int]) -> list[int]:
    """Three to five of the numbers in random order, with random signs, the first positive."""
    chosen = rng.sample(numbers, rng.randint(3, 5))
    return [chosen[0], *(rng.choice((1, -1)) * number for number in chosen[1:])]


def answer_countdown(rng: random.Random, question: str) -> str:
    """One of the valid expressions, found by trying random ones."""
    given, target = question.split("=")
    numbers = [int(number) for number in given.split(",")]
    for _ in range(100_000):
        terms = random_terms(rng, numbers)
        if sum(terms) == int(target):
            return spelled(terms)
    raise ValueError(f"countdown: no expression found for {question!r}")


def slip_countdown(rng: random.Random, question: str) -> str:
    """Any expression."""
    return spelled(random_terms(rng, [int(number) for number in question.split("=")[0].split(",")]))


def key_countdown(question: str) -> str:
    given, target = question.split("=")
    return ",".join(sorted(given.split(","))) + "=" + target


# ---- chain_sum ----


def draw_chain_sum(rng: random.Random, *, terms: int) -> str:
    """So many numbers of two digits; no running total falls below 0."""
    while True:
        drawn = [rng.randint(10, 99), *(rng.choice((1, -1)) * rng.randint(10, 99) for _ in range(terms - 1))]
        if min(itertools.accumulate(drawn)) >= 0:
            return spelled(drawn) + "="


def running_totals(question: str) -> list[int]:
    """The totals after each term of "27+45-13=", the first number included."""
    terms = question.removesuffix("=").replace("-", "+-").split("+")
    return list(itertools.accumulate(map(int, terms)))


def answer_chain_sum(rng: random.Random, question: str) -> str:
    """The totals after the second term and each later one, a line each."""
    return "\n".join(map(str, running_totals(question)[1:]))


def slip_chain_sum(rng: random.Random, question: str) -> str:
    """A total that is 1 or 10 off, and carried on."""
    totals = running_totals(question)[1:]
    wrong = rng.randrange(len(totals))
    error = rng.choice((-10, -1, 1, 10))
    return "\n".join(str(abs(total + error)) if i >= wrong else str(total) for i, total in enumerate(totals))


def key_chain_sum(question: str) -> str:
    return question


def chain_sum(name: str, *, terms: int, sft_steps: int, max_prompt_tokens: int, max_response_tokens: int) -> Task:
    """The task with so many numbers."""
    draw = partial(draw_chain_sum, terms=terms)
    sizes = (0.3, sft_steps, max_prompt_tokens, max_response_tokens)
    return Task(name, draw, answer_chain_sum, slip_chain_sum, key_chain_sum, *sizes)


# ---- order ----

LETTERS, PAIRS = 8, 6


def draw_order(rng: random.Random) -> str:
    """Eight letters and six pairs of them that some order keeps."""
    hidden = rng.sample("abcdefghijklmnopqrstuvwxyz", LETTERS)
    pairs = rng.sample(list(itertools.combinations(hidden, 2)), PAIRS)
    shown = rng.sample(hidden, LETTERS)
    return f"{''.join(shown)}:{','.join(f'{a}<{b}' for a, b in pairs)}"


def answer_order(rng: random.Random, question: str) -> str:
    """An order that keeps every pair: any letter whose predecessors are placed comes next."""
    letters, _, pairs = question.partition(":")
    before = {letter: {p[0] for p in pairs.split(",") if p[2] == letter} for letter in letters}
    placed: list[str] = []
    while len(placed) < len(letters):
        placed.append(rng.choice([x for x in letters if x not in placed and before[x] <= set(placed)]))
    return "".join(placed)


def slip_order(rng: random.Random, question: str) -> str:
    """Any order."""
    letters = question.partition(":")[0]
    return "".join(rng.sample(letters, len(letters)))


def key_order(question: str) -> str:
    letters, _, pairs = question.partition(":")
    return "".join(sorted(letters)) + ":" + ",".join(sorted(pairs.split(",")))


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("countdown", draw_countdown, answer_countdown, slip_countdown, key_countdown, 0.15, 600, 32, 14),
        chain_sum("chain_sum", terms=4, sft_steps=1400, max_prompt_tokens=28, max_response_tokens=14),
        chain_sum("chain_sum_8", terms=8, sft_steps=2000, max_prompt_tokens=44, max_response_tokens=30),
        Task("order", draw_order, answer_order, slip_order, key_order, 0.5, 700, 48, 10),
        Task("code", *PARTS["code"], 0.5, 300, 48, 14, tokens=PROGRAM),
        Task("puzzle", *PARTS["puzzle"], 0.3, 300, 20, 14, tokens=ANSWER),
        Task("text", *PARTS["text"], 0.5, 100, 52, 16, tokens=LISTED, val_questions=96),
    )
}

# The same task: seen more often, or from an earlier start.
VARIANTS = {
    "countdown_96": replace(TASKS["countdown"], train_questions=96),
    "countdown_1200": TASKS["countdown"],
    **{f"hard_{n}": replace(TASKS["chain_sum_8"], sft_steps=500, train_questions=n) for n in (96, 240, 960)},
    "hard_weak_96": replace(TASKS["chain_sum_8"], sft_steps=150, train_questions=96),
    "hard_fair_96": replace(TASKS["chain_sum_8"], sft_steps=660, train_questions=96),
    **{f"hard_order_{n}": replace(TASKS["order"], sft_steps=350, train_questions=n) for n in (96, 960)},
    "hard_puzzle": replace(TASKS["puzzle"], sft_steps=150, train_questions=96),
    "hard_code": replace(TASKS["code"], sft_steps=100, train_questions=96, val_questions=32),
    "hard_text": replace(TASKS["text"], sft_steps=60, train_questions=96),
}


def task_named(name: str) -> Task:
    """The task of that name; one of `VARIANTS` keeps its task's name, which rewards and warm starts go by.

    Raises:
        ValueError: there is none.
    """
    known = TASKS | VARIANTS
    if name not in known:
        raise ValueError(f"--task {name}: expected one of {', '.join(known)}")
    return known[name]


def draw_splits(task: Task, sizes: dict[str, int], seed: int) -> dict[str, list[str]]:
    """Questions for every split, in the order of `sizes`: all different, but that the last split may repeat itself.

    Args:
        task: what to draw.
        sizes: split -> number of questions.
        seed: the same seed gives the same questions; a longer last split keeps the others.
    """
    rng = random.Random(f"{task.name} {seed}")
    *exclusive, last = sizes
    taken: set[str] = set()
    splits: dict[str, list[str]] = {split: [] for split in sizes}
    for split in exclusive:
        while len(splits[split]) < sizes[split]:
            question = task.draw(rng)
            if task.key(question) not in taken:
                taken.add(task.key(question))
                splits[split].append(question)
    drawn = (task.draw(rng) for _ in itertools.count())
    splits[last] = list(itertools.islice((q for q in drawn if task.key(q) not in taken), sizes[last]))
    return splits


def demonstrations(task: Task, questions: list[str], seed: int) -> list[str]:
    """What the weak teacher answers: a slip now and then, a valid answer otherwise."""
    rng = random.Random(f"demonstrations of {task.name} {seed}")
    return [task.slip(rng, q) if rng.random() < task.slips else task.answer(rng, q) for q in questions]


def valid_answers(task: Task, question: str) -> dict[str, int]:
    """How many there are, where that is known."""
    return {"valid_answers": COUNTS[task.name](question)} if task.name in COUNTS else {}


def rows(task: Task, questions: list[str], split: str) -> list[dict]:
    """What verl's data set expects, one dictionary a prompt."""
    return [
        {
            "data_source": task.name,
            "prompt": [{"role": "user", "content": question}],
            "ability": task.name,
            "reward_model": {"style": "rule", "ground_truth": question},
            "extra_info": {"index": index, "split": split} | valid_answers(task, question),
        }
        for index, question in enumerate(questions)
    ]
