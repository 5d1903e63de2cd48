"""Two nodes of a Ray cluster train together; one is lost, the run ends, and is resumed with its history."""

import json

import pytest

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
