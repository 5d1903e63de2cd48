import pytest

from benchmarks import per_token
from benchmarks.results import STOPPED, Measured

SEEDS = [0, 1]


def point(method, side, tokens, *pass_1, value=None, trained=0.5):
    """pass@8 is 1."""
    numbers = {"pass@8": 1.0, "trained_pass@1": trained, "decode_tokens": tokens}
    by_seed = {seed: numbers | {"pass@1": x} for seed, x in zip(SEEDS, pass_1, strict=True)}
    return Measured(method, side, method, None if value is None else "x", value, by_seed)


@pytest.fixture
def points():
    return [
        point("grpo", "grpo", 1000.0, 0.4, 0.5),
        point(STOPPED, "rival", 500.0, 0.2, 0.3, value=200, trained=None),
        point("responses", "rival", 600.0, 0.3, 0.3, value=4),
        point("reference_kl", "rival", 1010.0, 0.5, 0.5, value=0.02),
        point("replay", "soup", 595.0, 0.4, 0.3, value=6),
        point("forget", "soup", 400.0, 0.1, 0.1),
    ]


def best(points, name):
    rivals = [p for p in points if p.side in ("grpo", "rival")]
    found = per_token.best_affordable(next(p for p in points if p.method == name), rivals, SEEDS, "pass@1")
    return found and found.name


def test_the_rival_is_the_best_that_decodes_no_more_or_hardly_more(points):
    assert best(points, "replay") == "responses 4"  # 600 is within 2% of 595
    assert best(points, "grpo") == "reference_kl 0.02"  # 1010 is within 2% of 1000
    assert best(points, "responses") == "grpo_stopped 200"
    assert best(points, "reference_kl") == "grpo" and best(points, "forget") is None


def test_the_table_has_the_fewest_tokens_first_and_paired_differences(points, tmp_path):
    figure, text = per_token.section(points, SEEDS, 8, "task", tmp_path / "tokens.png")
    assert figure == "![pass@k against decoded tokens](FIGURES/tokens.png)"
    assert (tmp_path / "tokens.png").stat().st_size > 10_000
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert [row[:2] for row in rows] == [
        ["forget", "0.40"],
        ["replay 6", "0.59"],
        ["responses 4", "0.60"],
        ["reference_kl 0.02", "1.01"],
    ]
    assert header[-1] == "pass@1, trained questions − best rival of no more tokens"
    # pass@1 of replay is .0 and -.2 from GRPO's, .1 and .0 from that of four responses: 12.706 x .1 / 2, and half
    assert rows[1][2:4] == ["-0.100 ± 1.271", "+0.050 ± 0.635 (responses 4)"]
    assert rows[0][3] == "-" and rows[1][-1] == "+0.000 ± 0.000 (responses 4)"


def test_where_all_decode_about_as_much_there_is_nothing_to_say(points, tmp_path):
    alike = [p for p in points if p.method in ("grpo", STOPPED, "reference_kl")]
    assert per_token.section(alike, SEEDS, 8, "task", tmp_path / "tokens.png") == []
    unknown = [point("grpo", "grpo", None, 0.4, 0.5), point("replay", "soup", 600.0, 0.4, 0.5)]
    assert [p.method for p in per_token.counted(unknown, SEEDS)] == ["replay"]
