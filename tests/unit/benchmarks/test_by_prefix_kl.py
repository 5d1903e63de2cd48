import pytest

from benchmarks import by_prefix_kl
from benchmarks.results import Group, Measured

TASK = Group("order", "search instrument", 0)


def point(method, side, seeds, prefix_kl=None, value=None, knob="soup.lookahead.age"):
    numbers = {"pass@1": 0.4, "pass@8": 0.9, "prefix_kl": prefix_kl}
    return Measured(method, side, method, None if value is None else knob, value, {s: dict(numbers) for s in seeds})


@pytest.fixture
def points():
    return [
        point("grpo", "grpo", range(4)),
        point("lookahead", "soup", range(1, 5), 0.02, value=8),
        point("lookahead", "soup", range(2), 0.03, value=64),  # two seeds
        point("lookahead_kl", "soup", range(4), 0.03, value=0.02, knob="loss.kl_loss_coef"),  # differs in a KL as well
        point("replay_masked", "variant", range(4), 0.04, value=0.5),
        point("replay", "soup", range(4), value=6),  # no prefix KL
    ]


def test_a_point_of_soup_is_shown_over_the_seeds_that_it_shares_with_grpo(points):
    ((shown, grpo, seeds),) = by_prefix_kl.placed(points)
    assert (shown.name, grpo.name, seeds) == ("lookahead 8", "grpo", [1, 2, 3])
    assert by_prefix_kl.placed(points[1:]) == []


def test_all_tasks_are_in_one_figure_and_counted(points, tmp_path):
    results = {TASK: points, TASK._replace(seeds_from=100): points, TASK._replace(task="countdown"): points[1:]}
    title, said, figure = by_prefix_kl.section(results, tmp_path)
    assert said.startswith("2 points of SOUP") and figure.strip() == "![SOUP by prefix KL](FIGURES/by_prefix_kl.png)"
    assert (tmp_path / "by_prefix_kl.png").stat().st_size > 10_000
    assert by_prefix_kl.section({TASK: points[:1]}, tmp_path / "none") == []
