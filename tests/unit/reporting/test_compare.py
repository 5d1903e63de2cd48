import pytest

from soup_verl.launch.preflight.provenance import write_run as write_config
from soup_verl.reporting import compare
from soup_verl.reporting.runs import Run, read_runs
from tests.unit.preflight_files import compose
from tests.unit.reporting.folders import write_run


def groups(tmp_path, baseline=None, **runs):
    """Groups of the runs name=changes of settings."""
    made = read_runs([write_run(tmp_path / name, **changes) for name, changes in runs.items()])
    return compare.group_by_seed(made, tmp_path / baseline if baseline else None)


def members(found):
    return {group.name: [run.name for run in group.runs] for group in found}


# ---- grouping ----


def test_runs_that_differ_only_in_seeds_and_names_are_one_group(tmp_path):
    found = groups(
        tmp_path,
        soup_s1={"soup__seed": 1, "trainer__experiment_name": "first"},
        soup_s2={"soup__sampling_seed": 2, "data__seed": 9, "trainer__logger": ["console"]},
        grpo={"soup__mixed_fraction": 0},
    )
    assert members(found) == {"soup": ["soup_s1", "soup_s2"], "grpo": ["grpo"]}
    assert [group.number for group in found] == [0, 1]


@pytest.mark.e2e  # Hydra takes a second
def test_seeds_of_a_run_as_hydra_composes_it_are_one_group(tmp_path):
    folders = []
    for seed in (1, 2):
        folders.append(write_run(tmp_path / f"soup-s{seed}", config=False))
        own = [f"soup.seed={seed}", f"data.seed={seed}", f"trainer.experiment_name=soup-s{seed}"]
        config = compose("platform=cpu", *own, f"trainer.default_local_dir={folders[-1]}")
        write_config(config, folders[-1])
    assert members(compare.group_by_seed(read_runs(folders))) == {"soup": ["soup-s1", "soup-s2"]}


def test_a_setting_besides_seeds_makes_another_group(tmp_path):
    assert len(groups(tmp_path, a={}, b={"data__files": "b.parquet"})) == 2


def test_a_path_in_the_runs_own_folder_is_no_difference(tmp_path):
    changes = {name: {"data__files": f"{tmp_path / name}/train.parquet"} for name in ("a", "b")}
    assert len(groups(tmp_path, **changes)) == 1


def test_runs_without_settings_are_not_taken_for_seeds_of_one_another(tmp_path):
    assert len(groups(tmp_path, a={"config": False}, b={"config": False})) == 2


def test_the_baselines_group_comes_first(tmp_path):
    found = groups(tmp_path, "grpo", soup={}, grpo={"soup__mixed_fraction": 0})
    assert [group.name for group in found] == ["grpo", "soup"]


@pytest.mark.parametrize(
    ("names", "common"),
    [
        (["soup-s1", "soup-s2"], "soup"),
        (["age4_seed0", "age4_seed1"], "age4"),
        (["runs1", "runs2"], "runs"),
        (["seed1", "seed2"], ""),
        (["s1/soup", "s2/soup"], "soup"),
        (["a", "b"], ""),
        (["alone-s1"], "alone-s1"),
    ],
)
def test_a_group_is_called_what_its_runs_have_in_common(names, common):
    assert compare._common_name(names) == common


def test_groups_of_the_same_name_are_told_apart(tmp_path):
    a = {"soup__mixed_fraction": 0}
    found = groups(tmp_path, **{"x-1": {}, "x-2": {}, "x-3": a, "x-4": a})
    assert list(members(found)) == ["x-1 and 1 more", "x-3 and 1 more"]


@pytest.mark.parametrize(
    ("key", "seed"),
    [("data.seed", True), ("a.data_loader_seed", True), ("soup.sampling_seed", True), ("a.seedling", False)],
)
def test_seeds_are_known_by_their_names(key, seed):
    assert compare.is_seed(key) == seed


# ---- settings that differ ----


def rows(found):
    return {row.key: list(row.values) for row in compare.differences(found)}


def test_only_what_differs_is_listed_with_soups_own_first(tmp_path):
    found = groups(
        tmp_path, a={"soup__mixed_fraction": 0, "data__files": "a"}, b={"data__files": "b", "data__new": None}
    )
    assert list(rows(found).items()) == [
        ("soup.mixed_fraction", ["0", "0.5"]),
        ("data.files", ["a", "b"]),
        ("data.new", ["not set", "null"]),
    ]


def test_a_run_that_recorded_nothing_makes_no_difference(tmp_path):
    found = groups(tmp_path, a={"config": False}, b={}, c={"data__files": "c"})
    assert rows(found) == {"data.files": ["not recorded", "a.parquet", "c"]}


def test_code_that_differs_is_listed(tmp_path):
    def facts(commit, dirty, vllm):
        return {"git": {"commit": commit * 40, "dirty": dirty}, "versions": {"vllm": vllm, "verl": "1"}}

    found = groups(
        tmp_path,
        **{"a-1": {"facts": facts("a", False, "1")}, "a-2": {"facts": facts("b", True, "1")}},
        b={"soup__mixed_fraction": 0, "facts": facts("a", False, "2")},
    )
    assert rows(found) == {
        "soup.mixed_fraction": ["0.5", "0"],
        "code: commit": ["aaaaaaaaaa, bbbbbbbbbb with changes", "aaaaaaaaaa"],
        "code: vllm": ["1", "2"],
    }


def test_the_seeds_of_a_group_are_listed(tmp_path):
    (group,) = groups(tmp_path, a={"soup__seed": 1}, b={"soup__seed": 2})
    assert compare.seeds(group) == {"soup.seed": ["1", "2"]}


# ---- numbers ----


def test_a_series_is_the_mean_and_range_of_the_runs_that_have_the_step():
    one = compare.series([{1: 1.0, 2: 4.0}, {2: 2.0, 1: 3.0, 3: 9.0}])
    assert (one.steps, one.mean, one.n) == ([1, 2, 3], [2.0, 3.0, 9.0], [2, 2, 1])
    assert (one.low, one.high) == ([1.0, 2.0, 9.0], [3.0, 4.0, 9.0])


def run_with(metrics):
    return Run(None, "r", {k: dict(enumerate(v, 1)) for k, v in metrics.items()}, None, {}, (), ())


def test_where_a_group_stands():
    runs = [
        run_with(
            {
                "critic/rewards/mean": [0.0] * 19 + [0.5],
                "val-core/a/acc/mean@2": [0.1, 0.4],
                "val-core/b/reward/mean@8": [0.2],
                "val-core/a/acc/best@2/mean": [0.9],
                "timing_s/step": [1.0, 9.0, 2.0],
                "soup/decode_tokens_total": [100.0, 50.0],
                "soup/onpolicy_tokens_total": [1.0],
            }
        ),
        run_with({"critic/rewards/mean": [0.0] * 18 + [1.0, 0.5], "soup/onpolicy_tokens_total": [50.0]}),
    ]
    found = compare.standing(compare.Group("g", 0, runs))
    assert found.steps == (20, 20) and found.reward == pytest.approx(0.5)  # of the last two steps
    assert found.validation == pytest.approx(0.3) and found.step_seconds == 2.0 and found.decode_tokens == 100.0


def test_nothing_logged_stands_nowhere():
    found = compare.standing(compare.Group("g", 0, [run_with({})]))
    assert (found.steps, found.reward, found.validation, found.decode_tokens) == ((0, 0), None, None, None)


def test_on_policy_tokens_stand_for_the_decoded_ones_only_where_no_response_is_mixed():
    tokens = {"soup/onpolicy_tokens_total": [5.0], "soup/prefix_tokens_total": [0.0]}
    assert compare.decode_tokens(run_with(tokens)) == {1: 5.0}
    assert compare.decode_tokens(run_with(tokens | {"soup/prefix_tokens_total": [3.0]})) == {}
    assert compare.decode_tokens(run_with(tokens | {"soup/decode_tokens_total": [9.0]})) == {1: 9.0}
