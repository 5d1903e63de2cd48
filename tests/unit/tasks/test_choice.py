"""Multiple choice: what a box may hold, pair by pair, what cannot count, and what the order of the options changes."""

from string import ascii_uppercase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup_verl.tasks import choice
from soup_verl.tasks.grading.options import is_mathematical, plain

CITIES = ["Paris", "London", "New York City", "All of the above"]
VALUES = [r"$\frac{1}{2}$", "3.0 \\times 10^{8}", r"$-\sqrt{2}\,\mathrm{m}$", "12", r"10^{-4}\ \text{eV}"]
CASES = ["AaBb", "aabb", "AABB", "Aabb"]  # genotypes: case is all that tells them apart
LETTERS = ["B", "C", "A", "K"]  # options whose texts are letters: blood groups, vitamins, elements
ARTICLES = ["dog", "a dog", "the cat", "A"]
TWINS = ["5", "6", "5.", "7"]  # the publisher's slip: A and C are one answer
LENGTHS = ["5 cm", r"7\,\mathrm{cm}"]
MOLECULES = ["CO2", r"$\mathrm{H_2O}$", "C2O", "NaCl"]
SAME_VALUES = ["0.5", r"\frac12", "2", "3"]
BOTH = ["Only I", "Only II", "Both A and B", "A, B"]
PRICES = ["$5", "$50", "5%", "$5 or $6"]

ACCEPTED = [
    # letters
    *(
        (CITIES, "B", box)
        for box in ("B", "b", "(B)", "(b)", "[B]", "B.", "B)", "B:", "(B).", "{B}", " B ", "$B$", "**B**")
    ),
    *(
        (CITIES, "B", box)
        for box in (r"\text{B}", r"\textbf{B}", r"\mathrm{B}", r"\mathbf{(B)}", r"\text{(B)}", r"\bm{B}")
    ),
    *(
        (CITIES, "B", box)
        for box in (r"\text{ B }", r"\text{\textbf{B}}", r"\left(B\right)", r"\(B\)", r"B\,", r"\,(B)")
    ),
    *((CITIES, "B", box) for box in ("option B", "Option (B)", "choice B", "Answer: B", "answer B", "letter B", "B .")),
    *(
        (CITIES, "B", box)
        for box in ("The answer is B", "the correct answer is (B).", "Final answer: B", r"\text{Option B}")
    ),
    *(
        (CITIES, "B", box)
        for box in ("The correct option is: B", "my answer is option B", r"\text{The answer is } \mathbf{B}")
    ),
    # letter and text
    *(
        (CITIES, "B", box)
        for box in ("B) London", "(B) London", "B. London", "B: London", "B - London", "B London", "b) london")
    ),
    *(
        (CITIES, "B", box)
        for box in (r"\textbf{(B)}\ London", r"\text{B) London}", "B (London)", "B) LONDON.", "Option B: London")
    ),
    *(
        (CITIES, "B", box)
        for box in (r"(B)\ \text{London}", r"\text{(B) } \textbf{London}", "The answer is B) London", "B—London")
    ),
    (CITIES, "C", "C) New  York City"),
    (CITIES, "D", "(D) all of the above"),
    # text
    *(
        (CITIES, "B", box)
        for box in ("London", "london", "LONDON", r"\text{London}", " London. ", r"\textbf{\text{London}}")
    ),
    *(
        (CITIES, "C", box)
        for box in ("New York City", r"\text{New York City}", r"New\ York~City", "new york\ncity", "NewYork City")
    ),
    (CITIES, "D", "All of the above."),
    (CITIES, "B", "Answer: London"),
    # mathematics
    *(
        (VALUES, "A", box)
        for box in ("A", r"\frac{1}{2}", r"\dfrac12", "0.5", "1/2", r"A) \frac{1}{2}", "(A) 0.5", r"(A)\ \tfrac{1}{2}")
    ),
    *((VALUES, "B", box) for box in (r"3.0\times10^{8}", "3e8", "300000000", "300,000,000", r"3\cdot 10^8", "B: 3e8")),
    *((VALUES, "C", box) for box in (r"-\sqrt{2}\,\text{m}", r"-\sqrt{2}\ \mathrm{m}", r"C. $-\sqrt{2}$ m")),
    *((VALUES, "D", box) for box in ("12", "12.0", r"\text{12}", "D) 12", "24/2", "12.")),
    *((VALUES, "E", box) for box in (r"10^{-4}\,\mathrm{eV}", r"10^{-4} eV", "E) $10^{-4}$ eV")),
    # texts that are hard to tell from one another, or from letters
    *((CASES, "A", box) for box in ("AaBb", "A) AaBb", r"\text{AaBb}", "Aa Bb")),
    (CASES, "B", "aabb"),
    *((LETTERS, "A", box) for box in ("A", "A) B", "(A) B", r"\text{A. B}")),
    *((LETTERS, "D", box) for box in ("D", "K", "D) K", r"\text{K}")),
    *((ARTICLES, "B", box) for box in ("B", "a dog", "B) a dog")),
    *((ARTICLES, "D", box) for box in ("D", "D) A")),
    *((TWINS, "A", box) for box in ("A", "5", "C", "A) 5", "C) 5", "5.0")),
    *((TWINS, "C", box) for box in ("A", "C", "5")),
    *((MOLECULES, "A", box) for box in ("CO2", "A", "A: CO2", r"\mathrm{CO2}", "co2")),
    *((MOLECULES, "B", box) for box in ("H_2O", r"\mathrm{H_2O}", r"\text{H}_2\text{O}", "H_{2}O")),
    *((SAME_VALUES, "A", box) for box in ("A", "0.5", "A) 0.5")),
    *((LENGTHS, "A", box) for box in ("5 cm", "5.0 cm", r"5\ \text{cm}", "A) 5 cm", "50 mm")),
    *((LENGTHS, "B", box) for box in ("7 cm", r"7\text{ cm}", r"7.0\,\mathrm{cm}")),
    *((BOTH, "C", box) for box in ("C", "Both A and B", "C) Both A and B")),
    *((BOTH, "D", box) for box in ("D", "A, B", "D) A, B")),
    *((PRICES, "A", box) for box in ("A", r"\$5", "$5", r"A) \$5", r"\text{\$5}")),
    (PRICES, "C", r"5\%"),
]

REFUSED = [
    # another option
    *((CITIES, "B", box) for box in ("A", "(C)", "d", "Paris", "C. New York City", r"\text{Option A}")),
    # two letters
    *(
        (CITIES, "B", box)
        for box in ("A, B", "AB", "A and B", "B or C", "A/B", "B, C", "B C", "(A)(B)", "(B) or (C)", "B; C")
    ),
    *(
        (CITIES, "B", box)
        for box in ("B) or C)", r"\text{B or C}", "BB", "B, B", "A-B", "[A, B]", r"B \text{ and } C", "B&C")
    ),
    # hedges
    *(
        (CITIES, "B", box)
        for box in ("B?", "maybe B", "probably B", "B, I think", "B (probably)", "not A", "B) maybe", "~B or so")
    ),
    *(
        (CITIES, "B", box)
        for box in ("B unless C", "either B", "none", "None of these", "London or Paris", "London?", "I guess London")
    ),
    # the letter of one and the text of another; the letter and a text that is nobody's
    *(
        (CITIES, "B", box)
        for box in ("B) Paris", "A) London", "(B) New York City", "B: All of the above", "A. London.")
    ),
    *(
        (CITIES, "B", box)
        for box in ("B) Berlin", "B) Londonderry", "B) in London", "B because of London", "B) London, Paris")
    ),
    # near misses
    *(
        (CITIES, "B", box)
        for box in ("Londo", "London City", "Londres", "Greater London", "the London", "2", "B1", "B'", "Bee", "β")
    ),
    *((CITIES, "C", box) for box in ("New York", "York City", "New-York City", "New York City, New York")),
    # letters that are no option's
    *((CITIES, "B", box) for box in ("E", "(Z)", "e", "option F", "E) London")),
    # nothing
    *((CITIES, "B", box) for box in ("", " ", "?", r"\text{}", "-", ".", "()", r"\quad")),
    # mathematics
    *(
        (VALUES, "A", box)
        for box in ("0.50001", "2", r"\frac{1}{3}", r"-\frac12", "0.5 or 12", "A) 12", r"A) \frac13", "0.5 m", "50")
    ),
    *((VALUES, "B", box) for box in ("3", "3e7", r"3.0 \times 10^{-8}", "B) 12", r"3\times 10^8 m")),
    *((VALUES, "C", box) for box in (r"-\sqrt{2}", r"\sqrt{2}\,\mathrm{m}", "-1.41 m", r"C) \sqrt{2}\,\mathrm{m}")),
    *((VALUES, "E", box) for box in (r"10^{-4}", r"10^{-4}\,\mathrm{keV}", r"10^{4}\ \text{eV}")),
    # texts that are hard to tell from one another, or from letters
    *((CASES, "A", box) for box in ("aabb", "AABB", "aAbB", "Aabb", "A) Aabb", "AaBB")),
    *((LETTERS, "A", box) for box in ("B", "A) C", "B) A", r"\text{B}", "b", "K")),
    (LETTERS, "D", "A) K"),
    *((ARTICLES, "A", box) for box in ("A dog", "a dog", "A) a dog")),
    (ARTICLES, "D", "A"),
    *((TWINS, "A", box) for box in ("B", "A) 6", "C) 7", "5, 5", "A, C")),
    *((MOLECULES, "A", box) for box in ("C2O", "2CO", "CO_3", "CO", "OC2", "A: C2O")),
    *((SAME_VALUES, "A", box) for box in ("B", r"\frac{1}{2}", "1/2", "A) 2")),  # one half is B, or both
    *((LENGTHS, "A", box) for box in ("5", "5 m", "5 kg", "7 cm", "A) 5", "A) 7 cm")),  # the unit is part of the text
    *((BOTH, "A", box) for box in ("Both A and B", "A, B", "Only II", "I")),
    *((PRICES, "A", box) for box in ("5", "50", r"\$50", "5%", "$5 or $6", r"A) \$50")),
]


def score(options, gold, box, **keywords):
    return choice.score("cities", rf"So it is \boxed{{{box}}}.", gold, {"options": options}, **keywords)


def test_there_are_enough_pairs():
    assert len(ACCEPTED) >= 120 and len(REFUSED) >= 110
    assert len({(tuple(o), g, b) for o, g, b in ACCEPTED + REFUSED}) == len(ACCEPTED) + len(REFUSED)


@pytest.mark.parametrize(("options", "gold", "box"), ACCEPTED)
def test_names_the_right_option(options, gold, box):
    result = score(options, gold, box)
    assert (result["score"], result["acc"], result["format"], result["error"]) == (1.0, 1.0, 1.0, "")


@pytest.mark.parametrize(("options", "gold", "box"), REFUSED)
def test_does_not_name_the_right_option_alone(options, gold, box):
    result = score(options, gold, box)
    assert (result["score"], result["acc"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("response", "error", "has_format", "pred"),
    [
        ("London", "no_box", 0.0, ""),
        ("B", "no_box", 0.0, ""),
        (r"\boxed{B", "unclosed_box", 0.0, ""),
        (r"\boxed{ \, }", "empty_box", 0.0, ""),
        (rf"\boxed{{{'x' * 1001}}}", "too_long", 0.0, ""),
        (r"\boxed{Berlin}", "no_option", 1.0, "Berlin"),
        (r"\boxed{B) Paris}", "several_options", 1.0, "A,B"),
        (r"\boxed{A) Paris}", "", 1.0, "A"),
        (r"\boxed{paris}", "", 1.0, "A"),
        (r"\boxed{A} or rather \boxed{C}", "", 1.0, "C"),
        (r"<think>\boxed{B}</think> Unsure.", "no_box", 0.0, ""),
    ],
)
def test_a_wrong_response_says_why(response, error, has_format, pred):
    result = choice.score("cities", response, "B", {"options": CITIES})
    wanted = {"score": 0.0, "acc": 0.0, "format": has_format, "timeout": 0.0, "error": error, "pred": pred}
    assert result == wanted


def test_all_ways_to_name_an_option_are_one_vote():
    assert {score(CITIES, "B", box)["pred"] for box in ("A", "(a)", "Paris", r"\text{A) paris}")} == {"A"}
    assert {score(TWINS, "B", box)["pred"] for box in ("A", "C", "5")} == {"A"}


def test_thoughts_may_count():
    response = r"<think>\boxed{B}</think> Done."
    assert choice.score("cities", response, "B", {"options": CITIES}, thoughts="count")["score"] == 1.0
    with pytest.raises(ValueError, match="reward_kwargs.thoughts='maybe': expected 'ignore' or 'count'"):
        score(CITIES, "B", "B", thoughts="maybe")


def test_no_time_for_formulas_is_said():
    options = [r"\int_0^1 x^2 \, dx", r"\sqrt{x^2 + 1}"]
    result = score(options, "B", r"\sqrt{1 + x^2}", time_limit_s=1e-9)
    assert (result["score"], result["error"], result["timeout"]) == (0.0, "timeout", 1.0)
    assert score(options, "B", r"\sqrt{1 + x^2}")["score"] == 1.0


@pytest.mark.parametrize(
    ("gold", "options", "message"),
    [
        ("E", CITIES, r"ground_truth='E' of a row of data_source='cities': expected the letter of an option, A to D"),
        ("b", CITIES, "ground_truth='b'"),
        ("AB", CITIES, "ground_truth='AB'"),
        ("", CITIES, "ground_truth=''"),
        (1, CITIES, "ground_truth=1"),
        ("A", None, r"extra_info.options=None .*: expected a list of texts"),
        ("A", "Paris", "extra_info.options='Paris'"),
        ("A", {"A": "Paris"}, "extra_info.options="),
        ("A", ["Paris"], r"expected 2 to 26 texts, none empty"),
        ("A", ["Paris", " "], r"expected 2 to 26 texts, none empty"),
        ("A", ["x"] * 27, r"expected 2 to 26 texts"),
    ],
)
def test_a_broken_row_is_refused_with_its_field(gold, options, message):
    with pytest.raises(ValueError, match=message):
        choice.check_row("cities", gold, {"options": options})
    with pytest.raises(ValueError, match=message):
        choice.score("cities", r"\boxed{A}", gold, {"options": options})


@pytest.mark.parametrize("options", [CITIES, VALUES, CASES, LETTERS, ARTICLES, TWINS, MOLECULES, SAME_VALUES, BOTH])
def test_every_letter_is_right_by_itself(options):
    for letter in ascii_uppercase[: len(options)]:
        (response,) = choice.right_answers(letter, {"options": options})
        assert choice.score("x", response, letter, {"options": options})["score"] == 1.0


def test_what_is_compared_as_mathematics():
    formulas = ["12", r"\frac{1}{2}", "3e8", "x^2 + 1", r"\sin x = 1", "5 cm", "1/2 m"]
    phrases = ["CO2", "H2O", "AaBb1", "Chromosome 21", "10 GeV", "Paris", "10^23 particles"]
    assert [t for t in formulas + phrases if is_mathematical(plain(t))] == formulas


_TEXTS = st.lists(
    st.text(alphabet="abcdefgh XY19.(),", min_size=2, max_size=9).filter(lambda t: len(plain(t)) > 1),
    min_size=2,
    max_size=6,
    unique_by=lambda t: "".join(plain(t).split()).casefold(),
)


@given(_TEXTS, st.randoms(use_true_random=False), st.data())
@settings(max_examples=60, deadline=None)
def test_another_order_of_the_options_changes_the_letters_and_nothing_else(options, rng, data):
    right = data.draw(st.integers(0, len(options) - 1))
    said = data.draw(st.integers(0, len(options) - 1))
    order = rng.sample(range(len(options)), len(options))
    shuffled = [options[i] for i in order]
    before, after = (
        (ascii_uppercase[right], ascii_uppercase[said]),
        tuple(ascii_uppercase[order.index(i)] for i in (right, said)),
    )
    for box in ("{letter}", "({letter})", "{letter}) {text}"):
        one = score(options, before[0], box.format(letter=before[1], text=options[said]))
        other = score(shuffled, after[0], box.format(letter=after[1], text=options[said]))
        assert one["score"] == other["score"] == float(said == right)
        assert (one["pred"], other["pred"]) == (before[1], after[1])


@given(st.text(max_size=60), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_no_response_raises_and_a_right_one_is_named_by_one_option(text, right):
    result = choice.score("x", rf"\boxed{{{text}}}", ascii_uppercase[right], {"options": CITIES})
    assert result["score"] in (0.0, 1.0)
    assert not result["score"] or result["pred"] == ascii_uppercase[right]
