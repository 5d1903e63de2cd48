"""What the evaluation leans on in verl: its model_merger's command line, its loader of reward functions, and prompts
made of the same tokens as in training."""

import inspect
import sys
from pathlib import Path

import pytest
import verl
from omegaconf import OmegaConf
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.model_merger.base_model_merger import BaseModelMerger, generate_config_from_args, parse_args
from verl.model_merger.fsdp_model_merger import FSDPModelMerger
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from soup_verl.evaluation import checkpoints, scoring
from soup_verl.evaluation.problems import Problem, prompt_ids
from tests.e2e.assets import QUICKSTART

pytestmark = pytest.mark.contract


@pytest.fixture
def tokenizer(monkeypatch):
    monkeypatch.syspath_prepend(str(QUICKSTART))
    from prepare import build_tokenizer

    return build_tokenizer()


@pytest.mark.parametrize("arguments", [{}, {"add_generation_prompt_twice": True}])
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_prompts_are_the_tokens_that_training_samples_from(tokenizer, model_type, arguments):
    tokenizer.chat_template += "{% if add_generation_prompt_twice %}1{% endif %}"
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 2 = "}]
    builder = create_continuous_token_builder(tokenizer, hf_model_type=model_type, chat_template_kwargs=arguments)
    ours = prompt_ids(tokenizer, Problem("f", 0, messages, "", "", {}), arguments)
    assert ours == builder.build_initial_tokens(messages)
    assert tokenizer.decode(ours).endswith("1") == bool(arguments)


def test_the_merger_understands_our_command(tmp_path, monkeypatch):
    actor = tmp_path / "run" / "global_step_3" / "actor"
    (actor / "huggingface").mkdir(parents=True)
    (actor / "huggingface" / "config.json").write_text("{}")
    (actor / "fsdp_config.json").write_text('{"world_size": 1}')
    (actor / "model_world_size_1_rank_0.pt").write_bytes(b"")
    seen = []

    def run(command, **_):
        seen.append(command)
        raise InterruptedError

    monkeypatch.setattr(checkpoints.subprocess, "run", run)
    with pytest.raises(InterruptedError):
        checkpoints.resolve(str(actor), option="--model", merged=tmp_path / "merged", announce=print)
    assert seen[0][:3] == [sys.executable, "-m", "verl.model_merger"]
    monkeypatch.setattr(sys, "argv", seen[0][2:])
    config = generate_config_from_args(parse_args())
    assert (config.operation, config.backend, Path(config.local_dir)) == ("merge", "fsdp", actor)
    assert Path(config.hf_model_config_path) == actor / "huggingface"


def test_the_merger_reads_the_files_that_we_look_for_and_rounds_to_bfloat16():
    source = inspect.getsource(FSDPModelMerger)
    assert '"fsdp_config.json"' in source and 'config.get("world_size"' in source
    assert 'f"model_world_size_{world_size}_rank_{rank}.pt"' in source
    assert "tensor.bfloat16()" in source


def test_the_merger_puts_an_adapter_beside_its_base_model():
    assert '"lora_adapter"' in inspect.getsource(BaseModelMerger.save_lora_adapter)


def test_verl_takes_the_function_of_the_same_name_where_none_is_named():
    verls = OmegaConf.load(Path(verl.__file__).parent / "trainer/config/reward/reward.yaml")
    assert verls.custom_reward_function.name == scoring.FUNCTION


def test_verl_gives_reward_functions_what_we_give_them():
    source = inspect.getsource(NaiveRewardManager.run_single)
    for name in ("data_source", "solution_str", "ground_truth", "extra_info"):
        assert f"{name}=" in source
    assert "skip_special_tokens=True" in source
    assert 'reward_extra_info["acc"] = score' in source
