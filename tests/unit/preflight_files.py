"""What the preflight tests look at: model folders without weights, data files, shipped examples and run scripts."""

import copy
import functools
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import hydra
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig, OmegaConf, open_dict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from soup_verl.launch.preflight import Hardware

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "recipe" / "soup" / "config"
NEEDS_VLLM_FOR_CPUS = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is not None and "cpu" not in importlib.metadata.version("vllm"),
    reason="this environment's vLLM is for GPUs, and a rehearsal refuses it",
)
DATA = Path(os.environ.get("SOUP_TEST_DATA") or ROOT.parent / "shared" / "data")
QWEN_TOKENIZER = DATA / "qwen25_tokenizer_hf"
R1_TOKENIZER = DATA / "r1_distill_tokenizer_like"
EIGHT_GPUS = Hardware(gpus=8, gpu_bytes=80 << 30, host_bytes=1 << 40, disk_bytes=10 << 40, described=True)

COMMON = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": False}
QWEN_7B = COMMON | {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 16384,
}
R1_1_5B = QWEN_7B | {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 131072,
}
SMALL = COMMON | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 300,
    "max_position_embeddings": 256,
}
TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ':' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}"
)
TRAINING = [
    "data.train_batch_size=128",
    "data.max_prompt_length=1024",
    "data.max_response_length=8192",
    "actor_rollout_ref.rollout.n=8",
    "actor_rollout_ref.rollout.tensor_model_parallel_size=2",
    "actor_rollout_ref.actor.ppo_mini_batch_size=64",
    "actor_rollout_ref.actor.use_dynamic_bsz=true",
    "trainer.total_training_steps=100",
    "trainer.save_freq=20",
    "trainer.max_actor_ckpt_to_keep=2",
]
"""A run that an 8-GPU node can do."""


def examples() -> list[str]:
    """`ablations=age` and so on, one a shipped file."""
    files = sorted(p for folder in ("domains", "ablations", "neighbors") for p in (CONFIG / folder).glob("*.yaml"))
    return [f"{p.parent.name}={p.stem}" for p in files]


def scripts() -> list[str]:
    """The recipe's run scripts."""
    return sorted(p.name for p in (ROOT / "recipe" / "soup").glob("run_*.sh"))


def script_settings(name: str, *given: str, **knobs: str) -> list[str]:
    """The settings that a run script would train with."""
    return printed_settings(["bash", str(ROOT / "recipe" / "soup" / name), *given], **knobs)


def printed_settings(command: list[str], **knobs: str) -> list[str]:
    """What a run script prints with DRY_RUN=1: its settings, one a line."""
    environment = {**os.environ, "DRY_RUN": "1", **knobs}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=True)
    return done.stdout.splitlines()


def compose(*settings: str) -> DictConfig:
    """The configuration of a command line, by Hydra: most of a second."""
    with hydra.initialize_config_dir(str(CONFIG), version_base=None):
        return hydra.compose("soup_trainer", overrides=list(settings))


@functools.cache
def _composed(*settings: str) -> DictConfig:
    return compose(*settings)


def configure(*settings: str, platform: str = "gpu", example: str | None = None, **more: object) -> DictConfig:
    """The recipe's configuration with changes, as `compose` would give it, in a tenth of the time.

    Args:
        settings: as on the command line.
        example: one of `examples()`.
        more: settings again, with `__` for a dot.
    """
    config = copy.deepcopy(_composed(f"platform={platform}"))
    if example is not None:
        with open_dict(config):  # as in Hydra, a file may have keys of its own
            config.merge_with(OmegaConf.load(CONFIG / f"{example.replace('=', '/')}.yaml"))
    config.merge_with_dotlist(list(settings))
    config.merge_with_dotlist([f"{key.replace('__', '.')}={value}" for key, value in more.items()])
    return config


def byte_tokenizer(*, eos: str | None = "</s>", template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A token a byte, so that lengths can be counted by hand."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos, pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<s>", "</s>"]})
    tokenizer.chat_template = template
    return tokenizer


def write_model(folder: Path, config: dict, *, tokenizer: PreTrainedTokenizerFast | Path | None = None) -> Path:
    """A model folder without weights; the tokenizer's EOS is the model's unless `config` says otherwise."""
    from transformers import AutoTokenizer

    folder.mkdir(parents=True)
    if isinstance(tokenizer, Path):
        for file in tokenizer.iterdir():
            if file.name != "config.json":
                shutil.copyfile(file, folder / file.name)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    else:
        tokenizer = tokenizer or byte_tokenizer()
        tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": tokenizer.eos_token_id} | config))
    return folder


def row(question: str = "2+2=", i: int = 0) -> dict:
    return {
        "data_source": "sums",
        "prompt": [{"role": "user", "content": question}],
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"index": i},
    }


def write_rows(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
