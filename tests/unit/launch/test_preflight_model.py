"""What preflight says of a model's folder."""

import json

import pytest

from soup_verl.launch.preflight import look_at_data, look_at_model
from soup_verl.launch.preflight.model import _packing_findings
from soup_verl.launch.preflight.run_settings import MODEL
from soup_verl.tasks.context_window import write_copy
from tests.unit import preflight_files as files
from tests.unit import tokenizer_families as families
from tests.unit.preflight_settings import ROLLOUT, by_name, run_with


def look(folder, changes=None):
    model = look_at_model(run_with(changes, actor_rollout_ref__model__path=folder))
    return model, by_name(model.findings)


def test_a_good_model_folder(tmp_path):
    model, found = look(files.write_model(tmp_path / "m", files.SMALL))
    assert {f.verdict for f in found.values()} == {"ok"}
    # embedding and output layer; two layers: q, o; k, v; biases; mlp; norms
    assert model.shape.params == 2 * 300 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 64 + 3 * 32 * 64 + 64) + 32
    assert (model.shape.kv_heads, model.shape.head_dim, model.tokenizer is None) == (4, 4, False)


def test_a_tied_embedding_counts_once(tmp_path):
    free, _ = look(files.write_model(tmp_path / "free", files.SMALL))
    tied, _ = look(files.write_model(tmp_path / "tied", files.SMALL | {"tie_word_embeddings": True}))
    assert free.shape.params - tied.shape.params == 300 * 32 and tied.shape.tied


def test_a_tokenizer_without_chat_template_is_refused(tmp_path):
    folder = files.write_model(tmp_path / "m", files.SMALL, tokenizer=files.byte_tokenizer(template=None))
    model, found = look(folder)
    error = str(found["chat template"].error)
    assert model.tokenizer is None and error.startswith("actor_rollout_ref.model.path=") and "chat_template" in error
    template = {"actor_rollout_ref.model.custom_chat_template": files.TEMPLATE}
    assert look(folder, template)[1]["chat template"].verdict == "ok"


def test_a_window_that_is_too_small_is_refused_with_the_way_to_widen_it(tmp_path):
    folder = files.write_model(tmp_path / "m", files.SMALL | {"max_position_embeddings": 99})
    finding = look(folder)[1]["context window"]
    assert str(finding.error).startswith("data.max_response_length=60: expected at most 59 tokens")
    assert "python -m soup_verl.tasks.context_window" in str(finding.error)
    assert look(folder, {f"{ROLLOUT}.response_length": 59})[1]["context window"].verdict == "ok"


def test_a_window_widened_for_training_alone_is_a_warning(tmp_path):
    folder = files.write_model(tmp_path / "m", files.SMALL | {"max_position_embeddings": 64})
    override = {"actor_rollout_ref.model.override_config.max_position_embeddings": 128}
    assert look(folder, override)[1]["context window"].verdict == "warning"


def test_a_response_ends_at_the_tokenizers_and_at_the_models_end_tokens(tmp_path):
    folder = files.write_model(tmp_path / "m", files.SMALL)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    finding = look(folder)[1]["end of sequence"]
    assert finding.verdict == "ok" and all(name in finding.have for name in ("(7)", "(8)", "</s>"))
    endless = files.byte_tokenizer(eos=None)
    folder = files.write_model(tmp_path / "endless", files.SMALL | {"eos_token_id": None}, tokenizer=endless)
    assert look(folder)[1]["end of sequence"].verdict == "warning"


def test_a_template_that_ends_turns_with_a_token_that_stops_nothing_is_a_warning_with_its_mend(tmp_path):
    folder = files.write_model(tmp_path / "m", files.SMALL, tokenizer=files.byte_tokenizer(eos="<end>"))
    finding = look(folder)[1]["chat template"]
    assert finding.verdict == "warning" and "</s>" in finding.have and "soup_verl.tasks.context_window" in finding.how
    write_copy(folder, tmp_path / "copy")
    assert look(tmp_path / "copy")[1]["chat template"].verdict == "ok"


WITHOUT_WARNING = ("r1", "qwen3", "llama")


@pytest.mark.parametrize("family", [*WITHOUT_WARNING, "qwen_math"])
def test_families_of_tokenizers_pass_or_are_told_the_mend(family, tmp_path):
    folder = getattr(families, f"write_{family}_like")(tmp_path / "m")
    model, found = look(folder)
    wanting = {name: finding for name, finding in found.items() if finding.verdict != "ok"}
    assert wanting.keys() == (set() if family in WITHOUT_WARNING else {"chat template"})
    assert ("verl's default" in found["prompt builder"].have) == (family == "r1")
    rows = files.write_rows(tmp_path / "rows.parquet", [files.row(i=i) for i in range(128)])
    run = run_with({"data.max_prompt_length": 200}, data__train_files=rows, data__val_files=rows)
    data = look_at_data(run, model.tokenizer, model.model_type)
    assert data.prompts[0].endswith("<think>\n" if family == "r1" else "\n")
    assert data.prompts[0].count("2+2=") == 1 and {f.verdict for f in data.findings} == {"ok"}


def test_a_template_that_wants_a_system_prompt_refuses_rows_without_one(tmp_path):
    folder = families.write_family(
        tmp_path / "m",
        families.QWEN3,
        template=families.NEEDS_SYSTEM,
        specials=("<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        pad="<|im_end|>",
    )
    model, found = look(folder)
    assert found["chat template"].verdict == "ok"  # its end of a turn was read with a system prompt
    with_system = files.row() | {"prompt": [{"role": "system", "content": "Add."}, *files.row()["prompt"]]}
    for rows, verdict in (([files.row()], "no"), ([with_system] * 16, "ok")):
        path = files.write_rows(tmp_path / "rows.parquet", rows)
        data = look_at_data(run_with(data__train_files=path, data__val_files=path), model.tokenizer, model.model_type)
        (finding,) = [f for f in data.findings if f.name in ("train prompts", "train prompt length")]
        assert finding.verdict == verdict
        assert verdict == "ok" or "row 0: a system prompt first" in str(finding.error)


def test_a_template_without_a_generation_prompt_is_shown_as_it_is(tmp_path):
    folder = families.write_family(
        tmp_path / "m",
        families.QWEN3,
        template=families.NO_GENERATION_PROMPT,
        specials=("<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
    )
    model, found = look(folder)
    finding = found["generation prompt"]
    assert finding.verdict == "warning" and "add_generation_prompt" in finding.how
    assert look(families.write_r1_like(tmp_path / "r1"))[1]["generation prompt"].have == "'<｜Assistant｜><think>\\n'"


def test_a_template_whose_questions_end_with_the_opening_lacks_none(tmp_path):
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<s>[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
    )
    folder = files.write_model(tmp_path / "m", files.SMALL, tokenizer=files.byte_tokenizer(template=template))
    finding = look(folder)[1]["generation prompt"]
    assert (finding.verdict, finding.have) == ("ok", "''")


def test_token_ids_beyond_the_embedding_are_a_warning(tmp_path):
    folder = files.write_model(tmp_path / "m", files.SMALL | {"vocab_size": 100, "eos_token_id": 5})
    assert look(folder)[1]["vocabulary"].verdict == "warning"


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("config.json", '{"model_type": "no_such_model"}', "configuration"),
        ("config.json", "not json", "configuration"),
        ("config.json", json.dumps(files.SMALL | {"architectures": None}), "architecture"),
        ("tokenizer.json", "not json", "tokenizer"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused_by_name(tmp_path, file, text, name):
    folder = files.write_model(tmp_path / "m", files.SMALL)
    (folder / file).write_text(text)
    finding = look(folder)[1][name]
    assert finding.verdict == "no" and str(folder) in str(finding.error)


def test_a_remote_model_is_not_looked_at():
    model, found = look("hdfs://host/model")
    assert (model.shape, found["path"].verdict) == (None, "warning")


@pytest.mark.parametrize(
    ("model_type", "device", "refused"),
    [("qwen2_vl", "cpu", True), ("glm4v", "cpu", True), ("qwen3_vl", "cpu", False), ("qwen2_vl", "cuda", False)],
)
def test_packing_is_refused_on_a_cpu_where_verls_attention_needs_a_gpu(model_type, device, refused):
    """tests/contract/test_image_worker_contract.py trains a Qwen3-VL packed, test_images_contract.py a Qwen2-VL not."""
    run = run_with({"trainer.device": device, f"{MODEL}.use_remove_padding": True})
    errors = [str(finding.error) for finding in _packing_findings(run, model_type)]
    expected = f"{MODEL}.use_remove_padding=True: expected false on a CPU for model_type={model_type}. Of models that"
    assert [error.startswith(expected) for error in errors] == [True] * refused
