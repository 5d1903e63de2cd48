"""What the card says, read back as the hub and a reader would."""

import json
from pathlib import Path

import pytest
import yaml

from soup_verl.exporting import ExportError
from soup_verl.exporting.card import CITATION, Facts, model_card, trained_from
from soup_verl.exporting.measured import those_of
from soup_verl.reporting.runs import read_evaluation, read_run
from tests.unit.exporting.folders import SETTINGS, write_checkpoint, write_evaluation

ROOT = Path(__file__).parents[3]


def facts(tmp_path, *, evaluations=(), **changed):
    step = write_checkpoint(tmp_path / "run", base=changed.pop("path", "Qwen/Qwen2.5-Math-7B"))
    run = read_run(step.parent, "run")
    given = {"name": "me/mine", "step": 2, "settings": SETTINGS, "base": trained_from(run), "adapter": False}
    return Facts(run=run, evaluations=evaluations, **given | changed)


def front_matter(card):
    begin, text, _ = card.split("---\n", maxsplit=2)
    assert begin == ""
    return yaml.safe_load(text)


def test_the_front_matter_is_what_the_hub_reads(tmp_path):
    folder = write_evaluation(tmp_path / "evaluation", model="m")
    found = front_matter(model_card(facts(tmp_path, evaluations=[read_evaluation(folder)])))
    (result,) = found.pop("model-index")[0]["results"]
    assert result["dataset"] == {"name": "math-500", "type": "math-500"}
    assert result["metrics"] == [{"type": "pass@8", "value": 0.5}]  # and not `truncated`, which is no benchmark's
    assert found == {
        "base_model": "Qwen/Qwen2.5-Math-7B",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["reinforcement-learning", "verl", "soup"],
    }


def test_the_body_has_the_numbers_the_code_the_data_and_the_settings(tmp_path):
    (tmp_path / "data").mkdir()
    report = {"kept": 12, "source": "hub:BytedTsinghua-SIA/DAPO-Math-17k", "licence": "Apache-2.0"}
    (tmp_path / "data" / "dapo.report.json").write_text(json.dumps(report))
    folder = write_evaluation(tmp_path / "evaluation", model="m")
    card = model_card(facts(tmp_path, evaluations=[read_evaluation(folder)]))
    for line in (
        "| val-soup/even/pass@8 | 0.5 |",  # of step 2
        "| val-core/even/acc/mean@8 | 0.2 |",
        "| pass@8 | 0.5 [0.25, 0.75] |",
        "| truncated | 0 |",
        "`soup_verl.evaluate`: n 8, temperature 0.6. Mean [95% interval over problems].",
        "| commit of soup-verl | 0123456789 |",
        "| packages | verl 0.9.1, torch 2.11.0 |",
        "| data | `dapo.parquet` (sha256:0123456789abcdef), 12 rows of hub:BytedTsinghua-SIA/DAPO-Math-17k, "
        "licence Apache-2.0 |",
        "vllm serve me/mine",
    ):
        assert line in card.splitlines(), line
    assert yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0]) == SETTINGS


def test_what_was_not_measured_or_recorded_is_said(tmp_path):
    given = facts(tmp_path, step=7)
    (tmp_path / "run" / "run.json").write_text("{}")
    card = model_card(Facts(**vars(given) | {"run": read_run(tmp_path / "run", "run")}))
    assert "Not evaluated with `soup_verl.evaluate`." in card and "No validation was logged at step 7." in card
    assert "| commit of soup-verl | not recorded |" in card and "| packages | not recorded |" in card
    assert "model-index" not in front_matter(card)


def test_no_local_path_is_in_the_card(tmp_path):
    """A folder of this machine is no model of the hub: its name alone stands there."""
    (tmp_path / "base").mkdir()
    card = model_card(facts(tmp_path, path=str(tmp_path / "base"), name="out"))
    assert str(tmp_path) not in card and "`base` after 2 steps" in card
    assert "base_model" not in front_matter(card)


@pytest.mark.parametrize(("estimator", "method"), [("soup", "GRPO"), ("grpo", "GRPO"), ("opo", "opo")])
def test_a_run_that_never_mixes_is_what_its_estimator_is(tmp_path, estimator, method):
    settings = {"soup.mixed_fraction": 0, "algorithm.adv_estimator": estimator}
    card = model_card(facts(tmp_path, settings=settings))
    assert front_matter(card)["tags"][-1] == method.lower() and f"2 steps of {method} (`soup.mixed" in card


@pytest.mark.parametrize(("rank", "room"), [(4, 8), (16, 16), (20, 32)])
def test_an_adapter_is_served_beside_its_model(tmp_path, rank, room):
    settings = SETTINGS | {"actor_rollout_ref.model.lora_rank": rank}
    card = model_card(facts(tmp_path, adapter=True, settings=settings))
    serve = f"vllm serve Qwen/Qwen2.5-Math-7B --enable-lora --max-lora-rank {room} --lora-modules mine=me/mine"
    assert serve in card.splitlines() and 'AutoPeftModelForCausalLM.from_pretrained("me/mine")' in card
    assert front_matter(card)["library_name"] == "peft"


def test_evaluations_are_matched_by_content_and_without_it_by_path(tmp_path):
    step = tmp_path / "run" / "global_step_2"
    evaluations = [
        read_evaluation(write_evaluation(tmp_path / name, model=model, fingerprint=digest, historical=historical))
        for name, model, digest, historical in (
            ("these", step / "actor", "d", []),
            ("older", step, "o", []),
            ("elsewhere", tmp_path / "copy", "d", []),
            ("mixed", step, "d", [["h", "e"]]),
        )
    ]

    def names(digest):
        return [e.folder.name for e in those_of([*evaluations, evaluations[0]], step, digest)]

    assert names("d") == ["these", "elsewhere"]
    assert names(None) == ["these", "older"]


def test_a_run_that_did_not_record_its_model_needs_it_named(tmp_path):
    step = write_checkpoint(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(ExportError, match="--base-model: not given, and .*config.yaml"):
        trained_from(read_run(step.parent, "run"))


def test_the_citation_is_the_one_of_this_repository():
    (paper,) = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    said = CITATION.replace("{", "").replace("}", "")
    assert paper["title"] in said and paper["url"] in said and f"= {paper['year']}" in said
    authors = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    assert authors in said
