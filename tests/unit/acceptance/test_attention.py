import pytest
import torch

from soup_verl.acceptance import attention

CPU = torch.device("cpu")


def test_packed_sequences_score_as_they_do_alone():
    """With sdpa, which transformers also keeps from looking across sequences."""
    told = attention.compare(CPU, "sdpa")
    assert told.startswith("sdpa packed 0.0")


@torch.no_grad()
def packed_without_positions(model, sequences):
    parts = model(torch.cat(sequences)[None]).logits[0].split([len(ids) for ids in sequences])
    return torch.cat([attention._scores(part, ids) for part, ids in zip(parts, sequences, strict=True)])


def test_sequences_that_see_each_other_are_noticed(monkeypatch):
    monkeypatch.setattr(attention, "_packed", packed_without_positions)
    with pytest.raises(AssertionError, match=r"expected at most 2\.0 times that"):
        attention.compare(CPU, "sdpa")


def test_without_a_gpu_there_is_nothing_to_compare():
    with pytest.raises(attention.Skip, match="needs a GPU"):
        attention.check(CPU)
