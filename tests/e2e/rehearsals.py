"""Model folders without weights, and rehearsals of the run scripts with them."""

import json
import shutil
import time
from pathlib import Path

from tests.e2e.launch import ROOT, Run, execute
from tests.unit.preflight_files import QWEN_7B, QWEN_TOKENIZER, R1_TOKENIZER, write_model
from tests.unit.tokenizer_families import write_llama_like, write_qwen3_like, write_qwen_math_like, write_r1_like


def write_qwen(folder: Path) -> Path:
    """Qwen2.5-Math-7B's configuration with its tokenizer, or a small one like it where that is not at hand."""
    config = QWEN_7B | {"max_position_embeddings": 4096, "rope_theta": 10000}
    if QWEN_TOKENIZER.is_dir():
        return write_model(folder, config, tokenizer=QWEN_TOKENIZER)
    return write_qwen_math_like(folder)


def write_r1(folder: Path) -> Path:
    """R1-Distill-Qwen-1.5B's configuration and tokenizer, or a small one like it with as wide a window."""
    if R1_TOKENIZER.is_dir():
        return Path(shutil.copytree(R1_TOKENIZER, folder, copy_function=shutil.copyfile))
    file = write_r1_like(folder) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 131072}))
    return folder


MODELS = {"qwen": write_qwen, "r1": write_r1, "llama": write_llama_like, "qwen3": write_qwen3_like}
SHORT = {"RESPONSE_TOKENS": "2048"}  # their window is 4096
SCRIPTS = {
    "rehearsed_qwen": ("run_qwen2.5_math_7b.sh", "qwen", "1", {}),
    "rehearsed_r1_snapshot": ("run_r1_distill_qwen_1.5b_snapshot.sh", "r1", "1", {}),
    "rehearsed_qwen_snapshot": ("run_qwen2.5_math_7b_snapshot.sh", "qwen", "steps", {}),
    "rehearsed_r1": ("run_r1_distill_qwen_1.5b.sh", "r1", "steps", {}),
    "rehearsed_llama": ("run.sh", "llama", "steps", SHORT | {"DATA": "gsm8k", "BENCHMARKS": "gsm8k-test"}),
    "rehearsed_qwen3": ("run.sh", "qwen3", "steps", SHORT | {"DATA": "math-level3-5", "METHOD": "grpo"}),
}
"""By name: script, model, REHEARSE, further knobs."""


def rehearse(name: str, folder: Path, *settings: str) -> Run:
    """The rehearsal, in a folder with a blank in its name; the model's folder cannot be written."""
    script, model, extent, knobs = SCRIPTS[name]
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
        **knobs,
    }
    started = time.monotonic()
    code, output = execute(["bash", str(ROOT / "recipe/soup" / script), *settings], folder, environment=environment)
    return Run(folder, code, output, time.monotonic() - started)


def record(run: Run) -> dict:
    return json.loads((run.folder / "re hearsal" / "rehearsal.json").read_text())
