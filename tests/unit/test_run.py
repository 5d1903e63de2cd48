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
