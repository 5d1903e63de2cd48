import pytest
import torch
from safetensors.torch import save_file

from soup_verl.stack.kept_policies import Change, KeptPolicies, changed

BF16 = torch.bfloat16


def policy(*numbers, dtype=BF16, **more):
    return {"w": torch.tensor(numbers, dtype=dtype), **more}


def held(policies, version):
    return {name: tensor.tolist() for name, tensor in policies.weights(version)}


@pytest.fixture
def three():
    """Of 8 weights of 2 bytes, one changes, then another and once more the first."""
    policies = KeptPolicies()
    policies.keep(2, policy(1, 2, 3, 4, 5, 6, 7, 8))
    policies.keep(4, policy(1, 9, 3, 4, 5, 6, 7, 8))
    policies.keep(6, policy(1, 9.5, 3, 4, 5, 6, 7, -8))
    return policies


def test_each_policy_is_what_it_was(three):
    assert held(three, 2) == {"w": [1, 2, 3, 4, 5, 6, 7, 8]}
    assert held(three, 4) == {"w": [1, 9, 3, 4, 5, 6, 7, 8]}
    assert held(three, 6) == {"w": [1, 9.5, 3, 4, 5, 6, 7, -8]}


def test_the_newest_is_whole_and_a_change_takes_six_bytes_in_bfloat16(three):
    assert three.bytes == 8 * 2 + 6 + 2 * 6
    three.drop(2)
    assert three.bytes == 8 * 2 + 2 * 6
    assert held(three, 4) == {"w": [1, 9, 3, 4, 5, 6, 7, 8]}
    three.drop(4)
    three.drop(6)
    assert three.bytes == 0


def test_only_the_oldest_can_go(three):
    with pytest.raises(AssertionError, match="older policies"):
        three.drop(4)


def test_reading_a_policy_writes_to_none(three):
    before = {version: held(three, version) for version in (2, 4, 6)}
    for _, tensor in three.weights(2):
        tensor.zero_()
    assert {version: held(three, version) for version in (2, 4, 6)} == before


def test_a_tensor_stays_whole_where_changes_are_no_smaller():
    """Three bfloat16 weights take 6 bytes, and so does one change; four take 8."""
    assert isinstance(changed(torch.zeros(3, dtype=BF16), torch.tensor([1, 0, 0], dtype=BF16)), torch.Tensor)
    found = changed(torch.zeros(4, dtype=BF16), torch.tensor([1, 0, 0, 0], dtype=BF16))
    assert isinstance(found, Change) and (found.places.dtype, found.values.dtype) == (torch.int32, BF16)
    assert (found.places.tolist(), found.values.tolist()) == ([0], [0])


def test_a_policy_is_found_through_one_that_is_whole_in_between():
    policies, later = KeptPolicies(), (1, 2, 3, 5)
    policies.keep(1, policy(1, 2, 3, 4))
    policies.keep(2, policy(*later))
    policies.keep(3, policy(6, 7, 8, 9))
    policies.keep(4, policy(6, 7, 8, 0))
    assert policies.bytes == 6 + 8 + 6 + 8
    assert held(policies, 1) == {"w": [1, 2, 3, 4]} and held(policies, 2) == {"w": [*later]}


def test_zeros_of_either_sign_and_nans_come_back_bit_for_bit():
    old = torch.tensor([0.0, -0.0, float("nan"), 1, 1, 1], dtype=torch.float32)
    policies = KeptPolicies()
    policies.keep(1, {"w": old.clone()})
    policies.keep(2, {"w": torch.tensor([-0.0, -0.0, float("nan"), 1, 1, 1])})
    ((_, found),) = policies.weights(1)
    assert torch.equal(found.view(torch.int32), old.view(torch.int32))
    assert policies.bytes == 24 + 8


def test_shapes_are_kept_of_matrices_and_of_a_rank_without_a_row():
    policies = KeptPolicies()
    for version in (1, 2):
        policies.keep(version, {"m": torch.full((4, 2), 1.0), "empty": torch.ones(0, 2)})
    assert {name: tuple(tensor.shape) for name, tensor in policies.weights(1)} == {"m": (4, 2), "empty": (0, 2)}


def test_files_hold_what_is_kept_and_older_ones_in_another_dtype_are_taken(three, tmp_path):
    def path_of(version):
        return tmp_path / str(version)

    three.write(path_of, [2, 4, 6])
    assert path_of(2).stat().st_size < path_of(6).stat().st_size + 200  # names and shapes
    read = KeptPolicies()
    read.read(path_of, [2, 4, 6], like=policy(*[0] * 8))
    assert all(held(read, version) == held(three, version) for version in (2, 4, 6)) and read.bytes == three.bytes

    whole = KeptPolicies()
    whole.keep(3, policy(*[1 / 3] * 8, dtype=torch.float32))
    whole.write(path_of, [3])
    read.read(path_of, [3], like=policy(*[0] * 8))
    assert held(read, 3) == {"w": torch.full((8,), 1 / 3, dtype=BF16).tolist()}


@pytest.mark.parametrize(("places", "values"), [([0, 7], [1, 2]), ([-1], [1]), ([0, 1], [1]), ([[0, 1]], [[1, 2]])])
def test_a_change_of_a_tensor_of_another_size_is_refused_with_its_file(tmp_path, places, values):
    change = {"w@places": torch.tensor(places, dtype=torch.int32), "w@values": torch.tensor(values, dtype=BF16)}
    save_file(change, tmp_path / "2")
    with pytest.raises(ValueError, match=r"2: w is missing or of another shape than \(7,\)"):
        KeptPolicies().read(lambda version: tmp_path / str(version), [2], like=policy(*[0] * 7))


def test_steps_of_reinforcement_learning_take_a_part_of_whole_policies():
    """Adam at a learning rate of 1e-6 on weights of .02: four policies in bfloat16 beside the newest, in fp32 whole."""
    torch.manual_seed(0)
    master = torch.nn.Parameter(torch.randn(200_000) * 0.02)
    optimizer, sizes = torch.optim.AdamW([master], lr=1e-6), {}
    kept = {dtype: KeptPolicies() for dtype in (BF16, torch.float32)}
    for version in range(5):
        for dtype, policies in kept.items():
            policies.keep(version, {"w": master.detach().to(dtype, copy=True)})
            sizes[dtype] = policies.bytes / (200_000 * dtype.itemsize)
        master.grad = torch.randn(200_000)
        optimizer.step()
    assert 1 < sizes[BF16] < 1.5 and sizes[torch.float32] == 5
