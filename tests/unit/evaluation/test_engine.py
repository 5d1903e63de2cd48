"""What can be known of the engine without starting it."""

import importlib.metadata
import json

import pytest

from soup_verl.evaluation import EvaluationError, engine
from soup_verl.evaluation.engine import EngineSettings, choose_device


def installed(monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)


@pytest.mark.parametrize(("version", "device"), [("0.28.0+cpu", "cpu"), ("0.24.0", "gpu")])
def test_the_device_is_the_one_that_vllm_was_built_for(monkeypatch, version, device):
    installed(monkeypatch, version)
    assert choose_device("auto", 1) == choose_device(device, 1) == device
    other = {"cpu": "gpu", "gpu": "cpu"}[device]
    with pytest.raises(EvaluationError, match=rf"--device={other}: the vLLM installed here .* runs on the {device}"):
        choose_device(other, 1)


def test_several_gpus_are_not_asked_of_a_cpu(monkeypatch):
    installed(monkeypatch, "0.24.0")
    assert choose_device("auto", 8) == "gpu"
    installed(monkeypatch, "0.28.0+cpu")
    with pytest.raises(EvaluationError, match=r"--gpus=2: expected 1, for the vLLM installed here \(0.28.0\+cpu\)"):
        choose_device("auto", 2)


def settings(tmp_path, max_model_len=968):
    return EngineSettings(tmp_path, "cpu", "float32", 1, max_model_len, 1.0, 1.0, tmp_path / "engine.log")


def test_the_cache_holds_all_sequences_if_it_fits_and_one_in_any_case(tmp_path, monkeypatch):
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    one = 2 * 2 * 2 * 8 * 4 * 1000  # keys and values, layers, heads, head size, bytes, tokens
    memory = {"available": 1 << 40}
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), memory))
    assert engine._cpu_cache_bytes(settings(tmp_path)) == 256 * one
    memory["available"] = 40 * one
    assert engine._cpu_cache_bytes(settings(tmp_path)) == 10 * one
    memory["available"] = one
    assert engine._cpu_cache_bytes(settings(tmp_path)) == one


def test_the_last_error_of_the_log_is_what_is_shown(tmp_path):
    log = tmp_path / "engine.log"
    assert engine._last_words(log) == "no message"
    log.write_text("INFO start\nValueError: too long\nnanobind: leaked\n\n")
    assert engine._last_words(log) == "ValueError: too long"
    log.write_text("INFO start\nkilled\n\n")
    assert engine._last_words(log) == "killed"
