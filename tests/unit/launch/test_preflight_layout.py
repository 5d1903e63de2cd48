"""What preflight says of GPUs, batches and token budgets."""

import pytest

from soup_verl.launch.preflight.layout import batch_findings, gpu_findings, token_findings
from tests.unit.preflight_settings import ACTOR, HERE, REF, ROLLOUT, SHAPE, by_name, run_with


def refusals(findings):
    return [str(f.error) for f in findings if f.error is not None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{ROLLOUT}.tensor_model_parallel_size": 3}, "tensor_model_parallel_size=3: expected a divisor of 8 GPUs"),
        ({f"{ROLLOUT}.tensor_model_parallel_size": 8}, "=8: expected a divisor of 28 attention heads"),
        ({f"{ROLLOUT}.data_parallel_size": 5}, "tensor_model_parallel_size=5: expected a divisor of 8 GPUs"),
        ({f"{ACTOR}.ulysses_sequence_parallel_size": 3}, "sequence_parallel_size=3: expected a divisor of 8 GPUs"),
        ({f"{ACTOR}.ulysses_sequence_parallel_size": 8}, "sequence_parallel_size=8: expected a divisor of 28"),
        ({f"{ACTOR}.fsdp_config.fsdp_size": 3}, "fsdp_size=3: expected a divisor of 8 GPUs"),
        (
            {"trainer.n_gpus_per_node": 4, "trainer.nnodes": 3, f"{ROLLOUT}.tensor_model_parallel_size": 6},
            "=6: expected a value that makes 6 GPUs of a replica a multiple of 4",
        ),
    ],
)
def test_gpus_that_do_not_divide_are_refused(changes, message):
    assert refusals(gpu_findings(run_with(), HERE, SHAPE)) == []
    assert any(message in error for error in refusals(gpu_findings(run_with(changes), HERE, SHAPE)))


def test_replicas_with_a_pool_of_their_own_share_its_gpus():
    mode = {"trainer.v1.trainer_mode": "soup_separate_async", "actor_rollout_ref.hybrid_engine": False}
    pool = {f"{ROLLOUT}.n_gpus_per_node": 2, f"{ROLLOUT}.nnodes": 2, f"{ROLLOUT}.tensor_model_parallel_size": 4}
    assert run_with(mode | pool).rollout_gpus == 4 and run_with(pool).rollout_gpus == 8
    assert refusals(gpu_findings(run_with(mode | pool), HERE, SHAPE)) == []
    (error,) = refusals(gpu_findings(run_with(mode | pool | {f"{ROLLOUT}.nnodes": 1}), HERE, SHAPE))
    assert error.endswith(
        "tensor_model_parallel_size=4: expected a divisor of 2 GPUs. actor_rollout_ref.rollout.n_gpus_per_node=2 x "
        "actor_rollout_ref.rollout.nnodes=1 GPUs are shared by replicas."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # 8 prompts x 4 responses on 8 GPUs: 4 a GPU; a step of 16 prompts: 8 a GPU
        ({f"{ACTOR}.ppo_mini_batch_size": 3}, "ppo_mini_batch_size=3: expected a value that makes 12"),
        (
            {f"{ACTOR}.ppo_mini_batch_size": 4, "soup.down_sampling.train_on": 3},
            "ppo_mini_batch_size=4: expected a value that makes 12 = ppo_mini_batch_size x "
            "soup.down_sampling.train_on=3 a multiple of 8",
        ),
        ({f"{ACTOR}.ppo_micro_batch_size_per_gpu": 3}, "ppo_micro_batch_size_per_gpu=3: expected a divisor of 4"),
        ({f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu": 3}, "micro_batch_size_per_gpu=3: expected a divisor of 8"),
        (
            {f"{ACTOR}.use_kl_loss": True, f"{REF}.log_prob_micro_batch_size_per_gpu": 5},
            "ref.log_prob_micro_batch_size_per_gpu=5: expected a divisor of 8",
        ),
    ],
)
def test_batches_that_do_not_divide_are_refused(changes, message):
    assert refusals(batch_findings(run_with())) == []
    (error,) = refusals(batch_findings(run_with(changes)))
    assert message in error
    if "micro" in message:  # packed by tokens instead
        dynamic = {f"{part}.{key}": True for part in (ROLLOUT, REF) for key in ["log_prob_use_dynamic_bsz"]}
        assert refusals(batch_findings(run_with({**changes, **dynamic, f"{ACTOR}.use_dynamic_bsz": True}))) == []


def test_a_step_that_verl_pads_is_a_warning():
    finding = by_name(batch_findings(run_with({"data.train_batch_size": 15})))["responses a step"]
    assert (finding.verdict, finding.how) == ("warning", "verl fills up with 4 empty responses")
    some = {"data.train_batch_size": 15, "soup.down_sampling.train_on": 2}
    finding = by_name(batch_findings(run_with(some)))["responses a step"]
    assert (finding.have, finding.how) == (
        "data.train_batch_size=15 x soup.down_sampling.train_on=2 = 30",
        "verl fills up with 2 empty responses",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {f"{ACTOR}.use_dynamic_bsz": True, f"{ACTOR}.ppo_max_token_len_per_gpu": 99},
            "ppo_max_token_len_per_gpu=99: expected at least 100 tokens",
        ),
        (
            {f"{ROLLOUT}.log_prob_use_dynamic_bsz": True, f"{ROLLOUT}.log_prob_max_token_len_per_gpu": 99},
            "log_prob_max_token_len_per_gpu=99: expected at least 100 tokens",
        ),
        ({f"{ROLLOUT}.max_model_len": 40}, "max_model_len=40: expected more than data.max_prompt_length=40"),
        ({f"{ROLLOUT}.max_num_seqs": 513}, "max_num_batched_tokens=512: expected at least"),
    ],
)
def test_token_budgets_that_are_too_small_are_refused(changes, message):
    assert refusals(token_findings(run_with())) == []
    (error,) = refusals(token_findings(run_with(changes)))
    assert message in error


def test_sequence_parallelism_shares_a_sequence():
    changes = {f"{ACTOR}.use_dynamic_bsz": True, f"{ACTOR}.ppo_max_token_len_per_gpu": 50}
    assert refusals(token_findings(run_with({**changes, f"{ACTOR}.ulysses_sequence_parallel_size": 2}))) == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({f"{ROLLOUT}.max_model_len": 99}, "rollout.max_model_len"),
        (
            {f"{ROLLOUT}.enable_chunked_prefill": False, f"{ROLLOUT}.max_model_len": 513},
            "rollout.max_num_batched_tokens",
        ),
    ],
)
def test_budgets_that_cut_or_are_raised_are_a_warning(changes, name):
    assert by_name(token_findings(run_with(changes)))[name].verdict == "warning"
