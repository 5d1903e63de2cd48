"""What the evaluation leans on in verl: its model_merger's command line, its loader of reward functions, and prompts
made of the same tokens as in training."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import verl
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.model_merger.base_model_merger import generate_config_from_args, parse_args
from verl.model_merger.fsdp_model_merger import FSDPModelMerger
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from soup_verl.evaluation import checkpoints, scoring
from soup_verl.evaluation.problems import Problem, prompt_ids
from soup_verl.exporting import ExportError
from soup_verl.exporting.model import check_adapter
from tests.e2e.assets import COMMON
from tests.unit.preflight_files import SMALL

pytestmark = pytest.mark.contract


@pytest.fixture
def tokenizer(monkeypatch):
    monkeypatch.syspath_prepend(str(COMMON))
    from tiny_model import build_tokenizer

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


def test_the_merger_reads_the_files_that_we_look_for_and_rounds_to_bfloat16(tmp_path):
    (tmp_path / "fsdp_config.json").write_text('{"world_size": 1}')
    torch.save({"w": torch.tensor([1.0 + 2**-10])}, tmp_path / "model_world_size_1_rank_0.pt")
    merger = FSDPModelMerger.__new__(FSDPModelMerger)
    merger.config, merged = SimpleNamespace(local_dir=str(tmp_path), operation="merge", hf_upload=False), []
    merger.save_hf_model_and_tokenizer = merged.append
    merger.merge_and_save()
    (weights,) = merged
    assert weights["w"].dtype == torch.bfloat16 and weights["w"].item() == 1.0


def test_the_merger_puts_an_adapter_beside_its_base_model(tmp_path):
    """Where we find it and merge it."""
    merger = FSDPModelMerger.__new__(FSDPModelMerger)
    merger.config, merger._load_lora_train_meta = SimpleNamespace(target_dir=str(tmp_path)), lambda: None
    adapter = {f"base_model.model.q.lora_{side}.default.weight": torch.ones(2, 2) for side in "AB"}
    weights = adapter | {"base_model.model.q.base_layer.weight": torch.zeros(2, 2)}
    with pytest.warns(UserWarning, match="LoRA alpha"):
        path = merger.save_lora_adapter(weights)
    assert Path(path) == tmp_path / "lora_adapter" and (tmp_path / "lora_adapter/adapter_model.safetensors").exists()
    assert list(weights) == ["q.weight"] and weights["q.weight"].eq(0).all()


def test_verl_takes_the_function_of_the_same_name_where_none_is_named():
    verls = OmegaConf.load(Path(verl.__file__).parent / "trainer/config/reward/reward.yaml")
    assert verls.custom_reward_function.name == scoring.FUNCTION


def test_verl_gives_reward_functions_what_we_give_them(tokenizer):
    """The response's text without special tokens; a bare number is the accuracy too."""
    given = {}

    def compute_score(**arguments):
        given.update(arguments)
        return 0.5

    text = tokenizer("1 + 2", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*text, tokenizer.eos_token_id, tokenizer.pad_token_id]])
    mask = torch.tensor([[1] * (len(text) + 1) + [0]])
    row = {"data_source": "sums", "reward_model": {"ground_truth": "3"}, "extra_info": {"index": 4}}
    data = DataProto.from_dict(
        tensors={"responses": ids, "attention_mask": mask},
        non_tensors={name: np.array([value], dtype=object) for name, value in row.items()},
    )
    manager = NaiveRewardManager(None, tokenizer, compute_score)
    found = manager.loop.run_until_complete(manager.run_single(data))
    assert found == {"reward_score": 0.5, "reward_extra_info": {"acc": 0.5}}
    assert (given["data_source"], given["ground_truth"]) == ("sums", "3")
    assert given["solution_str"] == tokenizer.decode(text) and given["extra_info"]["index"] == 4
    assert set(given) == {"data_source", "solution_str", "ground_truth", "extra_info"}


def test_a_run_with_lora_says_so_in_a_file_of_its_checkpoint(tmp_path):
    """And one without does not: `--adapter` of soup_verl.export is refused by it."""
    manager = object.__new__(FSDPCheckpointManager)
    manager.rank = 0
    with torch.device("meta"):
        plain = Qwen2ForCausalLM(Qwen2Config(**{k: v for k, v in SMALL.items() if k != "architectures"}))
    manager._save_lora_train_meta(str(tmp_path), plain)
    with pytest.raises(ExportError, match="is of a run without LoRA"):
        check_adapter(tmp_path, "CKPT=x")
    manager._save_lora_train_meta(str(tmp_path), get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj"])))
    check_adapter(tmp_path, "CKPT=x")
