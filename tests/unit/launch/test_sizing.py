import dataclasses

import pytest

from soup_verl.launch.preflight import sizing
from soup_verl.launch.preflight.sizing import Amount, ModelShape

TOY = ModelShape(
    params=1000, layers=2, hidden=8, intermediate=16, heads=4, kv_heads=2, head_dim=2, vocab=50, tied=False
)
QWEN_7B = ModelShape(7_615_616_512, 28, 3584, 18944, 28, 4, 128, 152064, tied=False)


@pytest.mark.parametrize(("world_size", "fsdp_size", "expected"), [(8, -1, 8), (16, 8, 8), (8, 8, 8), (8, 16, 8)])
def test_shards_are_verls(world_size, fsdp_size, expected):
    assert sizing.shards(world_size=world_size, fsdp_size=fsdp_size) == expected


def test_one_shard_of_weights_and_of_two_moments():
    assert sizing.weights("w", 1000, element_bytes=4, shards=8).bytes == 500
    assert sizing.weights("Adam", 1000, element_bytes=4, copies=2, shards=8).bytes == 1000
    assert sizing.weights("w", 1001, element_bytes=4, shards=8).bytes == 501  # rounded up: 500.5


def test_a_formula_says_what_was_computed():
    amount = sizing.weights("Adam", 1000, element_bytes=4, copies=2, shards=8)
    assert amount.formula == "Adam: 2 copies x 1000 parameters x 4 bytes / 8 shards"
    assert sizing.weights("weights", QWEN_7B.params, element_bytes=4, shards=8).formula == (
        "weights: 7.62e9 parameters x 4 bytes / 8 shards"
    )


def test_a_sum_lists_its_terms_with_their_sizes():
    total = sizing.product("a", (3 << 30, "bytes")) + sizing.product("b", (1 << 20, "bytes"))
    assert total.bytes == (3 << 30) + (1 << 20)
    assert total.formula == "a: 3.22e9 bytes = 3.0 GiB\nb: 1.05e6 bytes = 1.0 MiB"
    assert str(total) == "3.0 GiB"


def test_nothing_adds_nothing():
    amount = sizing.product("a", (5, "bytes"))
    assert amount + sizing.NOTHING == amount == sizing.NOTHING + amount
    assert sizing.NOTHING.bytes == 0 and sizing.NOTHING.formula == ""


def test_times_multiplies_every_term():
    total = (sizing.product("a", (2, "bytes")) + sizing.product("b", (3, "bytes"))).times(4, "GPUs")
    assert total == Amount(((8, "a: 2 bytes x 4 GPUs"), (12, "b: 3 bytes x 4 GPUs")))


def test_gathered_are_both_ends_and_one_layer():
    # Embedding and output layer: 2 x 50 x 8 = 800; a layer: (1000 - 800) / 2 = 100.
    assert sizing.gathered(TOY, element_bytes=2).bytes == 900 * 2
    # Tied: one of them, 400; a layer: (1000 - 400) / 2 = 300.
    assert sizing.gathered(dataclasses.replace(TOY, tied=True), element_bytes=2).bytes == 700 * 2


def test_activations_with_and_without_checkpointing():
    # A layer: 8 x 8 + 3 x 16 = 112 elements a token; the input of both layers: 2 x 8 = 16.
    def size(checkpointing):
        return sizing.activations(TOY, 10, element_bytes=2, checkpointing=checkpointing).bytes

    assert size(True) == 10 * (112 + 16) * 2
    assert size(False) == 10 * (2 * 112) * 2


def test_logits():
    assert sizing.logits(TOY, 10).bytes == 10 * 50 * 8


@pytest.mark.parametrize(("tensor_parallel", "expected"), [(1, 32), (2, 16), (4, 16)])
def test_a_token_in_the_cache_is_k_and_v_of_every_layer(tensor_parallel, expected):
    # 2 x 2 layers x heads x 2 numbers x 2 bytes; with 4 GPUs each of the 2 heads is there twice.
    assert sizing.kv_token(TOY, element_bytes=2, tensor_parallel=tensor_parallel).bytes == expected


def test_kept_policies_and_the_one_that_serves_on_a_node():
    # 4 kept and 1 laid out: 4 x 1000 x 2 + 1000 x 4 bytes.
    def size(laid_out_bytes=4, **layout):
        return sizing.snapshot_buffer(1000, capacity=4, element_bytes=2, laid_out_bytes=laid_out_bytes, **layout).bytes

    assert size(shards=8, gpus_per_node=8) == 12_000
    assert size(shards=8, gpus_per_node=8, laid_out_bytes=0) == 8_000  # on the GPUs
    assert size(shards=16, gpus_per_node=8) == 6_000  # two nodes share
    assert size(shards=8, gpus_per_node=16) == 24_000  # two copies on one node


def test_the_response_store_takes_10_bytes_a_token():
    assert sizing.replay_store(64_000_000).bytes == 640_000_000


def test_pending_prefixes():
    # 4 steps x 128 prompts x 4 of 8 responses x 1500 tokens x 72 bytes
    assert sizing.pending_prefixes(steps=4, prompts=128, mixed=4, longest=1500).bytes == 221_184_000


def test_a_7b_model_on_8_gpus():
    assert sizing.weights("w", QWEN_7B.params, element_bytes=4, shards=8).bytes == 3_807_808_256
    assert sizing.kv_token(QWEN_7B, element_bytes=2, tensor_parallel=2).bytes == 28_672  # 2 x 28 x 2 x 128 x 2
    weights = sizing.rollout_weights(QWEN_7B, element_bytes=2, tensor_parallel=2)
    assert weights.bytes == QWEN_7B.params
    layout = {"shards": 8, "gpus_per_node": 8}
    buffer = sizing.snapshot_buffer(QWEN_7B.params, capacity=4, element_bytes=2, laid_out_bytes=2, **layout)
    assert buffer.bytes == 76_156_165_120 and str(buffer) == "70.9 GiB"
    buffer = sizing.snapshot_buffer(QWEN_7B.params, capacity=4, element_bytes=2, laid_out_bytes=0, **layout)
    assert buffer.bytes == 60_924_932_096 and str(buffer) == "56.7 GiB"


def test_a_pending_token_costs_what_python_objects_cost():
    import sys

    token, log_prob = 10**5, -0.1
    references = sys.getsizeof((0, 0)) - sys.getsizeof(())
    rounded = -(-sys.getsizeof(token) // 16) * 16  # the allocator hands out multiples of 16 bytes
    assert references + rounded + sys.getsizeof(log_prob) == sizing.PENDING_TOKEN_BYTES
