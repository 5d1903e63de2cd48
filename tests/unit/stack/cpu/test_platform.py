import os
import pickle

import pytest
import torch
from verl.plugin.platform import PlatformRegistry, platform_manager

from soup_verl.stack import cpu
from soup_verl.stack.cpu.platform import PlatformCPU


def test_verl_finds_the_platform_by_its_name():
    assert PlatformRegistry.get("cpu") is PlatformCPU


def test_the_platform_is_there_but_its_device_module_has_no_accelerator():
    platform = PlatformCPU()
    assert platform.is_available() and not platform.device_module.is_available()
    assert platform.current_device() == torch.device("cpu") and platform.device_name == "cpu"
    assert platform.communication_backend_name() == "gloo" and not platform.is_ipc_supported()


def test_memory_is_this_processs_own():
    module = PlatformCPU().device_module
    free, total = module.mem_get_info()
    assert 0 < free <= total
    assert 0 < module.memory_allocated() <= total and module.max_memory_allocated() >= module.memory_allocated() * 0.5


def test_random_state_goes_to_torch():
    module = PlatformCPU().device_module
    state = module.get_rng_state()
    first = torch.rand(1)
    module.set_rng_state(state)
    assert torch.equal(torch.rand(1), first)


def test_what_torch_cpu_has_is_still_reached():
    assert PlatformCPU().device_module.Stream is torch.cpu.Stream


def test_rollout_workers_inherit_only_variables_that_are_set(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert PlatformCPU().rollout_env_vars() == {"VLLM_CPU_KVCACHE_SPACE": "1"}


@pytest.fixture
def process_settings(monkeypatch):
    """Environment and verl's platform as they are now, put back afterwards."""
    before = dict(os.environ)
    monkeypatch.setattr(platform_manager, "_current_platform", platform_manager._current_platform)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_enabling_sets_the_platform_here_and_in_child_processes_but_respects_the_users_settings(process_settings):
    for name in cpu.ENVIRONMENT:
        os.environ.pop(name, None)
    os.environ["OMP_NUM_THREADS"] = "3"
    cpu.enable()
    assert isinstance(platform_manager.get_platform(), PlatformCPU)
    assert {name: os.environ[name] for name in cpu.ENVIRONMENT} == {**cpu.ENVIRONMENT, "OMP_NUM_THREADS": "3"}
    assert pickle.loads(pickle.dumps(platform_manager.get_platform())).device_name == "cpu"


def test_loopback_is_asked_for_by_name(process_settings):
    for name in cpu.LOOPBACK:
        os.environ.pop(name, None)
    cpu.enable()
    assert not set(cpu.LOOPBACK) & set(os.environ)
    os.environ["VLLM_HOST_IP"] = "127.0.0.3"
    cpu.enable(loopback=True)
    assert {name: os.environ[name] for name in cpu.LOOPBACK} == {**cpu.LOOPBACK, "VLLM_HOST_IP": "127.0.0.3"}
