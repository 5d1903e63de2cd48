import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from ray._private.utils import update_envs

from soup_verl.launch import run, stacks
from soup_verl.launch.task_runner import take_the_platforms_trainer
from soup_verl.method.checks import ConfigError


def test_a_model_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="actor_rollout_ref.model.path=.*config.json"):
        run.check_model_path(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    run.check_model_path(str(tmp_path))


@pytest.mark.parametrize("path", ["./no/such/model", "/no/such/model", "a/b/c", "no such/model"])
def test_a_path_that_does_not_exist_and_is_no_hub_name_is_refused(path):
    with pytest.raises(ConfigError, match="actor_rollout_ref.model.path="):
        run.check_model_path(path)


def test_a_remote_model_path_is_verls_business():
    run.check_model_path("hdfs://host/model")


def test_a_series_that_errs_after_its_last_run_had_finished_says_so_in_that_runs_folder(tmp_path, monkeypatch, capsys):
    def finish_all_and_fail(config, runner):
        for run_config in runs:
            folder = Path(run_config.trainer.default_local_dir)
            folder.mkdir()
            (folder / "finished.json").write_text(json.dumps({"steps": 4, "epochs": 1}))
        raise OSError("Ray did not end")

    trainer = {"total_training_steps": 4, "total_epochs": 1}
    runs = [OmegaConf.create({"trainer": trainer | {"default_local_dir": str(tmp_path / name)}}) for name in "ab"]
    monkeypatch.setattr(run, "_run_ppo", finish_all_and_fail)
    with pytest.raises(SystemExit):
        run.train(runs[0], further=runs[1:])
    assert capsys.readouterr().err == f"error: OSError: Ray did not end (traceback: {tmp_path}/b/error.txt)\n"


@pytest.mark.parametrize("several", [False, True])
def test_data_files_must_exist_and_have_the_prompt_column(tmp_path, several):
    good, other = tmp_path / "good.parquet", tmp_path / "other.parquet"
    pq.write_table(pa.table({"prompt": ["p"]}), good)
    pq.write_table(pa.table({"question": ["q"]}), other)

    def check(path):
        run.check_data_files("data.train_files", [str(good), str(path)] if several else str(path), "prompt")

    check(good)
    check("hdfs://host/file.parquet")
    with pytest.raises(ConfigError, match="data.train_files=.*none.parquet.*a file that exists"):
        check(tmp_path / "none.parquet")
    with pytest.raises(ConfigError, match="data.train_files=.*other.parquet.*'prompt'.*question"):
        check(other)


def test_a_refused_run_says_one_line_exits_with_1_and_keeps_the_traceback(tmp_path, capsys):
    config = OmegaConf.create(
        {"trainer": {"device": "cuda", "default_local_dir": str(tmp_path / "run")}, "soup": {"mixed_fractoin": 1}}
    )
    with pytest.raises(SystemExit) as caught:
        run.run(config)
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert (
        error.startswith("error: ConfigError: soup.mixed_fractoin=1: expected no such key") and error.count("\n") == 1
    )
    assert "Traceback" in (tmp_path / "run" / "error.txt").read_text()


def test_a_folder_that_cannot_be_written_is_refused_and_the_line_is_still_said(tmp_path, capsys):
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "run")
    with pytest.raises(ConfigError, match=r"trainer.default_local_dir='.*run': expected a folder that can be written"):
        run.check_output_folder(folder)
    with pytest.raises(SystemExit):
        run.run(OmegaConf.create({"trainer": {"device": "cuda", "default_local_dir": folder}, "soup": {"x": 1}}))
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ConfigError: soup.x=1") and "no traceback in" in last


@pytest.mark.parametrize(("device", "sent"), [("cpu", {"SOUP_IMPORT": "mine", "VERL_PLATFORM": "cpu"}), ("cuda", None)])
def test_a_cluster_that_is_up_keeps_its_resources_and_is_told_what_the_run_needs(monkeypatch, device, sent):
    monkeypatch.setenv("SOUP_IMPORT", "mine")
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    ray_init = {"address": "local", "num_cpus": 32, "num_gpus": 1, "object_store_memory": 9, "include_dashboard": False}
    kept = {"log_to_driver": False, "runtime_env": {"py_executable": None, "env_vars": {"A": "1"}}}
    config = OmegaConf.create({"trainer": {"device": device}, "ray_kwargs": {"ray_init": {**ray_init, **kept}}})
    OmegaConf.set_struct(config, True)
    run.join_cluster(config)
    left = OmegaConf.to_container(config.ray_kwargs.ray_init)
    env = left["runtime_env"].pop("env_vars")
    assert left == {"log_to_driver": False, "runtime_env": {"py_executable": None}}
    expected = {"A": "1", **(sent or {"SOUP_IMPORT": "mine"})}
    assert {name: env[name] for name in expected} == expected
    assert ("VERL_PLATFORM" in env) is (device == "cpu")


def test_a_supervised_run_on_a_cluster_that_is_up_sends_what_its_stacks_need(monkeypatch):
    monkeypatch.setenv(stacks.RUN, "mark")
    monkeypatch.setenv(stacks.ANSWERS, "/tmp/answers")
    ray_init = {"runtime_env": {"env_vars": None}}
    config = OmegaConf.create({"trainer": {"device": "cuda"}, "ray_kwargs": {"ray_init": ray_init}})
    run.join_cluster(config)
    sent = OmegaConf.to_container(config, resolve=True)["ray_kwargs"]["ray_init"]["runtime_env"]["env_vars"]
    for name, value in {"PYTHONPATH": "/the/nodes", "SOUP_RUN": "none"}.items():
        monkeypatch.setenv(name, value)
    update_envs(sent)  # as Ray does on a node
    assert os.environ["PYTHONPATH"] == f"{stacks.AT_START}:/the/nodes"
    assert os.environ["SOUP_RUN"] == "mark" and os.environ["SOUP_STACKS"] == "/tmp/answers"


@pytest.mark.parametrize(
    ("address", "environment", "own"),
    [("local", {}, True), ("local", {"RAY_ADDRESS": "10.0.0.1:6379"}, False), (None, {}, False), ("auto", {}, False)],
)
def test_only_a_cluster_that_the_run_starts_itself_can_be_kept_on_loopback(monkeypatch, address, environment, own):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = OmegaConf.create({"ray_kwargs": {"ray_init": {"address": address} if address else {}}})
    assert run.starts_own_cluster(config) is own


@pytest.mark.parametrize("path", [None, "pkg://soup_verl.reward", "pkg://soup_verl/tasks/reward", __file__])
def test_a_reward_function_may_be_a_file_or_an_installed_module(path):
    run.check_reward_path(path)


@pytest.mark.parametrize("path", ["pkg://soup_verl.no_such", "pkg://no_such.reward", "no/such/reward.py"])
def test_a_reward_function_that_is_not_there_is_refused_by_its_key(path):
    with pytest.raises(ConfigError, match="reward.custom_reward_function.path=.*expected a Python file, or pkg://"):
        run.check_reward_path(path)


@pytest.mark.parametrize("files", [[], None])
@pytest.mark.parametrize("key", ["data.train_files", "data.val_files"])
def test_no_file_is_refused(key, files):
    with pytest.raises(ConfigError, match=rf"{key}={re.escape(repr(files))}: expected at least one file"):
        run.check_data_files(key, files, "prompt")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("rows.jsonl.gz", r"a file that verl reads: its name ends in .parquet, .json, .jsonl\. soup_verl.prepare_data"),
        ("rows.csv", "a file that verl reads"),
        ("folder", r"a file, not a folder\. Of shards: data.train_files='.*folder/\*.parquet'"),
        ("torn.parquet", "a parquet file that can be read"),
        ("no-*.parquet", "a file that exists"),
    ],
)
def test_files_of_a_kind_that_verl_does_not_read_are_refused(tmp_path, name, told):
    (tmp_path / "folder").mkdir()
    for file in ("rows.jsonl.gz", "rows.csv", "torn.parquet"):
        (tmp_path / file).write_text("PAR1")
    with pytest.raises(ConfigError, match=told):
        run.check_data_files("data.train_files", str(tmp_path / name), "prompt")


def test_a_pattern_of_shards_is_accepted_and_a_home_that_verl_does_not_know_is_not(tmp_path, monkeypatch):
    pq.write_table(pa.table({"prompt": ["p"]}), tmp_path / "a-0.parquet")
    run.check_data_files("data.train_files", f"{tmp_path}/a-*.parquet", "prompt")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="verl takes ~ for a letter"):
        run.check_data_files("data.train_files", "~/a-0.parquet", "prompt")


@pytest.mark.parametrize("path", ["pkg://soup_verl.reward", "pkg://soup_verl/tasks/reward", "soup_verl/reward.py"])
@pytest.mark.parametrize(
    ("keywords", "told"),
    [
        ({"box": "row"}, "reward_kwargs.box='row': expected no such key, but one of relation_as_interval, "),
        ({"boxes": "rows"}, "reward_kwargs.boxes='rows': expected 'last' or 'row'"),
        ({"time_limit_s": "3"}, "reward_kwargs.time_limit_s='3': expected a number of seconds above 0"),
        ({"time_limit_s": 0}, "reward_kwargs.time_limit_s=0: expected a number of seconds above 0"),
    ],
)
def test_a_keyword_that_our_reward_does_not_have_is_refused(path, keywords, told):
    function = {"path": path, "name": "compute_score"}
    with pytest.raises(ValueError, match=re.escape(f"reward.custom_reward_function.{told}")):
        run.check_reward_keywords(function | {"reward_kwargs": keywords})
    run.check_reward_keywords(function | {"reward_kwargs": {"boxes": "row", "time_limit_s": 1.5}})
    run.check_reward_keywords(function)


def test_the_keywords_of_a_function_of_ones_own_are_its_own(tmp_path):
    for path in (None, "mine.py", "pkg://mine"):
        run.check_reward_keywords({"path": path, "name": "compute_score", "reward_kwargs": {"anything": 1}})


@pytest.mark.parametrize(
    ("device", "mode", "expected"),
    [
        ("cpu", "soup_colocate_async", "soup_colocate_async_cpu"),
        ("cpu", "soup_separate_async", "soup_separate_async_cpu"),
        ("cpu", "soup", "soup_cpu"),
        ("cpu", "probed_soup_cpu", "probed_soup_cpu"),
        ("cuda", "soup_colocate_async", "soup_colocate_async"),
    ],
)
def test_an_example_names_its_trainer_for_both_platforms(device, mode, expected):
    config = OmegaConf.create({"trainer": {"device": device, "v1": {"trainer_mode": mode}}})
    take_the_platforms_trainer(config)
    assert config.trainer.v1.trainer_mode == expected
