from types import SimpleNamespace

import torch

from soup_verl.stack import cpu
from soup_verl.stack.cpu.vllm_extension import CpuWorkerExtension, _linear_that_keeps_its_weight


def test_a_linear_layer_keeps_its_weight_and_follows_an_update():
    layer = torch.nn.Linear(2, 1)
    _linear_that_keeps_its_weight(layer, remove_weight=True)
    x = torch.ones(1, 2)
    assert layer.weight.shape == (1, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0]]))
    assert layer.cpu_linear(x, layer.weight, torch.tensor([0.5])).item() == 7.5
    assert layer.cpu_linear(x, layer.weight, None).item() == 7.0


def test_two_runs_on_one_machine_have_sockets_of_their_own(monkeypatch):
    monkeypatch.setenv("VERL_RAY_JOB_ID", "01000000")  # as in every cluster that has just been started
    extension = object.__new__(CpuWorkerExtension)
    extension.model_runner, extension.local_rank = SimpleNamespace(), 0
    senders, receivers = set(), set()
    for run in ("a", "b"):
        monkeypatch.setenv(cpu.RUN, run)
        senders.add(cpu.own_socket("ipc:///tmp/rl-colocate-zmq-01000000-replica-0-rank-0.sock"))
        receivers.add(extension._get_zmq_handle())
    assert senders == receivers == {f"ipc:///tmp/rl-colocate-zmq-01000000-replica-0-rank-0-{run}.sock" for run in "ab"}
