"""Every check, counted by hand."""

import pytest

from soup_verl.tasks.text.checks import CHECKS, language_of, read_arguments, sentences, words

AT_LEAST_2 = {"relation": "at least"}
LESS_THAN_2 = {"relation": "less than"}


def section(number):
    return {"section_spliter": "PART", "num_sections": number}


CASES = [
    # name, arguments, texts that follow it, texts that do not
    (
        "length_constraints:number_words",
        {"num_words": 3, **AT_LEAST_2},
        ["one two three", "don't go"],
        ["one two", "- -"],
    ),
    ("length_constraints:number_words", {"num_words": 3, **LESS_THAN_2}, ["one two"], ["one two three"]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, **AT_LEAST_2},
        ["Go. Stop!", "Go. stop"],
        ["Mr. A. Lee"],
    ),
    ("length_constraints:number_sentences", {"num_sentences": 2, **LESS_THAN_2}, ["It is 3.5 m."], ["Go?! Now."]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, ["a\n***\nb", "***a***b***"], ["a", "a***b***c"]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, ["a *** b"], ["a *** *** b"]),  # an empty one
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        ["First.\n\nThen, second.", 'First.\n\n"then" second.'],
        ["First.\nThen second.", "Then first.\n\nSecond.", "First.\n\nThen.\n\nThird."],
    ),
    ("keywords:existence", {"keywords": ["sea", "sun"]}, ["Sunny seaside"], ["sea alone"]),
    ("keywords:existence", {"keywords": ["c++"]}, ["In C++."], ["In ccc."]),
    ("keywords:frequency", {"keyword": "ho", "frequency": 2, **AT_LEAST_2}, ["Ho ho ho"], ["ho"]),
    ("keywords:frequency", {"keyword": "ho", "frequency": 2, **LESS_THAN_2}, ["ho"], ["hoho"]),
    ("keywords:forbidden_words", {"forbidden_words": ["cat", "dog"]}, ["Concatenate."], ["A Cat.", "hot dog"]),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "at least"}, ["Qq"], ["q"]),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 1, "let_relation": "less than"}, ["abc"], ["Quick"]),
    ("language:response_language", {"language": "de"}, ["Das Wetter ist heute sehr schön."], ["The weather is nice."]),
    ("language:response_language", {"language": "hi"}, ["आज मौसम अच्छा है और हम बाहर जाएंगे।"], ["Aaj mausam accha hai."]),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[a] [b [c]", "[]\n[x]"],
        ["[a]", "[a\nb] ]["],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["Bye.\n\np. s. more"], ["Bye. PS more"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["Bye. P.P.S more"], ["Bye. P.S. more"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n  - b", "x\n-a\n*b\ny"],
        ["* a", "* a\n**b**", "- a\n- b\n- c"],
    ),
    ("detectable_format:constrained_response", {}, ["Well. My answer is maybe."], ["My answer is yes", "No."]),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** *b*"],
        ["*a*", "* * *a*", "*a\nb*"],
    ),
    (
        "detectable_format:multiple_sections",
        section(2),
        ["PART 1 a PART2 b"],
        ["PART 1 a", "Part 1 Part 2", "PART one PART two"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1]}', '```json\n{"a": 1}\n```', "3"],
        ["{a: 1}", "Here: {}", "[" * 100_000],
    ),
    (
        "detectable_format:title",
        {},
        ["<<A poem>>\nRoses", "x <<a>> y"],
        ["<< >>", "<<a\n>>", "<<a title", ">>a<<", "<a>"],
    ),
    ("combination:two_responses", {}, ["a\n******\nb"], ["a", "a******a", "a******b******c"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi. "}, ["say hi. Hi!"], ["Hi! Say hi."]),
    ("startend:end_checker", {"end_phrase": "That is all."}, ['So. that is ALL."\n'], ["That is all. Bye."]),
    ("startend:quotation", {}, ['"a"', '""'], ['"a', "a", '"', "'a'"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["NASA AND us"],
        ["NASA and 3 I-am"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 1, "capital_relation": "less than"},
        ["Us 3"],
        ["I am"],
    ),
    (
        "change_case:english_capital",
        {},
        ["THE WEATHER IS NICE TODAY."],
        ["The weather is nice.", "DAS WETTER IST HEUTE SCHÖN."],
    ),
    (
        "change_case:english_lowercase",
        {},
        ["the weather is nice today."],
        ["The weather is nice.", "das wetter ist heute schön."],
    ),
    ("punctuation:no_comma", {}, ["a; b"], ["a, b"]),
]


@pytest.mark.parametrize(("name", "arguments", "met", "unmet"), CASES, ids=[case[0] for case in CASES])
def test_a_check(name, arguments, met, unmet):
    given = read_arguments(name, arguments | {"of_another": None})
    assert [text for text in met if not CHECKS[name].met(text, **given)] == []
    assert [text for text in unmet if CHECKS[name].met(text, **given)] == []


def test_every_check_of_ifeval_is_there_and_counted_above():
    assert set(CHECKS) == {case[0] for case in CASES} and len(CHECKS) == 25


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("One", 1), ("One. Two", 2), ("Dr. No met U. S. Grant at 3.15.", 1), ("Wait... what?! (Really.) Yes", 4)],
)
def test_sentences(text, count):
    assert sentences(text) == count


def test_words_are_runs_of_letters_and_digits():
    assert words("don't stop_it, 3.5 times — ok") == 7  # don t stop_it 3 5 times ok


@pytest.mark.parametrize("text", ["", "12345", "\ud800", "\x00", "日本"])
def test_any_text_has_some_language(text):
    assert language_of(text) == language_of(text) and len(language_of(text)) == 2


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        (
            "length_constraints:words",
            {},
            "'length_constraints:words': expected one of length_constraints:number_words, ",
        ),
        ("length_constraints:number_words", {"num_words": 3}, "number_words.relation=None: expected str"),
        ("length_constraints:number_words", {"num_words": 3.5, **AT_LEAST_2}, "num_words=3.5: expected int"),
        ("length_constraints:number_words", {"num_words": True, **AT_LEAST_2}, "num_words=True: expected int"),
        (
            "length_constraints:number_words",
            {"num_words": 3, "relation": "about"},
            "'about': expected 'at least' or 'less",
        ),
        ("keywords:existence", {"keywords": []}, r"keywords=\[\]: expected a list of texts"),
        ("keywords:existence", {"keywords": "sea"}, "keywords='sea': expected a list of texts"),
        ("keywords:frequency", {"keyword": "", "frequency": 1, **AT_LEAST_2}, "keyword='': expected str"),
        ("language:response_language", {"language": "xx"}, "language='xx': expected one of ar, bg, "),
    ],
)
def test_arguments_that_a_check_cannot_have(name, given, told):
    with pytest.raises(ValueError, match=told):
        read_arguments(name, given)


def test_a_whole_number_of_a_table_is_one():
    assert read_arguments("length_constraints:number_words", {"num_words": 3.0, **AT_LEAST_2})["num_words"] == 3


@pytest.mark.parametrize("name", CHECKS)
def test_time_is_linear_in_the_text(name):
    """Half a million characters of what regular expressions go through again and again; the square would take hours."""
    given = next(case[1] for case in CASES if case[0] == name)
    for piece in ("[", "*", ".", " ", "<<", "a. ", "\n", '"', "***", "p. "):
        CHECKS[name].met(piece * (500_000 // len(piece)), **given)
