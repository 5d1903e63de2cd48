"""What the CPU platform, its engines and workers lean on in verl."""

import inspect
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict
from verl.plugin.platform import PlatformBase
from verl.utils import distributed
from verl.utils import torch_functional as verl_functional
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from soup_verl.stack.actor_worker import SoupActorWorker
from soup_verl.stack.cpu import training
from soup_verl.stack.cpu.platform import PlatformCPU

pytestmark = pytest.mark.contract


def test_the_cpu_platform_leaves_nothing_of_verls_interface_out():
    assert not PlatformCPU.__abstractmethods__
    for name in PlatformBase.__abstractmethods__:
        verls, ours = getattr(PlatformBase, name), getattr(PlatformCPU, name)
        if inspect.isfunction(verls):
            assert list(inspect.signature(ours).parameters) == list(inspect.signature(verls).parameters), name


def test_verl_asks_torch_for_a_backend_that_it_refuses_on_a_cpu_and_leaves_an_existing_group_alone(monkeypatch):
    """Why `join_gloo_group` comes first."""
    asked = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **given: asked.append(given["backend"]))
    monkeypatch.setattr(distributed, "get_device_name", lambda: "cpu")
    monkeypatch.setattr(distributed, "get_nccl_backend", lambda: "gloo")
    for there in (False, True):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda there=there: there)
        distributed.initialize_global_process_group_ray()
    assert asked == ["cpu:gloo,cpu:gloo"]


@pytest.mark.parametrize(("strategy", "name"), [("fsdp", "CPUOffload"), ("fsdp2", "CPUOffloadPolicy")])
def test_the_cpu_engines_replace_the_offload_that_verl_looks_up_when_it_builds(monkeypatch, strategy, name):
    """A reference model asks for it: verl's engine gets verl's, ours gets none."""

    class Built(Exception):
        pass

    def build(engine_class):
        seen = {}

        def wrap(module, *given, **more):
            options = more if strategy == "fsdp" else given[0]
            seen["offload"] = options["cpu_offload" if strategy == "fsdp" else "offload_policy"]
            raise Built

        monkeypatch.setattr(transformer_impl, "FSDP", wrap)
        monkeypatch.setattr(transformer_impl, "apply_fsdp2", wrap)
        monkeypatch.setattr(transformer_impl, "get_fsdp_wrap_policy", lambda **_: None)
        monkeypatch.setattr(transformer_impl, "get_sharding_strategy", lambda *_, **__: None)
        monkeypatch.setattr(transformer_impl, "get_device_id", lambda: 0)
        engine = engine_class.__new__(engine_class)
        more = dict.fromkeys(("wrap_policy", "reshard_after_forward", "forward_prefetch", "use_orig_params"))
        engine.engine_config = SimpleNamespace(
            strategy=strategy, forward_only=True, mixed_precision=None, offload_policy=False, **more
        )
        engine.model_config, engine.device_mesh = SimpleNamespace(lora_rank=0), None
        with pytest.raises(Built):
            engine._build_fsdp_module(torch.nn.Linear(1, 1))
        return seen["offload"]

    assert type(build(FSDPEngineWithLMHead)).__name__ == name
    assert build(training.CpuLanguageModelEngine) is None


def test_the_cpu_engine_replaces_the_value_model_that_verl_looks_up_when_it_builds(monkeypatch):
    class Loaded(Exception):
        pass

    def load(**given):
        raise Loaded(given)

    monkeypatch.setattr(training, "_load_value_model_with_sdpa", load)
    engine = training.CpuValueModelEngine.__new__(training.CpuValueModelEngine)
    engine.engine_config = SimpleNamespace(model_dtype="fp32", forward_only=False)
    engine.device_mesh = None
    engine.model_config = SimpleNamespace(
        model_type="value_model",
        hf_config=SimpleNamespace(tie_word_embeddings=True),
        local_path="model",
        trust_remote_code=False,
    )
    assert isinstance(engine, FSDPEngineWithValueHead)
    with pytest.raises(Loaded) as caught:
        engine._build_module()
    (given,) = caught.value.args
    inspect.signature(ORIGINAL).bind(**given)
    assert given["local_path"] == "model"


ORIGINAL = training._load_value_model_with_sdpa


def test_fsdp1_asks_before_it_broadcasts_by_the_name_we_replace():
    """torch's refusal of parameters on a CPU."""
    from torch.distributed.fsdp import _init_utils

    with pytest.raises(ValueError, match="sync_module_states"):
        _init_utils._check_module_states_for_sync_module_states([torch.zeros(1)])


def test_every_worker_class_has_a_cpu_counterpart():
    import ray

    for worker_class in (ActorRolloutRefWorker, SoupActorWorker, TrainingWorker):
        plain = training.on_cpu(ray.remote(worker_class)).__ray_metadata__.modified_class.__ray_actor_class__
        assert issubclass(plain, worker_class) and plain is not worker_class


@pytest.mark.e2e  # a process of its own that imports verl
def test_a_gpu_run_never_imports_the_cpu_package():
    code = (
        "import sys, soup_verl.launch.run, soup_verl.launch.task_runner, soup_verl.stack.trainer\n"
        "print([name for name in sys.modules if name.startswith('soup_verl.stack.cpu')])"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip().splitlines()[-1:] == ["[]"], done.stderr[-2000:]


@pytest.mark.parametrize("shape", [(1500,), (3, 700)])
def test_log_probs_are_verls_bit_for_bit_and_so_are_their_gradients(shape):
    """With a small vocabulary, and more positions than are normalised together."""
    torch.manual_seed(0)
    given = torch.randn(*shape, 64)
    labels, weights = torch.randint(64, shape), torch.linspace(-1, 1, given[..., 0].numel()).view(shape)
    found = []
    for log_probs in (verl_functional.logprobs_from_logits_v2, training.log_probs_of_labels):
        logits = given.clone().requires_grad_()
        values = log_probs(logits, labels)
        (values * weights).sum().backward()
        found.append((values.detach(), logits.grad))
    (verls, verls_gradient), (ours, gradient) = found
    assert ours.shape == shape and torch.equal(ours, verls) and torch.equal(gradient, verls_gradient)


def test_an_engine_is_given_tensors_and_images_but_no_columns_of_the_data_set(monkeypatch):
    seen = []
    monkeypatch.setattr(FSDPEngineWithLMHead, "forward_step", lambda self, given, *more: seen.append(given))
    columns = {name: NonTensorStack("a", "b") for name in ("raw_prompt", "multi_modal_inputs")}
    batch = TensorDict({"input_ids": torch.zeros(2, 3), **columns, "temperature": NonTensorData(1.0)}, batch_size=2)
    object.__new__(training.CpuLanguageModelEngine).forward_step(batch, None, True)
    assert set(seen[0].keys()) == {"input_ids", "multi_modal_inputs", "temperature"} and "raw_prompt" in batch
