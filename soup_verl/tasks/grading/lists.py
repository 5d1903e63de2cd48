r"""Several answers: named ones (`x=3, y=2`), solutions (`x=1, y=2 or x=3, y=4`), lists and sets in any order, `\pm`."""

from __future__ import annotations

import re

from soup_verl.tasks.grading.brackets import entries, split_top, unwrap
from soup_verl.tasks.grading.comparison import BaseComparison
from soup_verl.tasks.grading.names import same_name, split_name, split_relation, tuple_of_names
from soup_verl.tasks.grading.shapes import bracketed, same_number

_DOMAIN = re.compile(r"[A-Za-z](?:_\{[^{}]*\})?(?:,[A-Za-z])*\\in ?\\mathbb\{[A-Z]\}(?:[_^]\{?[+*0-9>=-]*\}?)*")
_MAX_SIGNED = 400  # characters of a part with a sign of both kinds

Named = list[tuple[str, str]]


def without_domain(c: BaseComparison, gold: str, pred: str) -> bool | None:
    r"""`3k+1, k \in \mathbb{Z}`: where a variable lies may be left out, but not be another."""
    split = [_split_domain(text) for text in (gold, pred)]
    domains = [domain for _, domain in split if domain]
    if not domains:
        return None
    return len(set(domains)) == 1 and c.same_text(split[0][0], split[1][0])


def _split_domain(text: str) -> tuple[str, str]:
    parts = split_top(text, ",")
    is_domain = [_DOMAIN.fullmatch(part) is not None for part in parts]
    if len(parts) < 2 or all(is_domain) or not any(is_domain):
        return text, ""
    kept = [part for part, domain in zip(parts, is_domain, strict=True) if not domain]
    return ",".join(kept), ",".join(part for part, domain in zip(parts, is_domain, strict=True) if domain)


def named_values(c: BaseComparison, gold: str, pred: str) -> bool | None:
    """Values with names of their own: by name where both have names, in their order where one has none."""
    if "=" not in gold and "=" not in pred:
        return None
    gold_values, pred_values = _assignments(gold), _assignments(pred)
    if gold_values and pred_values:
        return _same_by_name(c, gold_values, pred_values)
    if gold_values:
        found = bracketed(pred)
        content = found[1] if found and found[0] == "()" else pred
        given = [split_name(value) for value in entries(content, len(gold_values))]
        if len(given) != len(gold_values):
            return None
        names_fit = all(same_name(name, g[0]) for (name, _), g in zip(gold_values, given, strict=True))
        return names_fit and c.in_order([value for _, value in gold_values], [value for _, value in given])
    if pred_values and (found := bracketed(gold)):
        return found[0] == "()" and c.in_order(entries(found[1], len(pred_values)), [v for _, v in pred_values])
    return None


def _assignments(text: str) -> Named:
    """Names and values where each value has another name, [] where not."""
    parts = [split_name(part) for part in split_top(text, "[,;]")] if "=" in text else []
    if len(parts) == 1:
        names, found = tuple_of_names(parts[0][0]), bracketed(parts[0][1])
        values = split_top(found[1], "[,;]") if found and found[0] == "()" else []
        return list(zip(names, values, strict=True)) if names and len(names) == len(values) else []
    names = [name for name, _ in parts]
    return parts if all(names) and len(set(names)) == len(names) else []


def _same_by_name(c: BaseComparison, gold: Named, pred: Named) -> bool:
    left = list(pred)
    for name, value in gold:
        match = next((p for p in left if same_name(name, p[0])), None)
        if match is None or not c.same_text(value, match[1]):
            return False
        left.remove(match)
    return not left


def solutions(c: BaseComparison, gold: str, pred: str) -> bool | None:
    """`p=5, q=2; p=7, q=2` is `(5,2), (7,2)`."""
    gold_names, gold_tuples = _fold(gold, [])
    pred_names, pred_tuples = _fold(pred, gold_names)
    if not gold_names and not pred_names:
        return None
    return c.any_order(gold_tuples, pred_tuples)


def _fold(text: str, order: list[str]) -> tuple[list[str], list[str]]:
    """The names that come again and again, and a tuple of values for each time; [] and the parts where none do."""
    texts = split_top(text, "[,;]")
    parts = [split_name(part) for part in texts] if "=" in text else []
    names = [name for name, _ in parts]
    length = len(set(names))
    cycle = names[:length]
    if not (all(names) and 1 < length < len(names) and len(names) % length == 0) or names != cycle * (
        len(names) // length
    ):
        return [], texts
    by_name = [dict(parts[i : i + length]) for i in range(0, len(parts), length)]
    cycle = order if sorted(order) == sorted(cycle) else cycle
    return cycle, [f"({','.join(values[name] for name in cycle)})" for values in by_name]


def any_order(c: BaseComparison, gold: str, pred: str) -> bool | None:
    """Lists and sets. One name for all of them may stand before the first, or before each."""
    gold_name, gold_content = _content(gold)
    pred_name, pred_content = _content(pred)
    gold_parts, pred_parts = same_number(gold_content, pred_content)
    if pred_content != pred and len(gold_parts) == 1:
        pred_parts = entries(pred_content)  # `\{1,200\}` has two elements
    if len(gold_parts) == len(pred_parts) == 1 and (gold_content, pred_content) == (gold, pred):
        gold_parts, pred_parts = _both_signs(gold), _both_signs(pred)
        if len(gold_parts) == len(pred_parts) == 1:
            return None
    else:
        gold_parts, pred_parts = (sum(map(_both_signs, parts), []) for parts in (gold_parts, pred_parts))
    gold_names, gold_values = _without_names(gold_name, gold_parts)
    pred_names, pred_values = _without_names(pred_name, pred_parts)
    if len(gold_names) > 1 or len(pred_names) > 1:  # some have one, some not
        return c.any_order(gold_parts, pred_parts)
    if not same_name("".join(gold_names), "".join(pred_names)):
        return False
    return c.any_order(gold_values, pred_values)


def _content(text: str) -> tuple[str, str]:
    r"""Name and content of a set: (`n`, `1,2`) for `n \in \{1,2\}`; ("", text) for anything else."""
    name, value = split_name(text) if "," not in text or len(split_top(text, "[,;]")) == 1 else ("", text)
    bracket = unwrap(value)
    if bracket is None or bracket[0] + bracket[2] != r"\{\}" or len(split_top(bracket[1], r"\||:")) > 1:
        return "", text
    return name, bracket[1]


def _without_names(name: str, parts: list[str]) -> tuple[set[str], list[str]]:
    named = [split_name(part) if _is_assignment(part) else ("", part) for part in parts]
    return {n for n, _ in [(name, ""), *named] if n}, [value for _, value in named]


def _is_assignment(part: str) -> bool:
    relation = split_relation(part)
    return relation is not None and len(relation[0]) == 1


def _both_signs(part: str) -> list[str]:
    if len(re.findall(r"\\(?:pm|mp)(?![A-Za-z])", part)) != 1 or len(part) > _MAX_SIGNED:
        return [part]
    name, value = split_name(part)
    before, after = re.split(r"\\(?:pm|mp)(?![A-Za-z]) ?", value)
    prefix = f"{name}=" if name else ""
    return [prefix + (f"{before}+{after}" if before else after), f"{prefix}{before}-{after}"]
