import shutil
from dataclasses import replace

import pytest
import torch

from benchmarks import grid, neighbors
from benchmarks.run_inputs import nested, parse_settings
from benchmarks.simulation import Simulation
from soup_verl.method.config import SoupConfig

SIZES = {"response_length": 14, "prompts": 12}
ACTOR = neighbors.ACTOR
ELSEWHERE = {"grpo": "grpo", "oapl": "oapl/8", "pods": "pods/2", "decoupled_ppo_tis": "decoupled/8"}


def of_neighbors(task="countdown"):
    """Name -> its first point."""
    points = [p for p in grid.read_points(grid.GRID, task) if p.method.startswith(grid.NEIGHBOR)]
    return {p.method.removeprefix(grid.NEIGHBOR): p for p in reversed(points)}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A copy of the recipe's folder, to be changed."""
    monkeypatch.setattr(neighbors, "FOLDER", shutil.copytree(neighbors.FOLDER, tmp_path / "neighbors"))
    return neighbors.FOLDER


def parsed(point):
    return grid.settings_of(point, 1, {})


# ---- which run ----


def test_every_file_is_a_point_or_is_said_to_be_none_and_why():
    others = grid.not_here(grid.GRID)
    assert sorted([*of_neighbors(), *others]) == neighbors.names()
    assert others.keys() - ELSEWHERE.keys() == {"dapo", "dapo_soup", "partial_rollout", "partial_rollout_two_pools"}
    assert others["dapo"].startswith("algorithm.filter_groups.enable: not on the search instrument: a step's prompts")
    assert others["partial_rollout"].startswith("trainer.v1.trainer_mode: not on the search instrument")
    assert others["oapl"] == "is the grid's `oapl`"


@pytest.mark.parametrize(("name", "point"), ELSEWHERE.items())
def test_what_the_grid_has_under_another_name_has_the_files_settings(name, point):
    (of_grid,) = grid.chosen(grid.read_points(grid.GRID, "countdown"), [point])
    knob = {of_grid.knob: of_grid.value} if of_grid.knob else {}
    base = {"soup.mixed_fraction": 0.5, "soup.source": "lookahead"}
    of_file = parse_settings(nested(base | neighbors.read(name, **SIZES) | knob) | {"seed": 1})
    theirs, ours = (SoupConfig.parse(found.soup) for found in (of_file, parsed(of_grid)))
    assert theirs == replace(ours, prefix_length=theirs.prefix_length)
    assert of_file.grad_clip == parsed(of_grid).grad_clip
    squared = of_file.loss.loss_agg_mode == "seq-mean-token-sum"  # which the instrument takes for a square anyway
    assert of_file.loss == replace(parsed(of_grid).loss, loss_agg_mode="seq-mean-token-sum" if squared else None)


def test_all_below_a_name_are_chosen_and_without_names_no_neighbour():
    points = grid.read_points(grid.GRID, "countdown")
    assert {p.method for p in grid.chosen(points, ["neighbor"])} == {grid.NEIGHBOR + name for name in of_neighbors()}
    assert [p.name for p in grid.chosen(points, ["pods", "neighbor/opo", "pods/2"])] == [
        "pods/2",
        "pods/4",
        "neighbor/opo",
    ]
    assert not any(p.method.startswith(grid.NEIGHBOR) for p in grid.chosen(points, None))
    with pytest.raises(ValueError, match="--points neighbor/dapo: algorithm.filter_groups.enable: not on the search"):
        grid.chosen(points, ["neighbor/dapo"])
    with pytest.raises(ValueError, match="--points neighbor/ppo: expected some of grpo"):
        grid.chosen(points, ["neighbor/ppo"])


def test_each_neighbour_comes_first_at_its_files_own_setting():
    points = grid.read_points(grid.GRID, "countdown")
    first = grid.chosen(points, ["neighbor:first"])
    assert first == list(of_neighbors().values())[::-1]
    assert [p.name for p in grid.chosen(points, ["grpo", "pods:first"])] == ["grpo", "pods/2"]
    own = {p.name: neighbors.read(p.method.removeprefix(grid.NEIGHBOR), **SIZES).get(p.knob, p.value) for p in first}
    assert own == {p.name: p.value for p in first} and own["neighbor/oapl_paired/50"] == 50
    with pytest.raises(ValueError, match="--points neighbour:first: expected some of grpo"):
        grid.chosen(points, ["neighbour:first"])
    with pytest.raises(ValueError, match="--points neighbor/dapo:first: algorithm.filter_groups.enable: not on the"):
        grid.chosen(points, ["neighbor/dapo:first"])


# ---- settings ----


def test_settings_are_the_files_in_the_instruments_names():
    points = of_neighbors()
    dr_grpo = parsed(points["dr_grpo"])
    assert (dr_grpo.norm_by_std, dr_grpo.loss.loss_agg_mode, dr_grpo.loss.loss_scale_factor) == (
        False,
        "seq-mean-token-sum-norm",
        14,  # the budget of countdown
    )
    sapo = parsed(points["sapo"])
    assert sapo.loss.actor == {"tau_pos": 1.0, "tau_neg": 1.05, "policy_loss": {"loss_mode": "sapo"}}
    assert (sapo.soup["mixed_fraction"], sapo.soup["source"], sapo.soup["lookahead"]) == (0.5, "lookahead", {"age": 8})
    assert sapo.soup["prefix_length"] == {"low": 1, "high": 6}
    assert parsed(points["vespo"]).loss.mode is None and parsed(points["vespo"]).soup["policy_loss"]["name"] == "vespo"
    assert parsed(points["prefix_rl"]).soup["prefix_length"] == {"unit": "share", "low": 0.1, "high": 0.9}
    assert parsed(points["prefix_sampling"]).soup["prefix_length"] == {"unit": "share", "high": 0.95}
    assert parsed(points["opo"]).adv_estimator == "opo" and points["opo"].side == "rival"
    assert points["cispo"].side == "variant" and points["cispo"].title == "CISPO (arXiv 2506.13585)"


def test_another_number_in_the_recipes_file_is_another_setting_of_the_point(files):
    file = files / "cispo.yaml"
    before = of_neighbors()["cispo"]
    file.write_text(file.read_text().replace("clip_ratio_high: 0.2", "clip_ratio_high: 0.3"))
    after = of_neighbors()["cispo"]
    assert (parsed(before).loss.clip_ratio_high, parsed(after).loss.clip_ratio_high) == (0.2, 0.3)
    assert after.settings == before.settings | {"loss.clip_ratio_high": 0.3}


@pytest.mark.parametrize(
    ("text", "key", "why"),
    [
        ("clip_ratio_hi: 0.3", f"{ACTOR}.clip_ratio_hi", "there is no such thing"),
        ("ppo_epochs: 2", f"{ACTOR}.ppo_epochs=2", "expected 1"),
        ("use_kl_loss: true", f"{ACTOR}.use_kl_loss=True", "expected False"),
        ("soup: {keep_best: val-acc}", "soup.keep_best", "there is no such thing"),
        ("soup: {source: inflight, mixed_fraction: 1}", "soup.source=inflight", "a step waits for all"),
        ("reward: {reward_manager: {name: dapo}}", "reward.reward_manager.name", "a reward is what the task's checker"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(files, text, key, why):
    if key.startswith(ACTOR):
        text = f"actor_rollout_ref: {{actor: {{{text}}}}}"
    (files / "new.yaml").write_text(f"# @package _global_\n# New: a method.\n{text}\n")
    with pytest.raises(neighbors.NotHere, match=f"^{key}: .*{why}"):
        neighbors.read("new", **SIZES)
    assert neighbors.refusal("new", prompts=12).startswith(key) and "new" not in of_neighbors()


@pytest.mark.parametrize(("mini_batch", "updates"), [("4", 3), ("12", 1), ("5", None), ("24", None), ("0", None)])
def test_a_mini_batch_divides_the_prompts_of_a_step_or_is_refused(files, mini_batch, updates):
    text = f"actor_rollout_ref: {{actor: {{ppo_mini_batch_size: {mini_batch}}}}}"
    (files / "new.yaml").write_text(f"# @package _global_\n# New: a method.\n{text}\n")
    if updates:
        assert parsed(of_neighbors()["new"]).mini_batches == updates and neighbors.refusal("new", prompts=12) is None
        return
    why = f"^{neighbors.MINI_BATCH}={mini_batch}: not on .*: expected a divisor of the 12 prompts of a step$"
    with pytest.raises(neighbors.NotHere, match=why):
        neighbors.read("new", **SIZES)
    assert grid.not_here(grid.GRID)["new"].startswith(f"{neighbors.MINI_BATCH}={mini_batch}: not on")


def test_a_soup_key_that_nobody_knows_is_refused_where_the_run_begins(files):
    (files / "new.yaml").write_text("# @package _global_\n# New: a method.\nsoup: {replay: {choise: latest}}\n")
    with pytest.raises(ValueError, match="choise"):
        SoupConfig.parse(parsed(of_neighbors()["new"]).soup)


def test_verls_estimators_are_for_batches_without_prefixes():
    with pytest.raises(ValueError, match="adv_estimator=opo: expected none with soup.mixed_fraction above 0"):
        parse_settings({"adv_estimator": "opo", "soup": {"mixed_fraction": 0.5}})
    with pytest.raises(ValueError, match="loss.loss_agg_mode=mean: expected one of token-mean"):
        parse_settings({"loss": {"loss_agg_mode": "mean"}})
    with pytest.raises(ValueError, match="loss.loss_scale_factor=None: expected a number"):
        parse_settings({"loss": {"loss_agg_mode": "seq-mean-token-sum-norm"}})


# ---- they train, and as themselves ----

SHORT = {"prompts": 4, "n": 8, "steps": 4, "lr": 0.02}
HISTORY = {"soup.lookahead.age": 1, "soup.snapshot.every": 1}
"""There is some in a run of four steps."""


def end_of_run(assets, settings):
    simulation = Simulation(assets, settings)
    found = [simulation.step(step) for step in range(1, 5)]
    return torch.cat([w.detach().flatten() for w in simulation.weights.values()]), found


@pytest.mark.e2e  # whole training steps, and verl's losses
def test_every_neighbour_trains_and_is_grpo_only_where_its_rule_finds_nothing_to_do(assets):
    points = {"grpo": grid.chosen(grid.read_points(grid.GRID, "order"), ["grpo"])[0]} | of_neighbors("order")
    ends = {}
    for name, point in points.items():
        length = {} if "soup.prefix_length.unit" in point.settings else {"soup.prefix_length.high": 3}
        settings = grid.settings_of(replace(point, knob=None), 1, SHORT | HISTORY | length)
        ends[name], found = end_of_run(assets, settings)
        assert all(torch.isfinite(torch.tensor(step["actor/grad_norm"])) for step in found), name
    like_grpo = {name for name, end in ends.items() if torch.equal(end, ends["grpo"])}
    assert like_grpo == {"grpo", "clip_cov", "failure_prefixes"}  # no token covaries enough, no prompt is saturated


@pytest.mark.e2e
def test_the_step_size_of_vcpo_is_the_instruments_learning_rate(assets):
    """Of a share of weights of all mixed responses rho the square root."""
    settings = {"mixed_fraction": 0.5, "source": "lookahead", "lookahead": {"age": 1}}
    settings |= {"prefix_length": {"low": 1, "high": 3}, "step_size": {"rule": "sqrt"}}
    simulation = Simulation(assets, parse_settings(SHORT | {"soup": settings}))
    assert "soup/step_size_factor_mean" not in simulation.step(1)  # nothing is mixed yet
    for step in range(2, 5):
        found = simulation.step(step)
        factor = found["soup/step_size_factor_mean"]
        assert factor == pytest.approx(found["soup/step_size_share_mean"] ** 0.5) and factor < 1
        assert simulation.optimizer.param_groups[0]["lr"] == pytest.approx(SHORT["lr"] * factor)
