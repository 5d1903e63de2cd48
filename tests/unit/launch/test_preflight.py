import json
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from soup_verl.launch import run
from soup_verl.launch.preflight import Data, Model, look_at_data, look_at_model, report, settings_of
from soup_verl.launch.preflight.data import validation_findings
from soup_verl.launch.preflight.memory import (
    checkpoints,
    history,
    memory_findings,
    offloaded,
    rolling_out,
    synced_policy,
    training,
)
from tests.unit import preflight_files as files
from tests.unit import tokenizer_families as families
from tests.unit.preflight_files import EIGHT_GPUS, TRAINING, compose, configure

PARAMS_7B = 7_615_616_512


def run_settings(*given, **more):
    return settings_of(configure(*TRAINING, *given, **more))


def verdicts(found):
    return {finding.name: finding.verdict for finding in found.findings}


# ---- every shipped configuration ----


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory):
    """Both models of the paper and 128 prompts, read once; each with its own tokenizer, or a small one of its kind."""
    folder = tmp_path_factory.mktemp("preflight")
    data = files.write_rows(folder / "rows.parquet", [files.row(i=i) for i in range(128)])
    models = {}
    for name, config, own, write_like in (
        ("7b", files.QWEN_7B, files.QWEN_TOKENIZER, families.write_qwen3_like),
        ("1.5b", files.R1_1_5B, files.R1_TOKENIZER, families.write_r1_like),
    ):
        tokenizer = own if own.is_dir() else write_like(folder / f"{name}_tokenizer")
        path = files.write_model(folder / name, config, tokenizer=tokenizer)
        paths = {"actor_rollout_ref__model__path": path, "data__train_files": data, "data__val_files": data}
        paths["trainer__total_epochs"] = 10_000  # there are few rows
        models[name] = (paths, look_at_model(run_settings(**paths)))
    return models


def check_passes(config, model):
    run = settings_of(config)
    found = report(config, run, EIGHT_GPUS, model, look_at_data(run, model.tokenizer, model.model_type))
    found.raise_if_refused()
    # The versions are those of the machine that runs the tests.
    assert {name for name, verdict in verdicts(found).items() if verdict != "ok"} <= {"pins"}
    assert {"context window", "chat template", "batches", "GPU while training", "KV cache of a replica", "disk"} <= (
        verdicts(found).keys()
    )


def training_with(example):
    """`TRAINING`, less what a domain's file decides itself: lengths that fit each other, batches, steps."""
    if not example.startswith("domains="):
        return TRAINING
    own = OmegaConf.load(files.ROOT / f"recipe/soup/config/{example.replace('=', '/')}.yaml")
    return [setting for setting in TRAINING if OmegaConf.select(own, setting.partition("=")[0]) is None]


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["7b", "1.5b"])
@pytest.mark.parametrize("example", files.examples())
def test_a_shipped_example_passes_on_eight_gpus(example, name, looked_at):
    paths, model = looked_at[name]
    check_passes(configure(*training_with(example), example=example, **paths), model)


@pytest.mark.e2e
def test_a_configured_example_is_what_hydra_composes():
    assert configure(*TRAINING, example="ablations=source") == compose("ablations=source", *TRAINING)


@pytest.mark.e2e
@pytest.mark.parametrize("script", files.scripts())
def test_a_run_script_passes_on_eight_gpus(script, looked_at):
    paths, model = looked_at["1.5b" if "1.5b" in script else "7b"]
    check_passes(configure(*files.script_settings(script), **paths), model)


# Problems of the benchmarks that the scripts validate on.
BENCHMARKS = {"math-500": 500, "amc23": 40, "aime24": 30, "aime25": 30, "minerva": 272, "olympiadbench": 674}


@pytest.mark.e2e
@pytest.mark.parametrize("script", files.scripts())
def test_a_run_script_spends_at_most_a_tenth_on_validation(script):
    settings = files.script_settings(script)
    (val_files,) = (line for line in settings if line.startswith("data.val_files="))
    assert all(val_files.count(f"/{name}.parquet") == 1 for name in BENCHMARKS), val_files
    assert val_files.count(".parquet") == len(BENCHMARKS)
    run = settings_of(configure(*settings))
    (found,) = validation_findings(run, sum(BENCHMARKS.values()), run.get("trainer.total_training_steps"))
    assert found.verdict == "ok", found


@pytest.mark.e2e
def test_the_readmes_commands_for_any_other_model_pass_on_eight_gpus(looked_at):
    text = (files.ROOT / "recipe/soup/README.md").read_text().split("Any other model and data;")[1]
    commands = text.split("```bash\n")[1].split("```")[0].replace("\\\n", " ").splitlines()
    assert len(commands) == 2
    paths, model = looked_at["7b"]
    for command in commands:
        check_passes(configure(*files.printed_settings(["bash", "-c", command]), **paths), model)


@pytest.mark.e2e
def test_both_models_have_the_parameters_that_are_known(looked_at):
    def by_hand(hidden, intermediate, kv, vocab, layers=28):
        attention = 2 * hidden * hidden + 2 * hidden * kv + hidden + 2 * kv  # q, o, k, v and the biases of q, k, v
        layer = attention + 3 * hidden * intermediate + 2 * hidden
        return 2 * vocab * hidden + layers * layer + hidden

    assert looked_at["7b"][1].shape.params == by_hand(3584, 18944, 512, 152064) == PARAMS_7B
    assert looked_at["1.5b"][1].shape.params == by_hand(1536, 8960, 256, 151936) == 1_777_088_000


@pytest.mark.e2e
@pytest.mark.skipif(not files.QWEN_TOKENIZER.is_dir(), reason=f"{files.QWEN_TOKENIZER} is not there")
def test_a_prompt_is_shown_as_the_qwen_template_renders_it(looked_at):
    paths, model = looked_at["7b"]
    data = look_at_data(run_settings(**paths), model.tokenizer, model.model_type)
    assert len(data.prompts) == 2
    assert data.prompts[0].endswith("<|im_start|>user\n2+2=<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.e2e
def test_the_1_5b_models_own_tokenizer_opens_the_answer_with_a_thought(looked_at):
    paths, model = looked_at["1.5b"]
    data = look_at_data(run_settings(**paths), model.tokenizer, model.model_type)
    assert data.prompts[0] == "<｜begin▁of▁sentence｜><｜User｜>2+2=<｜Assistant｜><think>\n"


# ---- memory of a 7B model on 8 GPUs ----


@pytest.fixture(scope="module")
def shape(looked_at):
    return looked_at["7b"][1].shape


def test_a_gpu_while_training(shape):
    shard = PARAMS_7B * 4 // 8
    ends = 2 * 152064 * 3584
    working = 2 * (ends + (PARAMS_7B - ends) // 28)
    working += 16384 * (8 * 3584 + 3 * 18944 + 28 * 3584) * 2 + 16384 * 152064 * 8
    assert training(run_settings(), shape).bytes == 4 * shard + working
    # bf16 parameters, gradients and moments; kernels that never hold all logits
    cheaper = run_settings(
        actor_rollout_ref__actor__fsdp_config__model_dtype="bf16", actor_rollout_ref__model__use_fused_kernels="true"
    )
    assert training(cheaper, shape).bytes == 2 * shard + working - 16384 * 152064 * 8
    # An engine that does not sleep keeps its weights: 2 bytes a parameter on 2 GPUs.
    awake = run_settings(actor_rollout_ref__rollout__free_cache_engine="false")
    assert training(awake, shape).bytes - training(run_settings(), shape).bytes == PARAMS_7B


def test_a_micro_batch_of_fixed_size_holds_whole_sequences(shape):
    fixed = run_settings(
        actor_rollout_ref__actor__use_dynamic_bsz="false", actor_rollout_ref__actor__ppo_micro_batch_size_per_gpu=4
    )
    assert fixed.training_tokens == 4 * (1024 + 8192)


def test_a_gpu_while_rolling_out(shape):
    shard, share = PARAMS_7B * 4 // 8, (80 << 30) // 2
    assert rolling_out(run_settings(), EIGHT_GPUS, shape).bytes == share + 3 * shard
    fsdp = "actor_rollout_ref__actor__fsdp_config__"
    offload = run_settings(**{fsdp + "param_offload": "true", fsdp + "optimizer_offload": "true"})
    assert rolling_out(offload, EIGHT_GPUS, shape).bytes == share
    assert offloaded(offload, shape).bytes == 3 * PARAMS_7B * 4
    two_pools = {"trainer__v1__trainer_mode": "soup_separate_async", "actor_rollout_ref__hybrid_engine": "false"}
    assert rolling_out(run_settings(**two_pools), EIGHT_GPUS, shape).bytes == share


def test_the_history_in_host_memory(shape):
    assert history(run_settings(soup__mixed_fraction=0), shape).bytes == 0
    # 4 steps x 128 prompts x 4 of 8 responses x 1024 tokens x 72 bytes
    assert history(run_settings(), shape).bytes == 4 * 128 * 4 * 1024 * 72
    assert history(run_settings(soup__source="replay"), shape).bytes == 64_000_000 * 10
    snapshot = {"soup__source": "snapshot", "soup__snapshot__capacity": 2}
    assert history(run_settings(**snapshot), shape).bytes == 2 * PARAMS_7B * 2  # the one that serves is on the GPUs
    offload = snapshot | {"actor_rollout_ref__actor__fsdp_config__param_offload": "true"}
    assert history(run_settings(**offload), shape).bytes == 3 * PARAMS_7B * 2
    fsdp1 = offload | {"actor_rollout_ref__actor__strategy": "fsdp"}
    assert history(run_settings(**fsdp1), shape).bytes == (2 * 2 + 4) * PARAMS_7B
    assert history(run_settings(soup__source="forget"), shape).bytes == PARAMS_7B * 4  # while the copy serves
    assert history(run_settings(**snapshot, trainer__nnodes=2), shape).bytes == 2 * PARAMS_7B


@pytest.mark.parametrize(
    ("changes", "copies"),
    [
        ({}, 2),  # 128 prompts in mini-batches of 64
        ({"trainer__v1__separate_async__parameter_sync_step": 1}, 1),
        ({"actor_rollout_ref__hybrid_engine": "true"}, 2),
        ({"soup__mixed_fraction": 0}, 2),  # verl's own does so
        ({"algorithm__rollout_correction__bypass_mode": "true"}, 0),
        ({"trainer__v1__trainer_mode": "soup_colocate_async"}, 0),
        ({"actor_rollout_ref__model__lora_rank": 8}, 0),  # the adapters are left out
    ],
)
def test_two_pools_keep_the_engines_policy_in_host_memory(shape, changes, copies):
    run = run_settings(example="neighbors=partial_rollout_two_pools", **changes)
    assert synced_policy(run, shape).bytes == copies * PARAMS_7B * 4
    (host,) = [f for f in memory_findings(run, EIGHT_GPUS, shape) if f.name == "host memory a node"]
    assert ("engines' policy" in host.how) == (copies > 0 or "actor_rollout_ref__model__lora_rank" in changes)


def test_the_reference_policy_is_in_host_memory(shape):
    assert offloaded(run_settings(), shape).bytes == 0
    assert offloaded(run_settings(actor_rollout_ref__actor__use_kl_loss="true"), shape).bytes == PARAMS_7B * 4


def test_checkpoints_on_disk(shape):
    plain = run_settings(soup__mixed_fraction=0)
    assert checkpoints(plain, shape, kept=2).bytes == 2 * 3 * PARAMS_7B * 4
    snapshot = run_settings(soup__source="snapshot")
    assert checkpoints(snapshot, shape, kept=2).bytes == 2 * (3 * 4 + 4 * 2) * PARAMS_7B
    forget = run_settings(soup__source="forget")
    assert checkpoints(forget, shape, kept=2).bytes == 2 * 3 * PARAMS_7B * 4
    weights = run_settings("actor_rollout_ref.actor.checkpoint.save_contents=[hf_model]", soup__mixed_fraction=0)
    assert checkpoints(weights, shape, kept=1).bytes == PARAMS_7B * 2


def findings_on(hardware, shape, **more):
    config = configure(*TRAINING, **more)
    return {f.name: f for f in report(config, settings_of(config), hardware, Model(shape), Data(steps=100)).findings}


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize(("keep_best", "need"), [("null", "170.3 GiB"), ("val-soup/a/pass@8", "255.4 GiB")])
def test_the_best_checkpoint_needs_room_beside_the_newest(shape, keep, keep_best, need):
    """Two of the model and Adam's moments, also where one is to be kept, until the next is whole; or three."""
    changed = {"trainer__save_freq": 20, "trainer__max_actor_ckpt_to_keep": keep, "soup__keep_best": keep_best}
    assert findings_on(EIGHT_GPUS, shape, **changed)["disk"].need == need


def test_estimates_only_warn(shape):
    small = replace(EIGHT_GPUS, gpu_bytes=20 << 30, host_bytes=1 << 20, disk_bytes=100 << 30, gpus=4)
    found = findings_on(small, shape)
    names = ("GPUs", "GPU while training", "GPU while rolling out", "host memory a node", "disk")
    assert {name: found[name].verdict for name in names} == dict.fromkeys(names, "warning")
    assert all(findings_on(EIGHT_GPUS, shape)[name].verdict == "ok" for name in names)
    assert "x 4 bytes / 8 shards" in found["GPU while training"].how


def test_the_cache_of_a_replica(shape):
    # 40 GiB less 7,615,616,512 bytes of weights, at 28,672 bytes a token
    assert findings_on(EIGHT_GPUS, shape)["KV cache of a replica"].have.startswith("1,232,354 tokens: 133.7 full")
    assert (40 * (1 << 30) - PARAMS_7B) // 28_672 == 1_232_354
    tight = findings_on(EIGHT_GPUS, shape, actor_rollout_ref__rollout__gpu_memory_utilization=0.09)
    assert tight["KV cache of a replica"].verdict == "warning"


def test_several_nodes_say_that_only_this_one_was_looked_at(shape):
    found = findings_on(replace(EIGHT_GPUS, described=False), shape, trainer__nnodes=2)
    assert "only this node was looked at" in found["host memory a node"].have
    assert found["GPUs"].need == "8 a node, 2 nodes"


@pytest.mark.e2e
def test_on_a_cpu_all_ranks_share_the_host(looked_at, shape):
    config = settings_of(configure(platform="cpu", trainer__n_gpus_per_node=2))
    (finding,) = memory_findings(config, EIGHT_GPUS, shape)
    assert finding.name == "host memory" and "x 2 ranks" in finding.how


# ---- at the start of a run ----


@pytest.fixture
def small_run(tmp_path):
    def config(*given, **more):
        model = tmp_path / "model"
        if not model.exists():
            files.write_model(model, files.SMALL)
            files.write_rows(tmp_path / "rows.parquet", [files.row(i=i) for i in range(32)])
        return configure(
            *given,
            data__train_batch_size=8,
            data__max_prompt_length=64,
            data__max_response_length=64,
            data__train_files=tmp_path / "rows.parquet",
            data__val_files=tmp_path / "rows.parquet",
            actor_rollout_ref__model__path=model,
            reward__custom_reward_function__path="pkg://soup_verl.reward",
            actor_rollout_ref__rollout__n=4,
            actor_rollout_ref__rollout__log_prob_micro_batch_size_per_gpu=4,
            actor_rollout_ref__actor__ppo_mini_batch_size=8,
            actor_rollout_ref__actor__ppo_micro_batch_size_per_gpu=4,
            trainer__default_local_dir=tmp_path / "run",
            **({"soup__preflight_only": "true"} | more),
        )

    return config


def test_preflight_only_ends_after_the_report(small_run, tmp_path, capsys):
    run.run(small_run())
    shown = capsys.readouterr().out
    assert "preflight:" in shown and "context window" in shown and "<s>user:2+2=</s><s>assistant:" in shown
    stored = json.loads((tmp_path / "run" / "preflight.json").read_text())
    assert not [f for f in stored["findings"] if f["verdict"] == "no"]
    assert stored["prompts"][0] == "<s>user:2+2=</s><s>assistant:"


@pytest.mark.e2e
def test_what_ran_is_kept_in_the_runs_folder(small_run, tmp_path):
    run.run(small_run(soup__seed=1))
    run.run(small_run(soup__seed=2))
    folder = tmp_path / "run"
    config = OmegaConf.load(folder / "config.yaml")
    assert config.soup.seed == 2 and config.actor_rollout_ref.rollout.response_length == 64  # resolved
    assert OmegaConf.load(folder / "config.0001.yaml").soup.seed == 1
    facts = json.loads((folder / "run.json").read_text())
    assert {"verl", "ray", "torch", "transformers"} <= facts["versions"].keys()
    assert facts["command"] and facts["host"] and facts["python"].count(".") == 2
    assert (folder / "run.0001.json").exists()


def test_what_is_certain_to_fail_ends_the_run_with_one_line(small_run, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run.run(small_run(actor_rollout_ref__rollout__tensor_model_parallel_size=3))
    output = capsys.readouterr()
    assert caught.value.code == 1 and output.err.count("\n") == 1
    assert output.err.startswith(
        "error: ConfigError: actor_rollout_ref.rollout.tensor_model_parallel_size=3: expected a divisor of 8 GPUs"
    )
    assert "1 no" in output.out
    stored = json.loads((tmp_path / "run" / "preflight.json").read_text())
    assert "no" in {f["verdict"] for f in stored["findings"]}


def test_verls_own_check_is_part_of_it(small_run, capsys):
    with pytest.raises(SystemExit):
        run.run(small_run(actor_rollout_ref__actor__loss_agg_mode="median"))
    assert "median" in capsys.readouterr().err
