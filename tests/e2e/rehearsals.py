"""Model folders without weights, and rehearsals of the run scripts with them."""

import json
import shutil
import time
from pathlib import Path

from tests.e2e.assets import REWARDS
from tests.e2e.launch import ROOT, Run, execute
from tests.unit.preflight_files import QWEN_7B, QWEN_TOKENIZER, R1_TOKENIZER, row, write_model, write_rows
from tests.unit.tokenizer_families import write_llama_like, write_qwen3_like, write_qwen_math_like, write_r1_like


def write_qwen(folder: Path) -> Path:
    """Qwen2.5-Math-7B's configuration with its tokenizer, or a small one like it where that is not at hand."""
    window = {"max_position_embeddings": 4096, "rope_theta": 10000}
    if QWEN_TOKENIZER.is_dir():
        return write_model(folder, QWEN_7B | window, tokenizer=QWEN_TOKENIZER)
    return _change(write_qwen_math_like(folder), **window)


def write_r1(folder: Path) -> Path:
    """R1-Distill-Qwen-1.5B's configuration and tokenizer, or a small one like it with as wide a window."""
    if R1_TOKENIZER.is_dir():
        return Path(shutil.copytree(R1_TOKENIZER, folder, copy_function=shutil.copyfile))
    return _change(write_r1_like(folder), max_position_embeddings=131072)


def _change(folder: Path, **fields: int) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


def write_own_data(folder: Path) -> dict[str, str]:
    """Data and a reward function of one's own, whose rewards differ by response; the knobs that name them."""
    for name, questions in (("train", 30), ("val", 3)):
        rows = [row("What? " * (i + 1), i) | {"data_source": "varied"} for i in range(questions)]
        write_rows(folder / f"{name}.parquet", rows)
    (folder / "reward.py").write_text(REWARDS)
    files = {"DATA": "train.parquet", "BENCHMARKS": "val.parquet", "REWARD_PATH": "reward.py"}
    return {knob: str(folder / name) for knob, name in files.items()}


MODELS = {"qwen": write_qwen, "r1": write_r1, "llama": write_llama_like, "qwen3": write_qwen3_like}
SMALL = {"RESPONSE_TOKENS": "2048", "PROMPTS": "16", "MINI_BATCH": "16"}  # a window of 4096, 30 rows of one's own
CODE = {"DATA": "mbpp", "BENCHMARKS": "mbpp-test humaneval-plus"}
OWN = ("reward.custom_reward_function.name=score",)
SCRIPTS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "rehearsed_qwen": ("run_qwen2.5_math_7b.sh", "qwen", "1", {}),
    "rehearsed_r1_snapshot": ("run_r1_distill_qwen_1.5b_snapshot.sh", "r1", "steps", {}),
    "rehearsed_qwen_snapshot": ("run_qwen2.5_math_7b_snapshot.sh", "qwen", "steps", {}),
    "rehearsed_r1": ("run_r1_distill_qwen_1.5b.sh", "r1", "steps", {}),
    "rehearsed_llama": ("run.sh", "llama", "steps", SMALL),
    "rehearsed_code": ("run.sh domains=code", "qwen3", "steps", SMALL | CODE | {"METHOD": "grpo"}),
}
"""By name: script with its settings, model, REHEARSE, further knobs."""


def rehearse(name: str, folder: Path) -> Run:
    """The rehearsal, in a folder with a blank in its name; the model's folder cannot be written."""
    command, model, extent, knobs = SCRIPTS[name]
    script, *settings = command.split()
    folder.mkdir(parents=True, exist_ok=True)
    own = "DATA" not in knobs and script == "run.sh"
    model_folder = MODELS[model](folder / "a model")
    model_folder.chmod(0o555)
    environment = {
        "REHEARSE": extent,
        "MODEL_PATH": str(model_folder),
        "DATA_DIR": str(folder / "my data"),
        "REHEARSAL": str(folder / "re hearsal"),
        "PYTHON": "",
        "SOUP_IMPORT": "",
        "RAY_ADDRESS": "192.0.2.1:6379",  # of nobody: it must not be joined
        **(write_own_data(folder) if own else {}),
        **knobs,
    }
    started = time.monotonic()
    code, output = execute(
        ["bash", str(ROOT / "recipe/soup" / script), *settings, *(OWN if own else ())], folder, environment=environment
    )
    return Run(folder, code, output, time.monotonic() - started)


def record(run: Run) -> dict:
    return json.loads((run.folder / "re hearsal" / "rehearsal.json").read_text())
