"""What is in the page; what a browser makes of it is looked at in tests/e2e/test_report_page.py."""

import re
from html.parser import HTMLParser

import pytest

from soup_verl.reporting import page, samples
from soup_verl.reporting.runs import read_runs
from tests.unit.reporting.folders import SAMPLE, write_run

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror=hacked()>{{ 7 * 123457 }}"


@pytest.fixture(autouse=True)
def without_plotly(monkeypatch):
    """Its 4.8 MB make assertions slow and are not ours."""
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "plotly")


class Tags(HTMLParser):
    """Every start tag with its attributes, and the text of the page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def render(*folders, **options):
    return page.render(read_runs(folders), **options)


def test_hostile_text_is_only_text(tmp_path):
    sample = {**SAMPLE, "prompt": HOSTILE, "tokens": [HOSTILE, " is", HOSTILE]}
    name = HOSTILE.replace("/", "|")
    metrics = {"critic/rewards/mean": [1.0], f"val-core/{HOSTILE}/acc/mean@1": [0.5]}
    runs = [
        write_run(tmp_path / name, samples=[sample], metrics=metrics, data__files=HOSTILE, facts={"started": HOSTILE}),
        write_run(
            tmp_path / "plain", facts={"git": {"commit": HOSTILE, "dirty": True}, "versions": {HOSTILE: HOSTILE}}
        ),
    ]
    found = Tags(render(*runs))
    assert sum(tag == "img" for tag, _ in found.tags) == 0
    scripts = [attrs for tag, attrs in found.tags if tag == "script"]
    assert scripts and len({attrs.get("nonce") for attrs in scripts}) == 1 and scripts[0]["nonce"]
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on")]
    assert any(HOSTILE in text for text in found.text) and not any("864199" in text for text in found.text)


def test_nothing_is_loaded_and_the_browser_is_told_not_to(tmp_path):
    found = Tags(render(write_run(tmp_path / "a", samples=[SAMPLE])))
    addresses = [a[key] for _, a in found.tags for key in ("src", "href", "action") if key in a]
    assert addresses == ["data:,"]  # no icon
    policy = next(a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy
    assert re.search(r"script-src 'nonce-[\w-]{20,}';", policy)


def test_every_page_has_a_nonce_of_its_own(tmp_path):
    folder = write_run(tmp_path / "a")
    nonces = {re.search(r"'nonce-([\w-]+)'", render(folder))[1] for _ in range(2)}
    assert len(nonces) == 2


def test_only_a_watched_page_loads_itself_again(tmp_path):
    folder = write_run(tmp_path / "a")
    assert 'http-equiv="refresh"' not in render(folder)
    assert '<meta http-equiv="refresh" content="7">' in render(folder, refresh=7)


def test_settings_that_differ_come_before_the_figures(tmp_path):
    text = render(write_run(tmp_path / "a"), write_run(tmp_path / "b", soup__mixed_fraction=0))
    assert text.index("mixed_fraction") < text.index('id="standing"') < text.index('id="reward-1"')


def test_numbers_are_held_against_the_baseline(tmp_path):
    rewards = {"better": [0.75], "base": [0.5]}
    folders = [
        write_run(
            tmp_path / name,
            metrics={"critic/rewards/mean": values, "timing_s/step": [2.0 + 2 * values[0]]},
            data__files=name,
        )
        for name, values in rewards.items()
    ]
    text = "".join(Tags(render(*folders, baseline=tmp_path / "base")).text)
    assert "0.750 +0.250" in text and "3.5 +17%" in text and "difference from base" in text


def test_a_figure_without_data_says_what_is_missing(tmp_path):
    text = render(write_run(tmp_path / "a", metrics={"x": [1.0]}))
    assert "<code>soup/prefix_entropy_mean</code>" in text and "data-plot" not in text
    assert "no run has a <code>samples.jsonl</code>" in text


def test_tokens_show_segment_ratio_and_place(tmp_path):
    sample = {**SAMPLE, "response_tokens": 9, "left_out": {"after": 2, "tokens": 6}}
    found = Tags(render(write_run(tmp_path / "a", samples=[sample])))
    tokens = [attrs for tag, attrs in found.tags if tag == "span" and "data-note" in attrs]
    assert [attrs["class"] for attrs in tokens] == ["t p", "t p far", "t"]
    assert [attrs["tabindex"] for attrs in tokens] == ["0", "-1", "-1"]
    assert tokens[1]["data-note"] == (
        "token 2 of 9; prefix, policy of step 1; ratio 2.718; log-prob -2.000 when sampled, -1.000 before the update"
    )
    assert tokens[2]["data-note"].startswith("token 9 of 9; current policy; ratio 1;")
    assert any("6 tokens left out" in text for text in found.text)


def test_a_ratio_that_is_not_known_is_not_made_up(tmp_path):
    sample = {**SAMPLE, "ratio": [None] * 3, "current_log_probs": [None] * 3, "reward": None}
    text = render(write_run(tmp_path / "a", samples=[sample]))
    assert text.count("ratio not known; log-prob -") == 3 and "reward unknown" in text


def test_of_ten_recorded_responses_both_kinds_are_shown():
    records = [{"prefix_mask": [1, 0]}] * 5 + [{"prefix_mask": [0, 0]}] * 5
    assert [any(record["prefix_mask"]) for record in samples.shown(records)] == [True, True, True, False, False]
