"""Every domain's grader scores responses inside verl's reward workers as it does here."""

from collections import defaultdict

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from soup_verl.tasks.domains import DOMAINS
from tests.e2e.domains import score
from tests.faults.sandbox_under_fire import NEEDS_NAMESPACES

pytestmark = [pytest.mark.runs("domains"), NEEDS_NAMESPACES]


@pytest.fixture
def finished(run):
    trained = run("domains")
    assert trained.code == 0, trained.output[-3000:]
    return trained


@pytest.fixture
def asked(finished):
    return pq.read_table(finished.folder / "data" / "every_domain.parquet").to_pylist()


def test_each_response_has_the_score_of_its_domain(finished, asked, made_assets):
    tokenizer, scores = AutoTokenizer.from_pretrained(made_assets / "model"), defaultdict(list)
    for trained in (*finished.rows(1), *finished.rows(2)):
        row, text = asked[trained["index"]], tokenizer.decode(trained["responses"], skip_special_tokens=True)
        given = (row["data_source"], text, row["reward_model"]["ground_truth"], row["extra_info"])
        scores[row["extra_info"]["domain"]].append(score(*given)["score"])
        assert float(trained["rm_scores"].sum()) == pytest.approx(scores[row["extra_info"]["domain"]][-1]), given
    assert scores.keys() == DOMAINS.keys() and {len(of_domain) for of_domain in scores.values()} == {2 * 2 * 4}
    del scores["instructions"]  # which do not say what is right
    assert all(max(of_domain) == 1 and min(of_domain) == 0 for of_domain in scores.values()), scores


def test_they_are_trained_and_validated_together(finished, asked):
    metrics = finished.metrics()
    assert metrics[2]["actor/grad_norm"] > 0 and metrics[2]["soup/prefix_tokens_total"] > 0
    assert all(f"val-core/{row['data_source']}/acc/mean@1" in metrics[0] for row in asked)
