import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from recipe.soup.main_series import compose
from soup_verl.acceptance import stack
from soup_verl.launch.run_rules import check_run
from soup_verl.method.config import SoupConfig


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("name", stack.RUNS)
def test_the_recipe_takes_the_settings(tmp_path, platform, name):
    config = OmegaConf.to_container(compose([*stack.settings(tmp_path, platform), *stack.RUNS[name]]), resolve=True)
    soup = SoupConfig.parse(config["soup"])
    assert soup.source == name
    check_run(soup, config)


def test_the_model_speaks_the_templates_language(tmp_path):
    stack.make_assets(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+2="}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text == "<|im_start|>user\n1+2=<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.unk_token_id not in ids and len(ids) < 64


METRICS = {"soup/prefix_tokens_share": 0.25, "soup/alignment_error_mean": 0.01}


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ({3: METRICS}, None),
        ({2: METRICS}, "prefixes are 0.00"),
        ({3: METRICS | {"soup/prefix_tokens_share": 0.0}}, "prefixes are 0.00"),
        ({3: METRICS | {"soup/alignment_error_mean": 0.2}}, "0.2000 nats apart"),
        ({3: METRICS | {"soup/alignment_error_mean": float("nan")}}, "nan nats apart"),
    ],
)
def test_a_run_without_prefixes_or_with_another_policys_log_probs_fails(steps, told):
    if told is None:
        assert stack._told("lookahead", steps) == (
            "lookahead: prefixes are 0.25 of the tokens, engine and actor 0.0100 nats apart"
        )
    else:
        with pytest.raises(AssertionError, match=told):
            stack._told("lookahead", steps)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(stack, "version", lambda package: None if package in ("vllm", "ray") else "1.0")
    with pytest.raises(stack.Skip, match="not installed: vllm, ray"):
        stack.check(torch.device("cuda"))
    with pytest.raises(stack.Skip, match="needs a GPU"):
        stack.check(torch.device("cpu"))
