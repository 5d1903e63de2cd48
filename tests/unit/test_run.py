import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from soup_verl import run
from soup_verl.config import ConfigError


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


@pytest.mark.parametrize("path", [None, "pkg://soup_verl.reward", "pkg://soup_verl/reward", __file__])
def test_a_reward_function_may_be_a_file_or_an_installed_module(path):
    run.check_reward_path(path)


@pytest.mark.parametrize("path", ["pkg://soup_verl.no_such", "pkg://no_such.reward", "no/such/reward.py"])
def test_a_reward_function_that_is_not_there_is_refused_by_its_key(path):
    with pytest.raises(ConfigError, match="reward.custom_reward_function.path=.*expected a Python file, or pkg://"):
        run.check_reward_path(path)
