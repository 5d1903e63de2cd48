"""The model without its weights: configuration, size, context window, tokenizer, chat template, end of sequence."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soup_verl.launch.preflight.report import Finding, judged, refused
from soup_verl.launch.preflight.run_settings import MODEL, RunSettings
from soup_verl.launch.preflight.sizing import ModelShape
from soup_verl.stack.prompt_builder import fitting_model_type
from soup_verl.tasks.chat_template import end_of_turn, lacks_opening, opening_of_answer, stop_token_ids

TOPIC = "model"
PACKED_ON_A_CPU = ("qwen3_vl",)
"""Models that take images and whose packed attention verl leaves to transformers, so that `cpu/attention.py` serves."""
_WIDER = "python -m soup_verl.tasks.context_window makes a copy of the model with a wider window."
_STOPPING = "python -m soup_verl.tasks.context_window makes a copy of the model that stops there."


@dataclass
class Model:
    """What could be read; None for what could not, and why in `findings`."""

    shape: ModelShape | None = None
    tokenizer: Any = None  # only one that has a chat template
    model_type: str | None = None  # by which verl's prompt builder is chosen
    processor: Any = None  # of a model that takes images
    findings: list[Finding] = field(default_factory=list)


def look_at_model(run: RunSettings) -> Model:
    """Read configuration and tokenizer, count parameters, check what belongs together."""
    path = str(run.get(f"{MODEL}.path"))
    if "://" in path:
        return Model(findings=[judged(TOPIC, "path", False, need="a local folder or hub name", have=path)])
    model = Model()
    trust = run.get(f"{MODEL}.trust_remote_code", False)
    config = _read(model, run, "configuration", _read_config)
    if config is not None:
        model.findings += _architecture_findings(path, config)
        model.shape = _read(model, run, "size", lambda _run, _source: shape_of(config, trust_remote_code=trust))
        model.findings += _window_findings(run, config)
    tokenizer = _read(model, run, "tokenizer", _read_tokenizer)
    if tokenizer is not None:
        stops = stop_token_ids(_source(path), tokenizer) if config is not None else frozenset()
        model.findings += tokenizer_findings(path, tokenizer, stops, getattr(config, "vocab_size", 0))
        model.tokenizer = tokenizer if tokenizer.chat_template else None
        of_model = getattr(config, "model_type", None)
        if getattr(config, "vision_config", None) is not None:
            model.processor, finding = _read_processor(run, _source(path))
            model.findings += [finding, *_packing_findings(run, of_model)]
        model.model_type = fitting_model_type(of_model, tokenizer, model.processor)
        model.findings.append(_builder_finding(of_model, model.model_type))
    return model


def _read(model: Model, run: RunSettings, name: str, read: Any) -> Any:
    path = str(run.get(f"{MODEL}.path"))
    try:
        found = read(run, _source(path))
    except Exception as error:  # whatever transformers raises about files that are not ours
        expected = f"a model whose {name} transformers can read ({type(error).__name__}: {str(error)[:200]})"
        model.findings.append(refused(TOPIC, name, f"{MODEL}.path", path, expected))
        return None
    have = path
    if isinstance(found, ModelShape):
        have = f"{found.params:,} parameters, {found.layers} layers, vocabulary {found.vocab:,}"
    model.findings.append(judged(TOPIC, name, True, need="readable", have=have))
    return found


def _source(path: str) -> str:
    """What transformers takes for `path`: a folder, or a name on the hub."""
    folder = Path(path).expanduser()
    return str(folder) if folder.exists() else path


def _read_config(run: RunSettings, source: str) -> Any:
    from transformers import AutoConfig

    source = run.get(f"{MODEL}.hf_config_path", source)
    return AutoConfig.from_pretrained(source, trust_remote_code=run.get(f"{MODEL}.trust_remote_code", False))


def _read_tokenizer(run: RunSettings, source: str) -> Any:
    from verl.utils.tokenizer import hf_tokenizer

    source = run.get(f"{MODEL}.tokenizer_path", source)
    tokenizer = hf_tokenizer(source, trust_remote_code=run.get(f"{MODEL}.trust_remote_code", False))
    if template := run.get(f"{MODEL}.custom_chat_template"):
        tokenizer.chat_template = template
    return tokenizer


def _read_processor(run: RunSettings, source: str) -> tuple[Any, Finding]:
    """verl's processor of images, None with verl's reason where it has none."""
    from verl.utils.tokenizer import hf_processor

    source = run.get(f"{MODEL}.tokenizer_path", source)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = hf_processor(source, trust_remote_code=run.get(f"{MODEL}.trust_remote_code", False))
    reasons = [" ".join(str(w.message).split())[:200] for w in said if "create processor" in str(w.message)]
    have = type(found).__name__ if found is not None else "; ".join(reasons) or "none"
    return found, judged(TOPIC, "processor", found is not None, need="one that verl can load, for images", have=have)


def _packing_findings(run: RunSettings, model_type: str | None) -> list[Finding]:
    key = f"{MODEL}.use_remove_padding"
    if not (run.on_cpu and run.get(key, False)) or model_type in PACKED_ON_A_CPU:
        return []
    expected = f"false on a CPU for model_type={model_type}"
    remedy = f"Of models that take images, {', '.join(PACKED_ON_A_CPU)} alone is known to train packed there: verl's "
    remedy += "attention of Qwen2-VL, Qwen2.5-VL, GLM-4V and Kimi-VL is flash-attn's, and others have not been tried."
    return [refused(TOPIC, "packing", key, True, expected, remedy)]


def shape_of(config: Any, *, trust_remote_code: bool = False) -> ModelShape:
    """Sizes of the model that transformers builds from `config`; its parameters are counted without memory."""
    import torch
    from transformers import AutoModelForCausalLM
    from verl.utils.model import get_hf_auto_model_class

    auto = AutoModelForCausalLM if getattr(config, "vision_config", None) is None else get_hf_auto_model_class(config)
    with torch.device("meta"):
        module = auto.from_config(config, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    heads = text.num_attention_heads
    return ModelShape(
        params=sum(p.numel() for p in module.parameters()),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", 0) or 4 * text.hidden_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", 0) or heads,
        head_dim=getattr(text, "head_dim", 0) or text.hidden_size // heads,
        vocab=text.vocab_size,
        tied=bool(getattr(config, "tie_word_embeddings", False)),
    )


def _architecture_findings(path: str, config: Any) -> list[Finding]:
    names = getattr(config, "architectures", None) or []
    if len(names) == 1:
        return [judged(TOPIC, "architecture", True, need="exactly one", have=names[0])]
    expected = f"a config.json that names exactly one architecture, not {names}"
    return [refused(TOPIC, "architecture", f"{MODEL}.path", path, expected)]


def _window_findings(run: RunSettings, config: Any) -> list[Finding]:
    name, window = "context window", getattr(config.get_text_config(), "max_position_embeddings", None)
    need = f"{run.prompt_length} + {run.response_length} = {run.sequence} tokens"
    if window is None:
        return [judged(TOPIC, name, False, need=need, have="no max_position_embeddings in config.json")]
    have = f"max_position_embeddings={window}"
    if run.sequence <= window:
        return [judged(TOPIC, name, True, need=need, have=have)]
    override = run.get(f"{MODEL}.override_config.max_position_embeddings", 0)
    if override >= run.sequence:
        how = f"the rollout engine reads the folder, not {MODEL}.override_config ({override}). {_WIDER}"
        return [judged(TOPIC, name, False, need=need, have=have, how=how)]
    expected = (
        f"at most {max(0, window - run.prompt_length)} tokens: the model's window is {window} and "
        f"data.max_prompt_length={run.prompt_length}"
    )
    return [refused(TOPIC, name, "data.max_response_length", run.response_length, expected, _WIDER)]


def _builder_finding(wanted: str | None, fitting: str | None) -> Finding:
    have = f"the one for model_type={wanted}"
    if wanted != fitting:
        have = f"verl's default builder: {have} refuses this tokenizer"
    return judged(TOPIC, "prompt builder", True, need="one of verl's that takes the tokenizer", have=have)


def tokenizer_findings(path: str, tokenizer: Any, stop_ids: frozenset[int], vocab: int) -> list[Finding]:
    """Chat template, end of sequence, vocabulary.

    Args:
        stop_ids: at which the rollout engine ends a response.
    """
    findings = []
    if vocab:
        how = "ids beyond the embedding" if len(tokenizer) > vocab else ""
        findings.append(
            judged(TOPIC, "vocabulary", not how, need=f"at most {vocab:,} ids", have=f"{len(tokenizer):,} ids", how=how)
        )
    how = "" if stop_ids else "every response runs to its limit: set eos_token_id in generation_config.json"
    have = _named(tokenizer, stop_ids)
    findings.append(judged(TOPIC, "end of sequence", not how, need="a token that ends a response", have=have, how=how))
    if not tokenizer.chat_template:
        expected = "a model whose tokenizer has a chat template"
        remedy = f"Set {MODEL}.custom_chat_template, or put a chat_template.jinja into the folder."
        return [*findings, refused(TOPIC, "chat template", f"{MODEL}.path", path, expected, remedy)]
    return [*findings, *_template_findings(tokenizer, stop_ids)]


def _named(tokenizer: Any, ids: Iterable[int]) -> str:
    return ", ".join(f"{tokenizer.convert_ids_to_tokens(i)} ({i})" for i in sorted(ids)) or "none"


def _template_findings(tokenizer: Any, stop_ids: frozenset[int]) -> list[Finding]:
    """What opens an answer in the template, and what ends it: a token that should stop the engine."""
    try:
        opening, lacking, end = opening_of_answer(tokenizer), lacks_opening(tokenizer), end_of_turn(tokenizer)
    except Exception as error:  # a template may refuse anything
        need = "one that renders a question and an answer"
        return [judged(TOPIC, "chat template", False, need=need, have=str(error)[:200])]
    how = "" if not lacking else "it ignores add_generation_prompt: see below how the first prompts end"
    return [
        judged(TOPIC, "generation prompt", not how, need="what opens an answer", have=repr(opening), how=how),
        _end_of_turn_finding(tokenizer, end, stop_ids),
    ]


def _end_of_turn_finding(tokenizer: Any, end: int | None, stop_ids: frozenset[int]) -> Finding:
    name = "chat template"
    if end is None:
        return judged(TOPIC, name, True, need="there is one", have="it ends no turn with a special token")
    good = end in stop_ids
    how = "" if good else f"an answer that ends as in the template would run to its limit. {_STOPPING}"
    have = f"ends a turn with {_named(tokenizer, {end})}"
    return judged(TOPIC, name, good, need="ends a turn with a token that stops", have=have, how=how)
