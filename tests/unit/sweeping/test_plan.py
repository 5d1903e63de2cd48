import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from soup_verl.method.checks import ConfigError
from soup_verl.sweeping import SweepError, plan
from soup_verl.sweeping.plan import SEEDS, Sweep

FILE = """
out: runs/x
seeds: [3, 1]
baseline: grpo
shared: [platform=cpu, trainer.total_training_steps=30]
methods:
  grpo: [soup.mixed_fraction=0]
  soup: []
"""


def read(tmp_path, text):
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    return plan.read(file)


def test_runs_are_made_seed_by_seed_with_their_overrides_in_the_order_in_which_later_ones_win(tmp_path):
    runs = list(read(tmp_path, FILE).runs())
    assert [run.name for run in runs] == ["grpo-s3", "soup-s3", "grpo-s1", "soup-s1"]
    assert runs[0].overrides == (
        "platform=cpu",
        "trainer.total_training_steps=30",
        "data.seed=3",
        "soup.seed=3",
        "soup.sampling_seed=3",
        "actor_rollout_ref.actor.data_loader_seed=3",
        "soup.mixed_fraction=0",
        "trainer.experiment_name=grpo-s3",
        "trainer.default_local_dir=runs/x/grpo-s3",
    )
    assert (runs[0].line, str(runs[0].folder)) == ("grpo", "runs/x/grpo-s3")


def test_the_product_of_the_settings_is_taken_and_named(tmp_path):
    text = FILE + "settings:\n  a.lr: [1e-6, 3e-6]\n  soup.lookahead.age: [[2, 8], null, true]\n"
    runs = list(read(tmp_path, text).runs())
    assert len(runs) == 2 * 2 * 3 * 2
    assert [run.name for run in runs[:3]] == [
        "grpo-lr-1e-06-age-_2_8_-s3",
        "soup-lr-1e-06-age-_2_8_-s3",
        "grpo-lr-1e-06-age-null-s3",
    ]
    assert runs[1].own[-2:] == ("a.lr=1e-06", "soup.lookahead.age=[2, 8]")
    assert runs[4].own[-1] == "soup.lookahead.age=true"
    assert runs[2].line == "grpo lr=1e-06 age=null"


@given(
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True),
    methods=st.lists(st.sampled_from(["a", "b", "c-1", "d.e"]), min_size=1, max_size=3, unique=True),
    ages=st.lists(st.integers(1, 99), min_size=1, max_size=3, unique=True),
)
def test_every_combination_is_a_run_once_and_a_seed_is_done_before_the_next(seeds, methods, ages):
    runs = list(Sweep("x", seeds, methods[0], {m: [] for m in methods}, settings={"soup.age": ages}).runs())
    assert [(r.seed, r.settings[0][1], r.method) for r in runs] == [
        (seed, str(age), method) for seed, age, method in itertools.product(seeds, ages, methods)
    ]
    assert len({r.folder for r in runs}) == len(runs)


def test_two_methods_that_are_one_are_refused_whatever_their_overrides_are(tmp_path):
    def compose(overrides):
        """The shared age wins over the file's, as in Hydra."""
        given = [o for o in overrides if not o.startswith("ablations=")]
        return OmegaConf.from_dotlist(["soup.lookahead.age=[2,8]"] * ("ablations=age" in overrides) + given)

    text = FILE.replace("soup: []", "aged: [ablations=age]").replace("grpo: [soup.mixed_fraction=0]", "grpo: []")
    assert len(plan.composed(list(read(tmp_path, text).runs()), compose)) == 4
    shared = text.replace("[platform=cpu,", "[soup.lookahead.age=4,")
    with pytest.raises(SweepError, match="methods grpo and aged: expected settings that differ .a KEY=VALUE of shared"):
        plan.composed(list(read(tmp_path, shared).runs()), compose)


def test_sampling_can_be_left_to_the_engine(tmp_path):
    (run, *_) = read(tmp_path, FILE.replace("platform=cpu", "soup.sampling_seed=null")).runs()
    assert [o for o in run.overrides if o.startswith("soup.sampling_seed")] == ["soup.sampling_seed=null"]


BAD = {
    "seeds: [3, 1]/seeds: []": r"sweep.seeds=\[\]: expected at least one seed",
    "seeds: [3, 1]/": r"sweep.seeds=\[\]: expected at least one seed",
    "seeds: [3, 1]/seeds: [1, 2, 1]": r"sweep.seeds=\[1, 2, 1\]: expected every seed once",
    "seeds: [3, 1]/seeds: [1, two]": r"sweep.seeds=\[1, 'two'\]: expected integers",
    "seeds: [3, 1]/seeds: [1.0]": r"sweep.seeds=\[1.0\]: expected integers",
    "seeds: [3, 1]/seeds: [true]": r"sweep.seeds=\[True\]: expected integers",
    "seeds: [3, 1]/seeds: [-1]": r"sweep.seeds=\[-1\]: expected integers of at least 0",
    "seeds: [3, 1]/seeds: 3": r"sweep.seeds=3: expected a value of type list",
    "out: runs/x/": "sweep.out='': expected the folder",
    "baseline: grpo/baseline: ppo": "sweep.baseline='ppo': expected one of grpo, soup",
    "baseline: grpo/": "sweep.baseline='': expected one of grpo, soup",
    "baseline: grpo/baselin: grpo": "sweep.baselin='grpo': expected no such key; sweep has baseline, methods",
    "  soup: []/  soup:": r"sweep.methods.soup=None: expected a list of overrides, \[\] for none",
    "  soup: []/  soup: [{a: 1}]": "sweep.methods.soup={'a': 1}: expected an override as text",
    "  soup: []/  on: []": "sweep.methods=True: expected a name .* Put it in quotes",
    "  soup: []/  a b: []": "sweep.methods='a b': expected a name",
    "  soup: []/  soup: [data.seed=1]": "sweep.methods.soup='data.seed=1': expected no key that the sweep sets itself",
    "platform=cpu/+trainer.default_local_dir=y": "sweep.shared='.trainer.default_local_dir=y': expected no key",
    "out: runs/x/out: runs/x\nsettings: {a.lr: []}": r"sweep.settings.a.lr=\[\]: expected a list of values",
    "out: runs/x/out: runs/x\nsettings: {a.lr: 1}": "sweep.settings.a.lr=1: expected a list of values",
    "out: runs/x/out: runs/x\nsettings: {a.lr: [{b: 1}]}": "sweep.settings.a.lr={'b': 1}: expected a value",
    "out: runs/x/out: runs/x\nsettings: {soup.seed: [1]}": "sweep.settings='soup.seed=1': expected no key",
    "out: runs/x/out: runs/x\nsettings: {a.lr: [1, 1]}": "sweep='grpo-lr-1-s3': expected a name of its own",
    "out: runs/x/out: runs/x\nslurm: [nodes=1]": r"sweep.slurm=\['nodes=1'\]: expected options of sbatch",
}


@pytest.mark.parametrize("change", BAD)
def test_a_value_that_cannot_work_is_named(tmp_path, change):
    old, new = change.rsplit("/", 1) if not change.startswith("out: runs/x/") else ("out: runs/x", change[12:])
    assert old in FILE
    with pytest.raises(ConfigError, match=f"^{BAD[change]}"):
        read(tmp_path, FILE.replace(old, new))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FILE + "  soup: [a=1]\n", r"^line 9: found duplicate key soup: expected YAML"),
        (FILE + "out: runs/y\n", r"^line 9: found duplicate key out: "),
        (FILE + "seeds: [1\n", r"^line \d+: .*expected YAML"),
    ],
)
def test_what_is_said_twice_or_is_no_yaml_is_refused_by_line(tmp_path, text, said):
    with pytest.raises(SweepError, match=said):
        read(tmp_path, text)


@pytest.mark.parametrize("text", ["", "[1, 2]", "text"])
def test_a_file_that_is_no_sweep_is_refused(tmp_path, text):
    with pytest.raises((ConfigError, SweepError, OSError)):
        read(tmp_path, text)


def test_seeds_can_be_taken_up_by_processes_that_run_and_are_none_to_the_report():
    from soup_verl.records.settings import setting_of
    from soup_verl.reporting.compare import is_seed

    assert all(setting_of(key).taken_up and is_seed(key) for key in SEEDS)
