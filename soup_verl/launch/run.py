"""From a composed configuration to a finished run: checks and preflight first, then verl's `run_ppo` with our trainer
registered."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from soup_verl.launch import preflight, stacks
from soup_verl.launch.finished import is_finished
from soup_verl.launch.run_rules import check_run
from soup_verl.method.checks import ConfigError, PortableError
from soup_verl.method.config import SoupConfig
from soup_verl.tasks.data.files import READ_BY_VERL
from soup_verl.tasks.domains import check_keywords
from soup_verl.tasks.reward_function import FUNCTION, PACKAGE, is_ours, module_name

DIED = 3
"""Exit code of a run that ended because a process of it died; other errors have 1."""
ERROR_FILE = "error.txt"


def run(config: DictConfig) -> None:
    """Check `config`, report on it, start Ray, train; a failure becomes one line on stderr and exit code 1.

    With `soup.preflight_only` it ends after the report.
    The full traceback goes to `error.txt` in `trainer.default_local_dir`.
    """
    use_platform(config)
    prepare(config)
    if not config.soup.preflight_only:
        train(config)


def use_platform(config: DictConfig) -> None:
    """Make this process, and those it will start, use the platform that `config` asks for."""
    if config.trainer.device == "cpu":
        from soup_verl.stack import cpu

        cpu.enable(loopback=starts_own_cluster(config))


def prepare(config: DictConfig) -> None:
    """Check `config` and report on it; nothing is started yet."""
    try:
        check(config)
        preflight.start(config)
    except Exception as error:
        _report(error, config)
        sys.exit(1)


def soup_section(config: DictConfig) -> SoupConfig:
    """The run's `soup:` section, which has been checked or is now."""
    plain: Any = OmegaConf.to_container(config.soup, resolve=True)
    return SoupConfig.parse(plain)


def check(config: DictConfig) -> None:
    """What must hold before preflight can look at anything: settings in range, and files that exist.

    Raises:
        ConfigError: names the key, the value, what is expected and what to do.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True)
    check_run(SoupConfig.parse(plain.get("soup") or {}), plain)
    check_output_folder(plain["trainer"]["default_local_dir"])
    check_model_path(plain["actor_rollout_ref"]["model"]["path"])
    for key in ("train_files", "val_files"):
        check_data_files(f"data.{key}", plain["data"][key], plain["data"].get("prompt_key", "prompt"))
    check_reward_path(plain["reward"]["custom_reward_function"]["path"])
    check_reward_keywords(plain["reward"]["custom_reward_function"])


def check_output_folder(path: str) -> None:
    """The run's folder is there, or can be made, and takes a file."""
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(
            "trainer.default_local_dir", path, f"a folder that can be written ({error.strerror})"
        ) from None


def check_reward_path(path: str | None) -> None:
    """A Python file, or verl's `pkg://MODULE` for a module that is installed."""
    if path is None:
        return
    found = _is_module(module_name(path)) if path.startswith(PACKAGE) else Path(path.removeprefix("file://")).is_file()
    if not found:
        expected = "a Python file, or pkg:// and a module's name"
        raise ConfigError("reward.custom_reward_function.path", path, expected, _home(path))


def _home(path: str) -> str:
    return "verl takes ~ for a letter: write $HOME." if path.startswith("~") else ""


def check_reward_keywords(function: Mapping[str, Any]) -> None:
    """The keywords of our own reward are names that it has, with values that it takes."""
    if is_ours(function.get("path"), function.get("name", FUNCTION)):
        try:
            check_keywords(function.get("reward_kwargs") or {})
        except ValueError as error:
            raise PortableError(f"reward.custom_reward_function.{error}") from None


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def check_model_path(path: str) -> None:
    """A local folder must hold a config.json; anything else must look like a hub name or a remote path."""
    key, folder = "actor_rollout_ref.model.path", Path(str(path)).expanduser()
    if folder.exists():
        if not (folder / "config.json").is_file():
            raise ConfigError(key, path, "a folder with a model's config.json")
        return
    hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+|[\w-]+", str(path)) and not str(path).startswith(".")
    if "://" not in str(path) and not (hub_name and _on_hub(str(path))):
        raise ConfigError(key, path, "a model folder that exists, or a name on the hub", "Check the path.")


def _on_hub(name: str) -> bool:
    """Whether the hub, or its local cache, has a configuration under this name."""
    from transformers.utils import cached_file

    try:
        return cached_file(name, "config.json") is not None
    except OSError:
        return False


def check_data_files(key: str, files: Any, prompt_column: str) -> None:
    """There is one, every one exists and is of a kind that verl reads, and parquet files have the prompt column."""
    given = files if isinstance(files, list) else [files]
    if not given or files is None:
        validation = "verl reads one also where it never validates" if key == "data.val_files" else ""
        raise ConfigError(key, files, "at least one file", validation)
    for file in given:
        path = Path(str(file))
        if "://" in str(file):
            continue
        if path.is_dir():
            raise ConfigError(key, file, "a file, not a folder", f"Of shards: {key}='{file}/*.parquet'.")
        if not path.is_file() and not glob.glob(str(path)):
            raise ConfigError(key, file, "a file that exists", _home(str(file)))
        if not str(file).endswith(READ_BY_VERL):
            remedy = "soup_verl.prepare_data --from reads more kinds."
            raise ConfigError(key, file, f"a file that verl reads: its name ends in {', '.join(READ_BY_VERL)}", remedy)
        if path.suffix == ".parquet" and path.is_file():
            columns = _parquet_columns(key, path)
            if prompt_column not in columns:
                raise ConfigError(key, file, f"a parquet file with the column {prompt_column!r}, not only {columns}")


def _parquet_columns(key: str, path: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path).names
    except pa.ArrowException as error:
        raise ConfigError(key, str(path), f"a parquet file that can be read ({error})") from None


def train(config: DictConfig, further: Sequence[DictConfig] = ()) -> None:
    """Start Ray and the processes that `config` asks for, train, and in a series train `further` runs on them."""
    from soup_verl.launch.task_runner import task_runner
    from soup_verl.launch.watch import ProcessDied

    try:
        _run_ppo(config, task_runner(further))
    except Exception as error:
        runs = [config, *further]
        _report(error, next((c for c in runs[:-1] if not is_finished(c)), runs[-1]))
        sys.exit(DIED if isinstance(_cause(error), ProcessDied) else 1)


def _run_ppo(config: DictConfig, task_runner_class: Any) -> None:
    import ray
    from verl.trainer.main_ppo import run_ppo

    from soup_verl.launch import watch

    if os.environ.get("RAY_ADDRESS"):
        join_cluster(config)
    try:
        run_ppo(config, task_runner_class)
    except ray.exceptions.RayTaskError:  # the task runner has looked into its own errors
        raise
    except ray.exceptions.RayError as error:  # the task runner itself was lost
        raise watch.named(error)  # noqa: B904  its cause is set, or it is the error itself
    finally:
        ray.shutdown()  # before anything is said of a failure: it still prints what the workers logged


def starts_own_cluster(config: DictConfig) -> bool:
    """Whether Ray will run on this machine alone, for this run."""
    return OmegaConf.select(config, "ray_kwargs.ray_init.address") == "local" and not os.environ.get("RAY_ADDRESS")


OF_A_NEW_CLUSTER = ("address", "num_cpus", "num_gpus", "object_store_memory", "include_dashboard")
"""What `ray.init` takes only when it starts a cluster itself."""


def join_cluster(config: DictConfig) -> None:
    """Make `config.ray_kwargs` fit for the Ray cluster that RAY_ADDRESS names, instead of one of our own.

    Resources are the cluster's, so settings for a new one are dropped. Its processes do not inherit our environment,
    so what the run depends on is sent along.
    """
    names = ["SOUP_IMPORT", "VERL_FILE_LOGGER_PATH", stacks.RUN, stacks.ANSWERS]
    if config.trainer.device == "cpu":
        from soup_verl.stack import cpu

        names += [cpu.RUN, *cpu.ENVIRONMENT]
    sent = {name: os.environ[name] for name in names if name in os.environ}
    if stacks.RUN in sent:
        sent["PYTHONPATH"] = f"{stacks.AT_START}:$PYTHONPATH"  # Ray puts in that of the node; braces are OmegaConf's
    with open_dict(config.ray_kwargs):
        given: Any = OmegaConf.to_container(config.ray_kwargs.ray_init)
        runtime_env = given["runtime_env"]
        runtime_env["env_vars"] = {**(runtime_env.get("env_vars") or {}), **sent}
        config.ray_kwargs.ray_init = {key: value for key, value in given.items() if key not in OF_A_NEW_CLUSTER}


def _cause(error: Exception) -> Exception:
    """Ray wraps the task's own exception."""
    return getattr(error, "cause", None) or error


def _report(error: Exception, config: DictConfig) -> None:
    cause = _cause(error)
    line = " ".join(f"error: {type(cause).__name__}: {cause}".split())
    file = Path(config.trainer.default_local_dir) / ERROR_FILE
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="backslashreplace")
    except OSError as no_file:
        traceback.print_exception(error)
        where = f"no traceback in {file}: {no_file.strerror}"
    else:
        where = f"traceback: {file}"
    sys.stderr.write(f"{line} ({where})\n")
