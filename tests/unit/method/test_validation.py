"""Hand-computed: with 1 of 4 right, pass@1 = 1/4, pass@2 = 1 - C(3,2)/C(4,2) = 1/2, pass@4 = 1."""

import time

import pytest

from soup_verl.method.validation import is_solved, pass_at_k_metrics


def metrics_of(*samples):
    """From (data source, prompt, right or wrong as 1 or 0 a response)."""
    rows = [(source, uid, bool(right)) for source, uid, rights in samples for right in rights]
    return pass_at_k_metrics(*map(list, zip(*rows, strict=True)))


@pytest.mark.parametrize(
    ("acc", "reward", "right"),
    [
        (1.0, -1.0, True),
        (True, 0.0, True),
        (0.0, 1.0, False),
        (0.5, 1.0, False),
        (None, 0.1, True),
        (None, 0.0, False),
        (None, -1.0, False),
    ],
)
def test_the_accuracy_decides_and_without_one_the_rewards_sign(acc, reward, right):
    assert is_solved(acc, reward) is right


def test_pass_at_k_is_the_mean_over_the_prompts_of_a_data_source():
    found = metrics_of(("a", 1, [0, 1, 0, 0]), ("a", 2, [0, 0, 0, 0]), ("b/c", 3, [1, 1]))
    assert found == pytest.approx(
        {
            "val-soup/a/pass@1": 0.125,
            "val-soup/a/pass@2": 0.25,
            "val-soup/a/pass@4": 0.5,
            "val-soup/b/c/pass@1": 1.0,
            "val-soup/b/c/pass@2": 1.0,
        }
    )


def test_the_largest_k_is_the_number_of_responses_whatever_it_is():
    """2 of 6 right: 1/3, 1 - 6/15, 1 - 1/15, 1."""
    assert metrics_of(("a", 1, [1, 1, 0, 0, 0, 0])) == pytest.approx(
        {"val-soup/a/pass@1": 1 / 3, "val-soup/a/pass@2": 0.6, "val-soup/a/pass@4": 14 / 15, "val-soup/a/pass@6": 1.0}
    )


def test_a_greedy_validation_has_pass_at_1_alone():
    assert metrics_of(("a", 1, [1]), ("a", 2, [0])) == {"val-soup/a/pass@1": 0.5}


def test_a_prompt_counts_up_to_the_responses_it_has():
    """The second prompt has one response, which is right: pass@1 = (1/2 + 1) / 2; pass@2 is the first one's."""
    found = metrics_of(("a", 1, [0, 1]), ("a", 2, [1]))
    assert found == {"val-soup/a/pass@1": 0.75, "val-soup/a/pass@2": 1.0}


def test_responses_belong_to_their_prompt_in_whatever_order_they_came():
    mixed = pass_at_k_metrics(["a"] * 4, [1, 2, 1, 2], [True, False, False, False])
    assert (
        mixed == metrics_of(("a", 1, [1, 0]), ("a", 2, [0, 0])) == {"val-soup/a/pass@1": 0.25, "val-soup/a/pass@2": 0.5}
    )


def test_no_responses_have_no_metrics():
    assert pass_at_k_metrics([], [], []) == {}


def test_twelve_thousand_responses_take_no_time():
    uids = [i // 8 for i in range(12_368)]
    started = time.process_time()
    pass_at_k_metrics(["a"] * len(uids), uids, [i % 3 == 0 for i in range(len(uids))])
    assert time.process_time() - started < 1  # measured: .004 s
