import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soup_verl.method.checks import ConfigError
from soup_verl.method.config import SoupConfig
from soup_verl.method.sections import STEP_SIZE_RULES
from soup_verl.method.step_size import RULES, effective_share, joined, log_sums, scale

# Historical tokens of three rows: ratios 2 and .5 (w = 1), 3 (w = 3), none
P_NEW = torch.tensor([[0.5, 0.1, 0.9], [0.6, 0.9, 0.9], [0.9, 0.9, 0.9]])
P_BEHAVIOR = torch.tensor([[0.25, 0.2, 0.1], [0.2, 0.1, 0.1], [0.1, 0.1, float("nan")]])
PREFIX = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])


def sums(rows=slice(None)):
    return log_sums(P_NEW[rows].log(), P_BEHAVIOR[rows].log(), prefix_mask=PREFIX[rows])


def test_the_share_by_hand_leaves_out_rows_without_historical_tokens():
    found = sums()
    assert found.exp()[:2].tolist() == pytest.approx([4, 10], rel=1e-5) and found[2] == 2
    assert effective_share(found) == pytest.approx(16 / (2 * 10), rel=1e-5)


def test_micro_batches_and_ranks_add_up():
    parts = joined([sums(slice(0, 1)), sums(slice(2, 3)), sums(slice(1, 2))])
    assert parts.tolist() == pytest.approx(sums().tolist())


def test_without_historical_tokens_there_is_no_share_and_the_step_is_whole():
    assert effective_share(sums(slice(2, 3))) is None
    assert scale(None, rule="sqrt", rho_base=1.0) == 1.0


def test_equal_ratios_leave_the_step_size_exactly():
    for behavior in (-3.0, -1.0):
        same = log_sums(torch.full((5, 4), -1.0), torch.full((5, 4), behavior), prefix_mask=torch.ones(5, 4))
        assert effective_share(same) == pytest.approx(1.0)
        assert scale(effective_share(same), rule="linear", rho_base=1.0) == 1.0


@pytest.mark.parametrize(
    ("share", "rule", "rho_base", "factor"),
    [
        (0.25, "none", 1.0, 1.0),
        (0.25, "sqrt", 1.0, 0.5),
        (0.25, "linear", 1.0, 0.25),
        (0.25, "linear", 0.5, 0.5),
        (0.5, "sqrt", 0.5, 1.0),
        (0.9, "sqrt", 0.5, 1.0),
    ],
)
def test_the_rules_by_hand(share, rule, rho_base, factor):
    assert scale(share, rule=rule, rho_base=rho_base) == factor


@given(st.lists(st.floats(-9000, 9000), min_size=1, max_size=6))
def test_thousands_of_nats_keep_the_share_between_one_response_and_all(log_ratios):
    """8,192 tokens of a nat each are outside of what float64 holds as a ratio."""
    log_probs = torch.tensor(log_ratios).unsqueeze(-1)
    rows = len(log_ratios)
    share = effective_share(log_sums(log_probs, torch.zeros(rows, 1), prefix_mask=torch.ones(rows, 1)))
    assert 1 / rows - 1e-9 <= share <= 1 and math.isfinite(share)


def test_the_settings_are_checked():
    assert tuple(RULES) == STEP_SIZE_RULES
    for section, key in [
        ({"rule": "cubic"}, "rule='cubic': expected one of none, sqrt"),
        ({"rho_base": 0}, "rho_base=0"),
    ]:
        with pytest.raises(ConfigError, match=f"soup.step_size.{key}"):
            SoupConfig.parse({"step_size": section})
