"""The wheel, built as for an upload and installed where this checkout cannot be seen; and the recipe in a verl checkout
beside it, as a folder of verl's recipe collection."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.unit.preflight_files import SMALL, row, write_model, write_rows

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
SOURCES = ("soup_verl", "recipe")
TOGETHER = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "requirements")
NO_CACHES = shutil.ignore_patterns("__pycache__", ".ruff_cache")

RUN = ("actor_rollout_ref.rollout.n=8", "data.max_response_length=1024", "trainer.total_training_steps=100")
COMPOSE = """
import json, sys, yaml
yaml.SafeLoader = yaml.CSafeLoader  # what OmegaConf reads with: two thirds of the time
from omegaconf import OmegaConf
from recipe.soup import main_series
from soup_verl.launch.run_rules import check_run
from soup_verl.method.config import SoupConfig

print(main_series.__file__)
for line in sys.stdin:
    config = OmegaConf.to_container(main_series.compose(json.loads(line)), resolve=True)
    check_run(SoupConfig.parse(config["soup"]), config)
    print(config["trainer"]["device"], config["soup"]["seed"])
"""


def run(*command, cwd, given=None, code=0):
    """Its output; without this checkout on its path."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, input=given, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of both distributions: the source, and the wheel made of it, without a network."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=NO_CACHES)
    for name in TOGETHER:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", source / "dist", source, cwd=source)
    return source / "dist"


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A Python that has the wheel, and of this environment all other packages."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Paths in such a file are added as they are: the files there that lead to this checkout are not read.
    (packages / "environment.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    (wheel,) = built.glob("*.whl")
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    return python


@pytest.fixture(scope="module")
def mounted(tmp_path_factory):
    """A verl checkout whose recipe collection has this recipe, with an ablation of its own."""
    checkout = tmp_path_factory.mktemp("mount") / "verl"
    recipe = shutil.copytree(ROOT / "recipe" / "soup", checkout / "recipe" / "soup", ignore=NO_CACHES)
    (recipe / "config" / "ablations" / "mine.yaml").write_text("# @package _global_\nsoup:\n  seed: 17\n")
    return checkout


def test_both_distributions_have_every_file_of_the_packages(built):
    source_tree = built.parent
    files = [path for name in SOURCES for path in (source_tree / name).rglob("*") if path.is_file()]
    expected = {str(path.relative_to(source_tree)) for path in files} - {"recipe/ruff.toml"}
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    in_wheel = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert in_wheel == expected
    with tarfile.open(source) as archive:
        in_source = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert {name for name in in_source if name.startswith(SOURCES) and ".egg-info/" not in name} == expected
    suffixes = {Path(name).suffix for name in expected}
    assert suffixes >= {".py", ".yaml", ".css", ".js", ".jinja", ".jsonl", ".sh", ".md", ".txt"}


def test_twine_and_check_wheel_contents_have_no_complaint(built):
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir(), cwd=built)
    run(sys.executable, "-m", "check_wheel_contents", "--config", ROOT / "pyproject.toml", wheel, cwd=built)


def test_the_wheel_is_what_runs(installed, tmp_path):
    code = "import importlib.metadata, soup_verl; print(soup_verl.__file__, importlib.metadata.version('soup-verl'))"
    file, version = run(installed, "-c", code, cwd=tmp_path).split()
    assert Path(file).is_relative_to(installed.parents[1]) and version == "0.1.0"


@pytest.mark.parametrize(
    "module", ["soup_verl.evaluate", "soup_verl.prepare_data", "recipe.soup.main_series", "recipe.soup.sweep"]
)
def test_a_command_of_the_wheel_says_what_it_takes(installed, tmp_path, module):
    assert f"usage: python -m {module}" in run(installed, "-m", module, "--help", cwd=tmp_path)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Settings of a run that preflight lets pass."""
    folder = tmp_path_factory.mktemp("given")
    data = write_rows(folder / "rows.parquet", [row(i=i) for i in range(8)])
    model = write_model(folder / "model", SMALL)
    return [
        f"actor_rollout_ref.model.path={model}",
        f"data.train_files={data}",
        f"data.val_files={data}",
        "data.train_batch_size=8",
        "data.max_prompt_length=64",
        "data.max_response_length=64",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.n=4",
        "trainer.total_training_steps=10",
        "reward.custom_reward_function.path=pkg://soup_verl.reward",
        "soup.preflight_only=true",
    ]


@pytest.mark.parametrize("place", ["anywhere", "mounted"])
def test_preflight_runs_from_the_wheel_and_from_a_verl_checkout(installed, mounted, given, tmp_path, place):
    """With an ablation by name: in the checkout one that only its own copy of the recipe has."""
    where, ablation = {"anywhere": (tmp_path, "age"), "mounted": (mounted, "mine")}[place]
    settings = ["platform=cpu", f"ablations={ablation}", f"trainer.default_local_dir={tmp_path / 'run'}", *given]
    said = run(installed, "-m", "recipe.soup.main_soup", *settings, cwd=where)
    assert "preflight: " in said and not (where / "outputs").exists()  # Hydra's, in whatever folder one stands
    report = json.loads((tmp_path / "run" / "preflight.json").read_text())
    assert not [finding for finding in report["findings"] if finding["verdict"] == "no"]
    seed = {"anywhere": 0, "mounted": 17}[place]
    assert f"seed: {seed}\n" in (tmp_path / "run" / "config.yaml").read_text().partition("\nsoup:")[2]


def test_every_file_of_the_recipe_composes_in_a_verl_checkout(installed, mounted):
    """On either platform; what each sets is looked at in tests/unit/test_examples.py."""
    files = [
        path
        for group in ("ablations", "domains", "neighbors")
        for path in mounted.glob(f"recipe/soup/config/{group}/*.yaml")
    ]
    assert len(files) > 40
    overrides = [
        [f"platform={platform}", f"{file.parent.name}={file.stem}", *RUN]
        for platform in ("cpu", "gpu")
        for file in files
    ]
    lines = "".join(f"{json.dumps(o)}\n" for o in overrides)
    module, *said = run(installed, "-c", COMPOSE, cwd=mounted, given=lines).splitlines()
    assert Path(module).is_relative_to(mounted)
    devices, seeds = zip(*(line.split() for line in said), strict=True)
    assert devices == ("cpu",) * len(files) + ("cuda",) * len(files)
    assert seeds == tuple("17" if "ablations=mine" in o else "0" for o in overrides)


def test_the_recipe_lists_itself_there(installed, mounted):
    assert "\n  mine " in run(installed, "-m", "recipe.soup.list", cwd=mounted)
