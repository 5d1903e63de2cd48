import torch

from soup_verl.cpu.vllm_extension import _linear_that_keeps_its_weight


def test_a_linear_layer_keeps_its_weight_and_follows_an_update():
    layer = torch.nn.Linear(2, 1)
    _linear_that_keeps_its_weight(layer, remove_weight=True)
    x = torch.ones(1, 2)
    assert layer.weight.shape == (1, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0]]))
    assert layer.cpu_linear(x, layer.weight, torch.tensor([0.5])).item() == 7.5
    assert layer.cpu_linear(x, layer.weight, None).item() == 7.0
