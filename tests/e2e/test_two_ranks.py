"""Two FSDP ranks over gloo train, and the two other prefix objectives do what their formulas say."""

import pytest
import torch


def finished(run, name):
    two = run(name)
    assert two.code == 0, two.output[-3000:]
    mixed = [row for row in two.rows(4) if row["prefix_mask"].any()]
    assert len(mixed) >= 12
    return two, mixed


@pytest.mark.runs("two_ranks_fsdp2", "two_ranks_fsdp")
@pytest.mark.parametrize("name", ["two_ranks_fsdp2", "two_ranks_fsdp"])
def test_both_ranks_write_their_shards_and_the_loss_is_finite(run, name):
    two, _ = finished(run, name)
    shards = sorted(p.name for p in (two.folder / "global_step_4" / "actor").glob("model_*"))
    assert shards == [f"model_world_size_2_rank_{rank}.pt" for rank in (0, 1)]
    metrics = two.metrics()
    assert all(
        abs(metrics[step]["actor/pg_loss"]) < 100 and metrics[step]["actor/grad_norm"] > 0 for step in range(1, 5)
    )


@pytest.mark.runs("two_ranks_fsdp2")
def test_decoupled_weights_the_prefix_and_clips_around_the_current_policy(run):
    _, mixed = finished(run, "two_ranks_fsdp2")
    for row in mixed:
        prefix = row["prefix_mask"].bool()
        assert torch.equal(row["old_log_probs"], row["recomputed_log_probs"])
        weight = (row["recomputed_log_probs"] - row["rollout_log_probs"]).exp().clamp(max=2.0)
        if prefix.all():
            continue
        plain = row["advantages"][~prefix][0]
        torch.testing.assert_close(row["advantages"][prefix], plain * weight[prefix])


@pytest.mark.runs("two_ranks_fsdp2")
def test_split_baseline_centres_mixed_and_on_policy_responses_apart(run):
    two, _ = finished(run, "two_ranks_fsdp2")
    rows = two.rows(4)
    for index in {int(row["index"]) for row in rows}:
        for kind in (True, False):
            group = [r for r in rows if int(r["index"]) == index and bool(r["prefix_mask"].any()) is kind]
            if len(group) >= 2:
                assert sum(r["advantages"][-1].item() for r in group) == pytest.approx(0, abs=1e-4)


@pytest.mark.runs("two_ranks_fsdp")
def test_masked_leaves_the_prefix_out_of_the_loss(run):
    _, mixed = finished(run, "two_ranks_fsdp")
    for row in mixed:
        prefix = row["prefix_mask"].bool()
        assert not row["response_mask"][prefix].any() and not row["advantages"][prefix].any()
        assert row["response_mask"][~prefix].all()
