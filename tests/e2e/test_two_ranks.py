"""Two FSDP ranks over gloo train, and `masked` leaves the prefix out."""

import pytest

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
    mixed = [row for row in finished.rows(4) if row["prefix_mask"].any()]
    assert len(mixed) >= 12
    for row in mixed:
        prefix = row["prefix_mask"].bool()
        assert not row["response_mask"][prefix].any() and not row["advantages"][prefix].any()
        assert row["response_mask"][~prefix].all()
