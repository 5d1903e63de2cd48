import json

import plotly.graph_objects as go
import pytest

from soup_verl.reporting import drawing, evaluated, figures, stages
from soup_verl.reporting.at_k import Evaluated
from soup_verl.reporting.compare import Group, series
from soup_verl.reporting.runs import AtK, Evaluation, Interval, Run
from tests.unit.reporting.folders import results_of

METRICS = {
    "critic/rewards/mean": [0.1, 0.2],
    "val-core/sums/acc/mean@2": [0.5],
    "val-soup/sums/pass@1": [0.5],
    "val-soup/sums/pass@2": [0.75],
    "soup/mixed_reward_mean": [0.25],
    "soup/onpolicy_reward_mean": [0.5],
    "soup/prefix_kl_k3": [1e-6, 1e-2],
    "soup/decode_tokens_total": [100, 200],
    "soup/policy_age_mean": [4.0],
    "soup/prefix_length_mean": [7.0],
    "timing_s/step": [10.0, 20.0],
    "timing_s/gen": [4.0, 5.0],
    "timing_s/prefix": [5.0, 100.0],
    "timing_s/update_actor": [3.0, 4.0],
}
for segment in figures.SEGMENTS:
    for noun in ("entropy_mean", "ratio_mean", "ratio_max", "gradient_lost_share"):
        METRICS[f"soup/{segment}_{noun}"] = [0.5, 0.25]


def run_with(metrics, name="r"):
    return Run(None, name, {k: dict(enumerate(v, 1)) for k, v in metrics.items()}, None, {}, (), ())


def group(*metrics, number=0, name="g"):
    return Group(name, number, [run_with(m) for m in metrics])


def drawn(groups, evaluations=()):
    return {figure.name: figure for figure in figures.all_figures(groups, evaluations)}


def lines(panel):
    """The traces that carry a name: not the edges of bands."""
    return [trace for trace in panel.plot["data"] if "name" in trace]


def evaluation(pass_at_k, folder=None, file="sums.parquet", **settings):
    return Evaluation(folder, {file: AtK(pass_at_k, {})}, settings)


EVALUATED = Evaluated("g", 0, 0, [evaluation({1: Interval(0.5, 0.25, 0.75), 2: Interval(0.6, 0.5, 0.7)})])


def test_every_figure_is_one_that_plotly_knows_and_its_axes_have_titles():
    found = drawn([group(METRICS, METRICS), group(METRICS, number=1)], [EVALUATED])
    for figure in found.values():
        assert figure.caption
        for panel in figure.panels:
            go.Figure(json.loads(json.dumps(panel.plot, allow_nan=False)))
            for axis in ("xaxis", "yaxis"):
                assert panel.plot["layout"][axis]["title"]["text"], (figure.name, panel.title)
    assert [name for name, figure in found.items() if not figure.panels] == ["maj_at_k"]


def test_a_line_has_a_gap_where_steps_are_missing():
    """Steps 1, 2, 3 and 6 of one metric; every twentieth step is a line without a gap."""
    run = Run(None, "r", {"soup/policy_age_mean": dict.fromkeys((1, 2, 3, 6), 4.0)}, None, {}, (), ())
    (age,) = (trace for trace in lines(drawn([Group("g", 0, [run])])["age"].panels[0]))
    assert (age["x"], age["y"]) == ([1, 2, 3, 4.5, 6], [4.0, 4.0, 4.0, None, 4.0])
    even = drawing.with_gaps(series([{20: 1.0, 40: 2.0, 60: 3.0}]))
    assert even.steps == [20, 40, 60]


def test_what_is_not_logged_is_left_out_and_named():
    found = drawn([group({"critic/rewards/mean": [0.5], "soup/prefix_entropy_mean": [0.5]})])
    assert [p.title for p in found["entropy"].panels] == ["prefix"]
    assert found["entropy"].missing == ["soup/continuation_entropy_mean", "soup/onpolicy_entropy_mean"]
    assert found["reward"].missing == [] and found["validation"].missing == ["val-core/*/mean@n"]
    assert found["validation_pass_at_k"].missing == ["val-soup/*/pass@k"]
    assert found["time"].missing == ["timing_s/step or perf/time_per_step", "timing_s/gen"]
    assert found["pass_at_k"].missing == ["pass_at_k of an evaluation's results.json"]


def test_wholly_stale_responses_have_panels_where_they_are_logged_and_are_missed_nowhere():
    nouns = ("entropy_mean", "update_kl_k3", "ratio_mean", "ratio_max", "gradient_lost_share", "kl_k3", "reward_mean")
    stale = {f"soup/stale_{noun}": [0.25] for noun in nouns}
    found = drawn([group(METRICS | stale), group(METRICS, number=1, name="planned")])
    titles = {name: [p.title for p in f.panels if "stale" in p.keys] for name, f in found.items()}
    assert {name: found for name, found in titles.items() if found} == {
        "kinds": ["wholly stale"],
        "entropy": ["wholly stale responses"],
        "kl": ["the same in wholly stale responses", "wholly stale responses, while updating"],
        "ratio": ["wholly stale responses, mean", "wholly stale responses, largest"],
        "lost": ["wholly stale responses"],
    }
    (panel,) = (p for p in found["kinds"].panels if p.title == "wholly stale")
    assert [(line["name"], line["y"]) for line in lines(panel)] == [("g", [0.25])]
    assert not any("stale" in key for figure in drawn([group(METRICS)]).values() for key in figure.missing)


def test_runs_without_a_single_step_make_no_figure():
    assert not any(figure.panels for figure in drawn([group({})]).values())


def test_a_run_has_its_colour_in_every_figure():
    groups = [group(METRICS, number=0, name="a"), group(METRICS, number=1, name="b")]
    colours = {"a": set(), "b": set()}
    for figure in drawn(groups).values():
        for panel in figure.panels:
            for trace in lines(panel):
                if trace["name"] in colours:
                    colours[trace["name"]].add(trace["line"]["color"])
    assert colours == {"a": {drawing.COLORS[0]}, "b": {drawing.COLORS[1]}}


def test_more_groups_than_colours_differ_by_their_dashes():
    styles = [(drawing.color(i), drawing.dash(i)) for i in range(28)]
    assert len(set(styles)) == 28


def test_seeds_make_a_band_and_a_single_run_none():
    several, single = (
        group({"critic/rewards/mean": [0.0, 1.0]}, {"critic/rewards/mean": [1.0]}),
        group({"critic/rewards/mean": [1]}),
    )
    low, high, mean = drawn([several])["reward"].panels[0].plot["data"]
    assert (low["y"], high["y"], mean["y"]) == ([0.0, 1.0], [1.0, 1.0], [0.5, 1.0])
    assert high["fill"] == "tonexty" and mean["customdata"] == [[0.0, 1.0, 2], [1.0, 1.0, 1]]
    assert len(drawn([single])["reward"].panels[0].plot["data"]) == 1


def test_plotly_does_not_read_tags_in_a_runs_name():
    (trace,) = drawing.line_and_band("<b>x</b>", 0, series([{1: 1.0}]))
    assert trace["name"] == "&lt;b&gt;x&lt;/b&gt;" and "<b>" not in trace["hovertemplate"]


def test_panels_of_segments_have_one_scale_and_all_have_the_same_steps():
    metrics = {
        "soup/prefix_entropy_mean": [0.0, 1.0],
        "soup/onpolicy_entropy_mean": [2.0],
        "critic/rewards/mean": [1] * 11,
    }
    prefix, onpolicy = drawn([group(metrics)])["entropy"].panels
    assert (
        prefix.plot["layout"]["yaxis"]["range"]
        == onpolicy.plot["layout"]["yaxis"]["range"]
        == pytest.approx([-0.12, 2.12])
    )
    assert prefix.plot["layout"]["xaxis"]["range"] == onpolicy.plot["layout"]["xaxis"]["range"] == [0.8, 11.2]


@pytest.mark.parametrize(("values", "log"), [([1e-6, 1e-2], True), ([0.0, 1.0], False), ([0.5, 1.0], False)])
def test_the_prefix_kl_is_on_a_log_scale_where_it_spans_decades(values, log):
    (panel,) = drawn([group({"soup/prefix_kl_k3": values})])["kl"].panels
    assert (panel.plot["layout"]["yaxis"].get("type") == "log") == log


def test_the_noise_floor_stands_dotted_beside_the_prefix_kl_unless_it_is_negligible():
    def traces(floor):
        metrics = {"soup/prefix_kl_k3": [2e-4, 4e-4], "soup/noise_floor_kl_k3": floor}
        (panel,) = drawn([group(metrics)])["kl"].panels
        return [(trace["name"], trace["y"], trace["line"]["dash"]) for trace in lines(panel)]

    prefix_kl = ("g", [2e-4, 4e-4], "solid")
    assert traces([1e-6, 3e-6]) == [prefix_kl, ("g, noise floor", [1e-6, 3e-6], "dot")]
    assert traces([1e-13, 1e-6]) == [prefix_kl]  # below 2e-4 / 100


def test_lost_gradient_is_in_percent():
    panel = drawn([group({"soup/prefix_gradient_lost_share": [0.25]})])["lost"].panels[0]
    assert lines(panel)[0]["y"] == [25.0]


def test_validation_has_panels_by_data_set_whatever_the_number_of_responses():
    groups = [group({"val-core/a/x/acc/mean@2": [0.5]}), group({"val-core/a/x/acc/mean@8": [0.25]}, number=1)]
    (panel,) = drawn(groups)["validation"].panels
    assert panel.title == "a/x" and [trace["y"] for trace in lines(panel)] == [[0.5], [0.25]]


def passes(*ks, data="a/b", value=0.5):
    return {f"val-soup/{data}/pass@{k}": [value, value + k / 100] for k in ks}


def test_pass_at_k_of_a_data_set_has_a_line_for_each_run_and_k():
    """Two seeds of one run with 4 responses a prompt, another with 2; verl's best@n, which reads low, is not drawn."""
    several = group(passes(1, 2, 4), passes(1, 2, 4, value=0.25), name="x")
    single = group(passes(1, 2) | {"val-core/a/b/acc/best@2/mean": [0.125]}, number=1, name="y")
    found = drawn([several, single])["validation_pass_at_k"]
    (panel,) = found.panels
    assert panel.title == "a/b" and found.missing == []
    assert [(t["name"], t["line"]["color"], t["line"]["dash"]) for t in lines(panel)] == [
        ("x, pass@1", drawing.COLORS[0], "solid"),
        ("x, pass@2", drawing.COLORS[0], "dash"),
        ("x, pass@4", drawing.COLORS[0], "dot"),
        ("y, pass@1", drawing.COLORS[1], "solid"),
        ("y, pass@2", drawing.COLORS[1], "dash"),
    ]
    assert lines(panel)[2]["y"] == [0.375, 0.415] and lines(panel)[2]["customdata"][1] == [0.29, 0.54, 2]
    assert [(label, dash) for label, _, dash in found.legend] == [
        ("pass@1", "solid"),
        ("pass@2", "dash"),
        ("pass@4", "dot"),
    ]


def test_of_many_k_as_many_are_drawn_as_there_are_dashes():
    found = drawn([group(passes(1, 2, 4, 8, 16))])["validation_pass_at_k"]
    assert [label for label, _, _ in found.legend] == ["pass@1", "pass@2", "pass@8", "pass@16"]
    assert [trace["name"] for trace in lines(found.panels[0])] == [f"g, {label}" for label, _, _ in found.legend]


def test_tokens_so_far_are_a_running_sum():
    each, so_far = drawn([group(METRICS)])["tokens"].panels
    assert (lines(each)[0]["y"], lines(so_far)[0]["y"]) == ([100, 200], [100, 300])


# ---- time ----


def test_stages_add_up_to_the_step():
    found = stages.stage_seconds([run_with(METRICS)])
    assert list(found) == ["gen", "update_actor", "prefix", "other"]
    assert [sum(stage[step] for stage in found.values()) for step in (1, 2)] == [10.0, 20.0]
    # 10 - 4 - 3 leaves less than the prefixes' timer says: the rest of it ran inside generation
    assert found["prefix"] == {1: 3.0, 2: 11.0} and found["other"] == {1: 0.0, 2: 0.0}


def test_time_without_timers_of_stages():
    assert stages.stage_seconds([run_with({"timing_s/step": [1.0]})]) == {}


def test_stages_are_stacked_a_panel_a_group():
    figure = drawn([group(METRICS, name="a"), group(METRICS, number=1, name="b")])["time"]
    assert [panel.title for panel in figure.panels] == ["whole step", "a", "b"]
    assert all(trace["stackgroup"] for trace in figure.panels[1].plot["data"])
    assert [title for title, _, _ in figure.legend] == [
        "generation",
        "prefixes, outside of generation",
        "actor update",
        "other",
    ]


# ---- pass@k ----


def test_one_evaluation_has_its_interval_and_several_their_range():
    alone = drawn([], [EVALUATED])["pass_at_k"].panels[0].plot
    assert [trace["y"] for trace in alone["data"]] == [[0.25, 0.5], [0.75, 0.7], [0.5, 0.6]]
    assert "n=" not in alone["data"][2]["hovertemplate"]
    assert alone["layout"]["xaxis"]["tickvals"] == [1, 2]
    other = evaluation({1: Interval(0.75, 0, 1), 2: Interval(1, 0, 1)})
    both = Evaluated("g", 0, 0, [*EVALUATED.evaluations, other])
    assert drawn([], [both])["pass_at_k"].panels[0].plot["data"][0]["y"] == [0.5, 0.6]


def test_every_data_file_has_a_panel_of_its_own():
    half = {1: Interval(0.5, 0.25, 0.75)}
    both = Evaluation(None, {"a.parquet": AtK(half, {}), "b.parquet": AtK(half, {})}, {})
    found = [Evaluated("g", 0, 0, [both]), Evaluated("h", 1, 0, [evaluation(half, file="b.parquet")])]
    panels = drawn([], found)["pass_at_k"].panels
    assert [(p.title, [line["name"] for line in lines(p)]) for p in panels] == [("a", ["g"]), ("b", ["g", "h"])]


def test_evaluations_under_different_conditions_say_so(tmp_path):
    def of(name, **settings):
        return Group(name, 0, [Run(tmp_path, name, {}, None, {}, (), [evaluation({}, tmp_path / "e", **settings)])])

    same = {"n": 32, "temperature": 0.6, "top_p": 0.95}
    found = evaluated.lines([of("a", **same), of("b", **same, prefix_tokens=[16, 256])], [])
    assert [one.name for one in found] == ["a", "b, prefix_tokens=[16, 256]"]
    assert [one.name for one in evaluated.lines([of("a", **same), of("b", **same)], [])] == ["a", "b"]


def test_evaluations_at_different_places_in_a_run_are_different_lines(tmp_path):
    def run(name, places):
        found = [Evaluation(tmp_path / name / place, {}, {}) for place in places]
        return Run(tmp_path / name, name, {}, None, {}, (), found)

    groups = [Group("a", 0, [run("a1", ["one", "two"]), run("a2", ["one", "two"])]), Group("b", 1, [run("b", ["x"])])]
    found = evaluated.lines(groups, [])
    assert [(e.name, e.number, e.style, len(e.evaluations)) for e in found] == [
        ("a, one", 0, 0, 2),
        ("a, two", 0, 1, 2),
        ("b", 1, 0, 1),
    ]


def test_seeds_that_were_evaluated_differently_are_not_averaged(tmp_path):
    def run(name, **settings):
        return Run(tmp_path / name, name, {}, None, {}, (), [Evaluation(tmp_path / name / "e", {}, settings)])

    group = Group("a", 0, [run("a1", temperature=0.6), run("a2", temperature=1.4), run("a3", temperature=0.6)])
    assert [(e.name, e.style, len(e.evaluations)) for e in evaluated.lines([group], [])] == [
        ("a, temperature=0.6", 0, 2),
        ("a, temperature=1.4", 1, 1),
    ]


def test_further_evaluations_have_colours_of_their_own(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results_of({"pass@1": {"mean": 0.5, "low": 0, "high": 1}})))
    inside = Group("a", 0, [Run(tmp_path, "a", {}, None, {}, (), [Evaluation(folder, {}, {})])])
    assert [(e.name, e.number) for e in evaluated.lines([group({})], [folder])] == [("elsewhere", 1)]
    assert [e.name for e in evaluated.lines([inside], [folder])] == ["a"]  # not a second time
