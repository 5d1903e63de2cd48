"""The quickstart's table."""

import pytest

from examples.quickstart.summarize import Run, summarize


def run(tmp_path, shares):
    return Run(
        tmp_path,
        {
            step: {"timing_s/step": 2.0, "val-core/sums/acc/mean@2": 0.5, "soup/prefix_tokens_share": share}
            for step, share in enumerate(shares, start=1)
        },
    )


@pytest.mark.parametrize(
    ("shares", "median"), [([0, 0, 0, 0, 0.2], 0.2), ([0, 0, 0, 0.1, 0.3, 0.2], 0.2), ([0, 0], None)]
)
def test_the_share_of_prefix_tokens_is_of_the_steps_that_have_history(tmp_path, shares, median):
    of_soup = summarize(run(tmp_path, [0] * len(shares)), run(tmp_path, shares), "lookahead", 0.5)["soup"]
    assert of_soup["prefix_tokens_share"] == median
