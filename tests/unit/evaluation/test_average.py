"""Averages by hand, and every way in which two folders are not two states of one model."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from soup_verl.evaluation import EvaluationError, average, checkpoints
from soup_verl.evaluation.average import main, write_average
from soup_verl.tasks.chat_template import load_tokenizer
from tests.unit.preflight_files import ROOT, SMALL, write_model

INDEX = "model.safetensors.index.json"
BASE = {"w": torch.tensor([[1.0, 2.0], [-4.0, 0.0]]), "b": torch.tensor([8.0])}
OTHER = {"w": torch.tensor([[3.0, 2.0], [4.0, -2.0]]), "b": torch.tensor([0.0])}


def folder(path, *shards, dtype=torch.float32):
    """A model's folder with a file a shard, and an index if there is more than one."""
    path.mkdir()
    (path / "config.json").write_text("{}")
    shards = [{name: tensor.to(dtype) for name, tensor in shard.items()} for shard in shards]
    if len(shards) == 1:
        save_file(shards[0], path / "model.safetensors", metadata={"format": "pt"})
        return path
    places = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file(shard, path / name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, name)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return path


def mean_of(a, b, out, weight=0.5):
    write_average(a, b, out, weight=weight, names=("A", "B"))
    return {k: v for file in sorted(out.glob("*.safetensors")) for k, v in load_file(file).items()}


def bits(tensors):
    return {k: (v.dtype, v.shape, v.contiguous().view(torch.uint8).tolist()) for k, v in tensors.items()}


def test_the_average_by_hand(tmp_path):
    found = mean_of(folder(tmp_path / "a", BASE), folder(tmp_path / "b", OTHER), tmp_path / "out", 0.25)
    assert found["w"].tolist() == [[1.5, 2.0], [-2.0, -0.5]] and found["b"].tolist() == [6.0]


def test_it_is_computed_in_float32_and_stored_as_the_first_is(tmp_path):
    """bfloat16 knows 1 and 1.0078125 here: the mean of 1 and 1.01 is nearer to the second. With 1.01 taken as 1.0078125
    first, it would be half way and go to 1."""
    a = folder(tmp_path / "a", {"w": torch.tensor([1.0, 3.0])}, dtype=torch.bfloat16)
    b = folder(tmp_path / "b", {"w": torch.tensor([1.01, 5.0])})
    found = mean_of(a, b, tmp_path / "out")["w"]
    assert found.dtype == torch.bfloat16 and found.tolist() == [1.0078125, 4.0]
    third = mean_of(b, a, tmp_path / "third", 0.25)["w"]
    assert third.dtype == torch.float32 and third.tolist() == pytest.approx([1.0075, 4.5])


AWKWARD = torch.tensor([0.1, -0.0, 1e-38, 3e38, 1e-45, -7.3])
"""A negative zero, a denormal number, and one whose sum with itself overflows."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_0_and_1_are_the_two_models_bit_for_bit(tmp_path, dtype):
    values = AWKWARD.clamp(-6e4, 6e4) if dtype == torch.float16 else AWKWARD
    a = folder(tmp_path / "a", {"w": values}, dtype=dtype)
    b = folder(tmp_path / "b", {"w": values.flip(0) * 0.7}, dtype=dtype)
    for weight, model in ((0, a), (1, b)):
        found = mean_of(a, b, tmp_path / f"out{weight}", weight)
        assert bits(found) == bits(load_file(model / "model.safetensors"))


def test_shards_are_those_of_the_first_however_the_second_is_split(tmp_path):
    a = folder(tmp_path / "a", {"w": BASE["w"]}, {"b": BASE["b"]})
    b = folder(tmp_path / "b", OTHER)
    found = mean_of(a, b, tmp_path / "out")
    assert found["w"].tolist() == [[2.0, 2.0], [0.0, -1.0]] and found["b"].tolist() == [4.0]
    names = {file.name for file in a.iterdir()}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names | {"average.json"}
    assert (tmp_path / "out" / INDEX).read_bytes() == (a / INDEX).read_bytes()
    for file in a.glob("*.safetensors"):
        with safe_open(tmp_path / "out" / file.name, "pt") as stored:
            assert stored.metadata() == {"format": "pt"}
    assert mean_of(b, a, tmp_path / "back").keys() == BASE.keys()
    assert not (tmp_path / "back" / INDEX).exists()


def test_a_tensor_that_takes_several_pieces_and_an_empty_one(tmp_path, monkeypatch):
    monkeypatch.setattr(average, "PIECE", 7)
    values = torch.arange(40.0).reshape(4, 10)
    a = folder(tmp_path / "a", {"x": torch.zeros(3, 0), "y": values, "z": torch.tensor(1.0)})
    b = folder(tmp_path / "b", {"x": torch.zeros(3, 0), "y": -values, "z": torch.tensor(3.0)})
    found = mean_of(a, b, tmp_path / "out", 0.25)
    assert torch.equal(found["y"], values / 2) and found["z"].item() == 1.5 and found["x"].shape == (3, 0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"w": OTHER["w"]}, r"^--with has no b \(1 such of 2\): another model"),
        (OTHER | {"q": torch.ones(2), "r": torch.ones(1)}, r"^--model has no q \(2 such of 4\): another model"),
        (OTHER | {"w": torch.ones(4)}, r"^w has shape \[2, 2\] in --model and \[4\] in --with: another model"),
        (OTHER | {"b": torch.tensor([1])}, r"^b is I64 in --with: expected one of F64, F32, F16, BF16"),
        (OTHER | {"b": torch.tensor([torch.nan])}, r"^b: values that are not finite"),
    ],
)
def test_what_is_no_other_state_of_the_model_is_refused_in_one_line(tmp_path, other, message):
    a, b = folder(tmp_path / "a", BASE), folder(tmp_path / "b", {})
    save_file(other, b / "model.safetensors")
    with pytest.raises(EvaluationError, match=message) as caught:
        mean_of(a, b, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}  # nothing half made


def test_a_value_too_large_for_the_first_models_precision_is_not_stored(tmp_path):
    a = folder(tmp_path / "a", {"w": torch.ones(1)}, dtype=torch.float16)
    b = folder(tmp_path / "b", {"w": torch.tensor([1e6])})
    with pytest.raises(EvaluationError, match="w: values that are not finite, of a model or of the average as F16"):
        mean_of(a, b, tmp_path / "out", 1)


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def garble(file):
    file.write_bytes(b"\xff" * 100)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda model: cut(model / "model-00002-of-00002.safetensors"), "--with=B: .* expected .*: it is not whole"),
        (lambda model: garble(model / "model-00001-of-00002.safetensors"), "--with=B: .* is no readable file of safe"),
        (lambda model: (model / "model-00001-of-00002.safetensors").unlink(), "--with=B: .* is no readable file"),
        (lambda model: (model / INDEX).write_text("{}"), "--with=B: .* is no readable index"),
        (
            lambda model: (model / INDEX).write_text('{"weight_map": {"w": "model-00001-of-00002.safetensors"}}'),
            "--with has no b",
        ),
        (
            lambda model: (model / INDEX).write_text('{"weight_map": {"b": "model-00001-of-00002.safetensors"}}'),
            "--with=B: the shards in .* do not hold what",
        ),
        (lambda model: (model / INDEX).unlink(), "--with=B: .* has neither model.safetensors nor"),
    ],
)
def test_damaged_weights_are_named(tmp_path, harm, message):
    a = folder(tmp_path / "a", BASE)
    b = folder(tmp_path / "b", {"w": OTHER["w"]}, {"b": OTHER["b"]})
    harm(b)
    with pytest.raises(EvaluationError, match=message):
        mean_of(a, b, tmp_path / "out")


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan")])
def test_a_weight_is_a_share(tmp_path, weight):
    with pytest.raises(EvaluationError, match=r"--weight=.*: expected 0 \(--model alone\) to 1 \(--with alone\)"):
        mean_of(folder(tmp_path / "a", BASE), folder(tmp_path / "b", OTHER), tmp_path / "out", weight)


def test_what_a_killed_call_left_is_cleared_away_and_what_is_there_stays(tmp_path):
    a, b = folder(tmp_path / "a", BASE), folder(tmp_path / "b", OTHER)
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "half.safetensors").touch()
    mean_of(a, b, tmp_path / "out")
    assert not (tmp_path / "out" / "half.safetensors").exists() and not (tmp_path / "out.partial").exists()
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(EvaluationError, match="out: exists; remove it or choose another"):
        mean_of(a, b, tmp_path / "out", 1)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


MEASURED = """
import sys
from pathlib import Path
from soup_verl.evaluation.average import write_average

def kib(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

folder = Path(sys.argv[1])
write_average(folder / "small_a", folder / "small_b", folder / "small", weight=0.5, names=("a", "b"))
before = kib("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
write_average(folder / "a", folder / "b", folder / "out", weight=0.5, names=("a", "b"))
print(kib("VmHWM") - before)
"""


def test_the_peak_of_memory_is_less_than_one_large_tensor(tmp_path):
    """Two models of 128 MiB, four tensors each."""
    for name, size in (("small_a", 1 << 21), ("small_b", 1 << 21), ("a", 1 << 23), ("b", 1 << 23)):
        folder(tmp_path / name, {f"w{i}": torch.full((size,), float(i)) for i in range(4)})
    # Frees go back to the system at once: malloc may keep up to 64 MiB otherwise.
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURED, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **at_once}, capture_output=True, text=True, check=True)
    assert 0 <= int(done.stdout) < 26 << 10, done.stdout  # KiB; a tensor has 32 MiB


def a_model(path, seed):
    write_model(path, SMALL)
    torch.manual_seed(seed)
    config = Qwen2Config(**{key: value for key, value in SMALL.items() if key != "architectures"})
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(path, max_shard_size="50KB")
    return path


def test_transformers_and_the_evaluation_take_the_average(tmp_path, capsys):
    a, b = a_model(tmp_path / "a", 1), a_model(tmp_path / "b", 2)
    (a / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert len(list(a.glob("*.safetensors"))) > 1
    out = tmp_path / "out"
    assert main(["--model", str(a), "--with", str(b), "--weight", "0.25", "--out", str(out)]) == 0
    models = [AutoModelForCausalLM.from_pretrained(path) for path in (a, b, out)]
    parameters = sum(p.numel() for p in models[2].parameters())
    assert capsys.readouterr().out == f"wrote {out}: {parameters:,} parameters\n"
    for x, y, mean in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(mean, (0.75 * x.float() + 0.25 * y.float()).to(torch.bfloat16))
    assert models[2].generation_config.eos_token_id == [1, 2]
    assert AutoTokenizer.from_pretrained(out).get_vocab() == AutoTokenizer.from_pretrained(a).get_vocab()
    assert json.loads((out / "average.json").read_text()) == {"model": str(a), "with": str(b), "weight": 0.25}
    found = checkpoints.resolve(str(out), option="--model", merged=tmp_path / "merged", announce=print)
    assert found == out and load_tokenizer(str(found), "--model", ValueError).chat_template
    prints = [checkpoints.fingerprint(checkpoints.model_files(path)) for path in (a, b, out)]
    assert len(set(prints)) == 3


def test_a_checkpoint_of_training_is_merged_beside_the_result(tmp_path, capsys, monkeypatch):
    asked = []

    def resolve(name, *, option, merged, announce):
        announce(f"merging {name}")
        asked.append((name, option, merged))
        return tmp_path / name

    monkeypatch.setattr(average, "resolve", resolve)
    folder(tmp_path / "a", BASE), folder(tmp_path / "b", OTHER)
    assert main(["--model", "a", "--with", "b", "--out", str(tmp_path / "made" / "out")]) == 0
    merged = tmp_path / "made" / "merged_checkpoints"
    assert asked == [("a", "--model", merged), ("b", "--with", merged)]
    assert capsys.readouterr().err == "merging a\nmerging b\n"


def test_what_is_wrong_is_one_line_and_exit_code_1(tmp_path, capsys):
    folder(tmp_path / "a", BASE)
    argv = ["--model", str(tmp_path / "a"), "--with", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(argv) == 1
    assert capsys.readouterr().err.startswith(f"error: --with={tmp_path}: expected a model folder with config.json")
