"""Two FSDP ranks over gloo train, and `masked` leaves the prefix out."""

import pytest
import torch

pytestmark = pytest.mark.runs("two_ranks")


@pytest.fixture
def finished(run):
    two = run("two_ranks")
    assert two.code == 0, two.output[-3000:]
    return two


def test_both_ranks_write_their_shards_and_the_loss_is_finite(finished):
    shards = sorted(p.name for p in (finished.folder / "global_step_4" / "actor").glob("model_*"))
    assert shards == [f"model_world_size_2_rank_{rank}.pt" for rank in (0, 1)]
    metrics = finished.metrics()
    assert all(
        abs(metrics[step]["actor/pg_loss"]) < 100 and metrics[step]["actor/grad_norm"] > 0 for step in range(1, 5)
    )


def test_masked_leaves_the_prefix_out_of_the_loss(finished):
    """At so small a learning rate every ratio is 1, and the loss is -A averaged over the continuations' tokens."""
    metrics, left_out = finished.metrics(), 0.0
    for step in (2, 3, 4):
        rows = finished.rows(step)
        assert sum(bool(row["prefix_mask"].any()) for row in rows) >= 12
        gained = float(sum((row["advantages"] * row["response_mask"]).sum() for row in rows))
        trained = float(sum(row["response_mask"].sum() for row in rows))
        assert metrics[step]["actor/pg_loss"] == pytest.approx(-gained / trained, abs=1e-4)
        of_group = [(_advantage(row), float(row["prefix_mask"].sum())) for row in rows]
        whole = gained + sum(advantage * tokens for advantage, tokens in of_group)
        left_out = max(left_out, abs(whole / (trained + sum(tokens for _, tokens in of_group)) - gained / trained))
    assert left_out > 1e-3  # what the prefixes would have changed


def _advantage(row):
    """The one that every trained token of a response has."""
    (advantage,) = row["advantages"][row["response_mask"].bool()].unique()
    return float(advantage)


def test_masked_trains_the_whole_continuation_and_no_token_of_the_prefix(finished):
    for row in finished.rows(4):
        prefix = row["prefix_mask"].bool()
        assert not row["advantages"][prefix].any()
        assert torch.equal(row["response_mask"].bool(), ~prefix)
