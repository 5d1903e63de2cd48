"""Whether a text follows an instruction that can be checked: `CHECKS`, one function each, by IFEval's names.

From "Instruction-Following Evaluation for Large Language Models" (arXiv 2311.07911), whose own code needs data that
nltk downloads. Otherwise than there, sentences and words in capitals are found by punctuation and spaces, keywords are
taken literally, and the language is what py3langid says. Every check takes time linear in the text.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

AT_LEAST, LESS_THAN = "at least", "less than"
MAX_LANGUAGE_CHARS = 5000
"""Of a text, as far as its language is concerned."""


@dataclass(frozen=True)
class Check:
    """`met(text, **arguments)`: whether a text that is not empty follows the instruction. `arguments`: their kinds."""

    met: Callable[..., bool]
    arguments: Mapping[str, type]


CHECKS: dict[str, Check] = {}


def check(name: str, **arguments: type) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    """Register a function under IFEval's name."""

    def register(met: Callable[..., bool]) -> Callable[..., bool]:
        assert name not in CHECKS, f"two checks of the name {name}"
        CHECKS[name] = Check(met, arguments)
        return met

    return register


def read_arguments(name: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of a check, out of a row's `kwargs`, in which tables have nulls and 3.0 for 3.

    Raises:
        ValueError: there is no such check, an argument is missing, or it has another kind or value than expected.
    """
    if name not in CHECKS:
        raise ValueError(f"{name!r}: expected one of {', '.join(CHECKS)}")
    arguments = {
        key: _as(kind, (given or {}).get(key), f"{name}.{key}") for key, kind in CHECKS[name].arguments.items()
    }
    for key, value in arguments.items():
        if key.endswith("relation") and value not in (AT_LEAST, LESS_THAN):
            raise ValueError(f"{name}.{key}={value!r}: expected {AT_LEAST!r} or {LESS_THAN!r}")
    if arguments.get("language", "en") not in LANGUAGES:
        raise ValueError(f"{name}.language={arguments['language']!r}: expected one of {', '.join(LANGUAGES)}")
    return arguments


def _as(kind: type, value: Any, where: str) -> Any:
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    texts = kind is list and isinstance(value, list) and value and all(isinstance(v, str) and v for v in value)
    if texts or (kind is not list and isinstance(value, kind) and not isinstance(value, bool) and value != ""):
        return value
    raise ValueError(f"{where}={value!r}: expected {'a list of texts' if kind is list else kind.__name__}")


def _compare(count: int, relation: str, number: int) -> bool:
    return count < number if relation == LESS_THAN else count >= number


LANGUAGES = (
    "ar", "bg", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fr", "gu", "he", "hi", "hu", "id", "it",
    "ja", "kn", "ko", "ml", "mr", "ne", "nl", "no", "pa", "pl", "pt", "ro", "ru", "sv", "sw", "ta", "te", "th",
    "tr", "uk", "ur", "vi", "zh",
)  # fmt: skip
"""ISO 639-1 codes of the languages that are told apart: those of IFEval and some more."""


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(LANGUAGES)
    return identifier


def language_of(text: str) -> str:
    """The one of `LANGUAGES` that the text is in most likely, capitals aside."""
    return str(_identifier().classify(text[:MAX_LANGUAGE_CHARS].lower())[0])


_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++[\"')\]]*+(?=\s)|[。！？]++")  # linear
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|No|Jr|Sr)\.$")


def words(text: str) -> int:
    """Runs of letters, digits and underscores: "don't" is two, as in IFEval."""
    return len(_WORD.findall(text))


def sentences(text: str) -> int:
    """Stretches that end in . ! ? before a space, or at the end; a dot after a single letter or a title ends none."""
    count, start = 0, 0
    for end in _SENTENCE_END.finditer(text):
        if not _ABBREVIATION.search(text[max(start, end.start() - 8) : end.start() + 1]):
            count, start = count + 1, end.end()
    return count + bool(text[start:].strip())


@check("length_constraints:number_words", num_words=int, relation=str)
def number_words(text: str, num_words: int, relation: str) -> bool:
    return _compare(words(text), relation, num_words)


@check("length_constraints:number_sentences", num_sentences=int, relation=str)
def number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _compare(sentences(text), relation, num_sentences)


def _parts(text: str, separator: str) -> list[str] | None:
    """What stands between separators, spaces around it aside; None where a part in the middle is empty."""
    first, *rest = (part.strip() for part in text.split(separator))
    *middle, last = rest or [""]
    return None if not all(middle) else [part for part in (first, *middle, last) if part]


@check("length_constraints:number_paragraphs", num_paragraphs=int)
def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Paragraphs are separated by ***."""
    parts = _parts(text, "***")
    return parts is not None and len(parts) == num_paragraphs


@check("length_constraints:nth_paragraph_first_word", num_paragraphs=int, nth_paragraph=int, first_word=str)
def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are separated by an empty line. The first word ends where punctuation begins."""
    paragraphs = text.split("\n\n")
    if sum(bool(p.strip()) for p in paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= len(paragraphs):
        return False
    first = (paragraphs[nth_paragraph - 1].split() or [""])[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", first)[0].lower() == first_word.lower()


def _count(keyword: str, text: str) -> int:
    return len(re.findall(re.escape(keyword), text, re.IGNORECASE))


@check("keywords:existence", keywords=list)
def keywords_exist(text: str, keywords: list[str]) -> bool:
    return all(_count(keyword, text) for keyword in keywords)


@check("keywords:frequency", keyword=str, frequency=int, relation=str)
def keyword_frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(_count(keyword, text), relation, frequency)


@check("keywords:forbidden_words", forbidden_words=list)
def no_forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    """As whole words."""
    return not any(re.search(rf"(?<!\w){re.escape(w)}(?!\w)", text, re.IGNORECASE) for w in forbidden_words)


@check("keywords:letter_frequency", letter=str, let_frequency=int, let_relation=str)
def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compare(text.lower().count(letter.lower()), let_relation, let_frequency)


@check("language:response_language", language=str)
def response_language(text: str, language: str) -> bool:
    return language_of(text) == language


@check("detectable_content:number_placeholders", num_placeholders=int)
def number_placeholders(text: str, num_placeholders: int) -> bool:
    """At least so many of [the like]; a [ within one opens no other."""
    return sum(map(_placeholders, text.splitlines())) >= num_placeholders


def _placeholders(line: str) -> int:
    count, start = 0, line.find("[")
    while start >= 0 and (end := line.find("]", start)) >= 0:
        count, start = count + 1, line.find("[", end)
    return count


@check("detectable_content:postscript", postscript_marker=str)
def postscript(text: str, postscript_marker: str) -> bool:
    """The marker anywhere, P.S. and P.P.S also with spaces between their letters."""
    spaced = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(spaced.get(postscript_marker, re.escape(postscript_marker)), text, re.IGNORECASE) is not None


@check("detectable_format:number_bullet_lists", num_bullets=int)
def number_bullet_lists(text: str, num_bullets: int) -> bool:
    """Exactly so many lines that begin with - or a single *."""
    lines = (line.lstrip() for line in text.splitlines())
    return sum(line.startswith("-") or bool(re.match(r"\*[^*]", line)) for line in lines) == num_bullets


@check("detectable_format:constrained_response")
def constrained_response(text: str) -> bool:
    return any(f"My answer is {word}." in text for word in ("yes", "no", "maybe"))


@check("detectable_format:number_highlighted_sections", num_highlights=int)
def number_highlighted_sections(text: str, num_highlights: int) -> bool:
    """At least so many of *the like*; **the like** is another one, as in IFEval."""
    one = [found for found in re.findall(r"\*([^\n*]*)\*", text) if found.strip()]
    two = [found for found in re.findall(r"\*\*([^\n*]*)\*\*", text) if found.strip()]
    return len(one) + len(two) >= num_highlights


@check("detectable_format:multiple_sections", section_spliter=str, num_sections=int)
def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """At least so many of "SECTION 1", the word given."""
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", text)) >= num_sections


@check("detectable_format:json_format")
def json_format(text: str) -> bool:
    """All of it is JSON, within ``` or not."""
    text = re.sub(r"\A```(?:json)?", "", text.strip(), flags=re.IGNORECASE).removesuffix("```")
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


@check("detectable_format:title")
def title(text: str) -> bool:
    """<<the like>> within a line."""
    return any(line.partition("<<")[2].rpartition(">>")[0].strip("<> ") for line in text.splitlines())


@check("combination:two_responses")
def two_responses(text: str) -> bool:
    """Two different ones, with ****** between them."""
    parts = _parts(text, "******")
    return parts is not None and len(parts) == 2 and parts[0] != parts[1]


@check("combination:repeat_prompt", prompt_to_repeat=str)
def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


@check("startend:end_checker", end_phrase=str)
def end_checker(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@check("startend:quotation")
def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


@check("change_case:capital_word_frequency", capital_frequency=int, capital_relation=str)
def capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> bool:
    """Words with spaces around them in which no letter is small."""
    return _compare(sum(map(str.isupper, text.split())), capital_relation, capital_frequency)


@check("change_case:english_capital")
def english_capital(text: str) -> bool:
    return text.isupper() and language_of(text) == "en"


@check("change_case:english_lowercase")
def english_lowercase(text: str) -> bool:
    return text.islower() and language_of(text) == "en"


@check("punctuation:no_comma")
def no_comma(text: str) -> bool:
    return "," not in text
