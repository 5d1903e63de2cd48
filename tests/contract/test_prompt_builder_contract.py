"""verl's prompt builders with tokenizers of several families: which serves, what it renders, where a response ends."""

import asyncio

import pytest
from omegaconf import open_dict
from verl.utils.model import get_generation_config
from verl.utils.tokenizer import continuous_token_wiring as wiring
from verl.utils.tokenizer import hf_tokenizer

from soup_verl.evaluation.problems import Problem
from soup_verl.evaluation.problems import prompt_ids as evaluation_prompt
from soup_verl.stack import rollout
from soup_verl.stack.prompt_builder import fitting_model_type, prompt_builder
from soup_verl.tasks.chat_template import end_of_turn, stop_token_ids, with_eos
from tests.unit import preflight_files as files
from tests.unit import tokenizer_families as families

pytestmark = pytest.mark.contract

QUESTION = [{"role": "user", "content": "2+2=é"}]
WRITERS = {
    "r1": ("qwen2", families.write_r1_like, None, "<｜begin▁of▁sentence｜><｜User｜>2+2=é<｜Assistant｜><think>\n"),
    "qwen_math": (
        "qwen2",
        families.write_qwen_math_like,
        "qwen2",
        "<|im_start|>user\n2+2=é<|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen3": (
        "qwen3",
        families.write_qwen3_like,
        "qwen3",
        "<|im_start|>user\n2+2=é<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama": (
        "llama",
        families.write_llama_like,
        "llama",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n2+2=é<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
}


@pytest.mark.parametrize("family", WRITERS)
def test_training_evaluation_and_the_template_give_the_same_prompt(family, tmp_path):
    model_type, write, fitting, text = WRITERS[family]
    tokenizer = hf_tokenizer(str(write(tmp_path / "m")))
    assert fitting_model_type(model_type, tokenizer) == fitting
    ids = prompt_builder(tokenizer, model_type=fitting).build_initial_tokens(QUESTION)
    assert tokenizer.decode(ids) == text
    assert ids == evaluation_prompt(tokenizer, Problem("f", 0, QUESTION, "", "", {}), {})


def test_a_builder_that_refuses_is_why_the_default_one_serves(tmp_path, caplog):
    tokenizer = hf_tokenizer(str(families.write_r1_like(tmp_path / "m")))
    with pytest.raises(ValueError, match=r"<\|im_end\|>"):
        prompt_builder(tokenizer, model_type="qwen2")
    assert fitting_model_type("qwen2", tokenizer) is None
    assert "model_type=qwen2: Tokenizer does not define required token '<|im_end|>'" in caplog.text


def test_arguments_of_the_template_reach_it(tmp_path):
    tokenizer = hf_tokenizer(str(families.write_qwen3_like(tmp_path / "m")))
    builder = prompt_builder(tokenizer, model_type="qwen3", template_args={"enable_thinking": False})
    assert tokenizer.decode(builder.build_initial_tokens(QUESTION)).endswith("assistant\n<think>\n\n</think>\n\n")


TEXT_TYPES = [
    model_type
    for model_type, family in wiring._MODEL_TYPE_TO_FAMILY.items()
    if not wiring.get_continuous_token_builder_class(family).supports_multimodal()
]


@pytest.mark.parametrize("model_type", TEXT_TYPES)
def test_with_a_tokenizer_of_another_family_every_model_type_has_a_builder_that_renders_the_template(
    model_type, tmp_path
):
    tokenizer = hf_tokenizer(str(families.write_llama_like(tmp_path / "m")))
    builder = prompt_builder(tokenizer, model_type=fitting_model_type(model_type, tokenizer))
    assert tokenizer.decode(builder.build_initial_tokens(QUESTION)) == WRITERS["llama"][3]


# ---- real agent loops ----


class Asked(Exception):
    pass


class Client:
    """An LLM client that ends a session with what it was asked."""

    async def generate(self, request_id, *, prompt_ids, **_):
        raise Asked(prompt_ids)


@pytest.fixture
def make_worker(monkeypatch):
    """A worker that is no Ray actor; its sessions end before anything would be stored."""
    monkeypatch.setattr(rollout.tq, "init", lambda: None)

    def make(folder, **template_args):
        config = files.configure(platform="cpu", actor_rollout_ref__model__path=folder)
        with open_dict(config):
            config.data.apply_chat_template_kwargs = template_args
        return rollout.SoupAgentLoopWorker(config, Client())

    return make


def asked_with(worker, agent_name):
    """The ids that a session of an agent loop asks the engine with."""
    trajectory = {"step": 1, "sample_index": 0, "rollout_n": 0, "validate": False}
    fields = {"raw_prompt": QUESTION, "session_id": 0, "index": 0, "global_steps": 1}
    with pytest.raises(Asked) as asked:
        asyncio.run(worker._run_agent_loop({}, trajectory, agent_name=agent_name, **fields))
    return asked.value.args[0]


@pytest.mark.parametrize("family", WRITERS)
def test_every_session_and_prefix_asks_the_engine_with_the_templates_ids(family, make_worker, tmp_path):
    folder = WRITERS[family][1](tmp_path / "m")
    worker, tokenizer = make_worker(folder), hf_tokenizer(str(folder))
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert asked_with(worker, "soup_agent") == asked_with(worker, "single_turn_agent") == ids
    assert asyncio.run(worker.prompt_ids(1, [{"raw_prompt": QUESTION, "index": 0}])) == [ids]
    assert worker._prefix_sampler().eos_token_ids == stop_token_ids(str(folder), tokenizer)


def test_sessions_and_prefixes_render_with_the_arguments_of_the_template(make_worker, tmp_path):
    folder = families.write_qwen3_like(tmp_path / "m")
    worker = make_worker(folder, enable_thinking=False)
    ids = asked_with(worker, "soup_agent")
    assert asyncio.run(worker.prompt_ids(1, [{"raw_prompt": QUESTION, "index": 0}])) == [ids]
    assert hf_tokenizer(str(folder)).decode(ids).endswith("assistant\n<think>\n\n</think>\n\n")


@pytest.mark.skipif(not files.R1_TOKENIZER.is_dir(), reason=f"{files.R1_TOKENIZER} is not there")
def test_a_session_asks_with_these_ids_of_r1_distills_vocabulary(make_worker):
    # BOS once; <｜User｜>; "2", "+", "2", "=", "é"; <｜Assistant｜>; <think>; a new line
    known = [151646, 151644, 17, 10, 17, 28, 963, 151645, 151648, 198]
    assert asked_with(make_worker(files.R1_TOKENIZER), "soup_agent") == known


# ---- where a response ends ----


@pytest.mark.parametrize(
    ("family", "stops", "end"),
    [
        ("r1", ["<｜end▁of▁sentence｜>"], "<｜end▁of▁sentence｜>"),
        ("qwen_math", ["<|endoftext|>"], "<|im_end|>"),
        ("qwen3", ["<|endoftext|>", "<|im_end|>"], "<|im_end|>"),
        ("llama", ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"], "<|eot_id|>"),
    ],
)
def test_where_a_response_ends_is_told_alike_by_verl_and_vllm(family, stops, end, tmp_path):
    from vllm import SamplingParams
    from vllm.transformers_utils.config import try_get_generation_config

    folder = str(WRITERS[family][1](tmp_path / "m"))
    tokenizer = hf_tokenizer(folder)
    expected = set(tokenizer.convert_tokens_to_ids(stops))
    assert stop_token_ids(folder, tokenizer) == expected
    assert with_eos(get_generation_config(folder).eos_token_id, tokenizer) == expected
    asked = SamplingParams()
    asked.update_from_generation_config(
        try_get_generation_config(folder, trust_remote_code=False).to_diff_dict(), tokenizer.eos_token_id
    )
    assert asked.all_stop_token_ids == expected
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == end


@pytest.mark.skipif(not files.R1_TOKENIZER.is_dir(), reason=f"{files.R1_TOKENIZER} is not there")
def test_the_tokenizer_of_r1_distill_itself():
    tokenizer = hf_tokenizer(str(files.R1_TOKENIZER))
    assert fitting_model_type("qwen2", tokenizer) is None
    ids = prompt_builder(tokenizer, model_type=None).build_initial_tokens(QUESTION)
    assert tokenizer.decode(ids) == WRITERS["r1"][3] and ids.count(tokenizer.bos_token_id) == 1
    assert stop_token_ids(str(files.R1_TOKENIZER), tokenizer) == {tokenizer.eos_token_id}
