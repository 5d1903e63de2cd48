"""Which checkpoint is the best, what says so on disk, and what of it survives a resume."""

import json
import shutil

import pytest

from soup_verl.method.checks import ConfigError
from soup_verl.stack.best import BestCheckpoint

METRIC = "val-soup/even/pass@8"


def save(root, *steps):
    for step in steps:
        for file in (f"global_step_{step}/soup/manifest.json", f"global_step_{step}/actor/model.pt"):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).touch()


@pytest.fixture
def best_of(tmp_path):
    return lambda setting=METRIC, step=0: BestCheckpoint(tmp_path, setting, step)


def said(root):
    found = json.loads((root / "best.json").read_text())
    assert (root / "best").readlink().name == f"global_step_{found['step']}" and (root / "best").is_dir()
    return found["step"], found["values"]


def validate(best, values):
    """The best after each validation."""
    names = []
    for step, value in values.items():
        best.judge({METRIC: value, "val-core/even/acc/mean@8": 0.0}, step)
        names.append(best.folder and best.folder.name)
    return names


def test_the_highest_so_far_and_of_equals_the_earlier(tmp_path, best_of):
    save(tmp_path, 2, 4, 6, 8)
    of_each = validate(best_of(), {1: 0.75, 2: 0.25, 4: 0.5, 6: 0.5, 8: 0.375})
    assert of_each == [None, "global_step_2", *["global_step_4"] * 3]
    assert said(tmp_path) == (4, {"2": 0.25, "4": 0.5, "6": 0.5, "8": 0.375})


def test_with_a_minus_the_lowest(tmp_path, best_of):
    save(tmp_path, 2, 4, 6)
    validate(best_of(f"-{METRIC}"), {2: 0.5, 4: 0.25, 6: 0.375})
    assert said(tmp_path)[0] == 4


def test_a_step_that_has_no_whole_checkpoint_or_no_number_is_not_judged(tmp_path, best_of):
    save(tmp_path, 2, 4, 6)
    (tmp_path / "global_step_4" / "soup" / "manifest.json").unlink()
    validate(best_of(), {0: 0.875, 2: 0.25, 3: 0.875, 4: 0.875, 6: float("nan")})
    assert said(tmp_path) == (2, {"2": 0.25})


def test_nothing_is_said_before_there_is_one(tmp_path, best_of):
    validate(best_of(), {0: 0.5})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", ["val-soup/odd/pass@8", "-val-soup/odd/pass@8"])
def test_a_metric_that_the_first_validation_has_not_is_refused_with_those_it_has(best_of, setting):
    with pytest.raises(ConfigError) as error:
        best_of(setting).judge({"val-aux/num_turns/mean": 2.0, METRIC: 0.5, "val-core/even/acc/mean@8": 0.5}, 0)
    expected = f"val-core/even/acc/mean@8, {METRIC}, val-aux/num_turns/mean"
    assert str(error.value) == f"soup.keep_best='{setting}': expected one of {expected}."


def test_a_resumed_run_goes_on_with_the_best_of_its_own_history(tmp_path, best_of):
    save(tmp_path, 2, 4, 6, 8)
    validate(best_of(), {2: 0.5, 4: 0.25, 6: 0.75, 8: 0.25})
    resumed = best_of(step=4)  # 6 and 8 will be made again
    assert said(tmp_path) == (2, {"2": 0.5, "4": 0.25})
    assert resumed.folder == tmp_path / "global_step_2"
    assert validate(resumed, {6: 0.25, 8: 0.75}) == ["global_step_2", "global_step_8"]


def test_a_resumed_run_that_has_lost_its_best_takes_the_next_that_is_there(tmp_path, best_of):
    save(tmp_path, 2, 4, 6)
    validate(best_of(), {2: 0.75, 4: 0.5, 6: 0.25})
    shutil.rmtree(tmp_path / "global_step_2" / "actor")
    best_of(step=6)
    assert said(tmp_path)[0] == 4


def test_a_step_that_is_validated_again_counts_as_found_last(tmp_path, best_of):
    save(tmp_path, 2, 4)
    validate(best_of(), {2: 0.5, 4: 0.75})
    assert validate(best_of(step=4), {4: 0.25}) == ["global_step_2"]
    assert said(tmp_path) == (2, {"2": 0.5, "4": 0.25})


@pytest.mark.parametrize(("setting", "step"), [(METRIC, 0), ("val-core/even/acc/mean@8", 4)])
def test_a_new_run_and_another_metric_begin_anew(tmp_path, best_of, setting, step):
    save(tmp_path, 2, 4)
    validate(best_of(), {2: 0.5, 4: 0.75})
    best_of(setting, step)
    assert not (tmp_path / "best.json").exists() and not (tmp_path / "best").is_symlink()
