"""Two nodes of a Ray cluster, an FSDP2 rank each, train together; one is lost, the run ends, and is resumed with its
history. `decoupled` and `split` do what their formulas say."""

import json

import pytest
import torch

pytestmark = pytest.mark.runs("two_nodes")


@pytest.fixture
def finished(run):
    two = run("two_nodes")
    assert two.code == 0, two.output[-3000:]
    return two


def test_a_lost_node_ends_the_run(finished):
    lost = json.loads((finished.folder / "lost.json").read_text())
    assert lost["code"] != 0
    assert lost["output"].strip().splitlines()[-1].startswith("error: ")


def test_each_node_held_one_rank(finished):
    shards = {p.name for p in (finished.folder / "global_step_4" / "actor").glob("model_*")}
    assert shards == {f"model_world_size_2_rank_{rank}.pt" for rank in (0, 1)}
    assert "127.0.0.1" in finished.output and "127.0.0.2" in finished.output


def test_the_resumed_run_has_the_kept_policies_of_both_ranks(finished):
    """Steps 3 and 4 mix with policies 1 and 2, kept before the node was lost."""
    for step, versions in ((3, {1}), (4, {1, 2})):
        used = {int(row["policy_version"]) for row in finished.rows(step)} - {-1}
        assert used and used <= versions
    assert {1, 3, 4} <= set(finished.metrics())  # step 2 was saved, and the node was gone before it was logged


def test_decoupled_weights_the_prefix_and_clips_around_the_current_policy(finished):
    mixed = [row for row in finished.rows(4) if row["prefix_mask"].any()]
    assert len(mixed) >= 12
    for row in mixed:
        prefix = row["prefix_mask"].bool()
        assert torch.equal(row["old_log_probs"], row["recomputed_log_probs"])
        weight = (row["recomputed_log_probs"] - row["rollout_log_probs"]).exp().clamp(max=2.0)
        if prefix.all():
            continue
        plain = row["advantages"][~prefix][0]
        torch.testing.assert_close(row["advantages"][prefix], plain * weight[prefix])


def test_split_baseline_centres_mixed_and_on_policy_responses_apart(finished):
    rows = finished.rows(4)
    for index in {int(row["index"]) for row in rows}:
        for kind in (True, False):
            group = [r for r in rows if int(r["index"]) == index and bool(r["prefix_mask"].any()) is kind]
            if len(group) >= 2:
                assert sum(r["advantages"][-1].item() for r in group) == pytest.approx(0, abs=1e-4)


def test_the_loss_is_finite(finished):
    metrics = finished.metrics()
    assert all(abs(metrics[step]["actor/pg_loss"]) < 100 and metrics[step]["actor/grad_norm"] > 0 for step in (1, 3, 4))
