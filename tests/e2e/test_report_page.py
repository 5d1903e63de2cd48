"""The report in a real browser: Debian's chromium, from file://, as a phone and as a desk see it, light and dark."""

import json
import math
import os
import shutil
from contextlib import contextmanager

import pytest

from soup_verl.reporting import __main__ as report
from tests.unit.reporting.folders import SAMPLE, results_of, write_run

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs the commands chromium and chromedriver (Debian: chromium, chromium-driver)"
)

SWITCHES = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = "</script><script>window.hacked = 1</script><img src=http://127.0.0.1:9/x onerror='window.hacked = 1'>"
DRAWN = "document.documentElement.dataset.drawn === 'true'"
SECONDS = 120  # a loaded machine may take its time


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    driver.get("about:blank")
    yield driver
    driver.quit()


def waves(phase, steps=30):
    return [1 + math.sin(phase + step / 4) for step in range(steps)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three seeds of one run and another one, with every metric and hostile text wherever text can be."""
    folder = tmp_path_factory.mktemp("runs")
    names = ["critic/rewards/mean", f"val-core/{HOSTILE}/acc/mean@2", "timing_s/step", "timing_s/gen", "actor/ppo_kl"]
    names += [f"val-soup/{HOSTILE}/pass@{k}" for k in (1, 2, 4)]
    names += [f"soup/{s}_{n}" for s in ("prefix", "onpolicy") for n in ("entropy_mean", "ratio_mean", "ratio_max")]
    names += ["soup/prefix_kl_k3", "soup/policy_age_mean", "soup/prefix_length_mean", "soup/decode_tokens_total"]
    at_k = {f"pass@{2**i}": {"mean": 0.2 + i / 10, "low": 0.1 + i / 10, "high": 0.3 + i / 10} for i in range(6)}
    text = ["A", " long", HOSTILE] + [f" word{i}" for i in range(60)]
    sample = {**SAMPLE, "response_tokens": len(text), "left_out": {"after": 0, "tokens": 0}, "tokens": text}
    sample |= {"prompt": HOSTILE, "prefix_mask": [1] * 9 + [0] * (len(text) - 9), "ratio": [1.5] * len(text)}
    sample |= {"behavior_log_probs": [-1.0] * len(text), "current_log_probs": [-0.6] * len(text)}

    def made(name, phase, **changes):
        metrics = {key: waves(phase + i) for i, key in enumerate(names)}
        return write_run(folder / name, metrics=metrics, samples=[sample], evaluation=results_of(at_k), **changes)

    hostile_name = "<script>window.hacked = 1<|script>" + "long" * 20
    return [
        *(made(f"soup-s{seed}", seed, soup__seed=seed) for seed in range(3)),
        made(hostile_name, 5, soup__mixed_fraction=0, data__files=HOSTILE),
    ]


def write_page(runs, path, *options):
    assert report.main([*map(str, runs), "--out", str(path), *options]) == 0
    return path


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    return write_page(runs, tmp_path_factory.mktemp("page") / "report.html")


@contextmanager
def opened(browser, path, *, width, scheme):
    """The page, drawn; afterwards, that nothing was asked of a network and the console is empty."""
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(path.as_uri())
    wait_for(browser, DRAWN)
    yield
    keep_screenshot(browser, f"{width}-{scheme}")
    assert browser.get_log("browser") == []
    assert set(requests(browser)) == {path.as_uri()}
    assert browser.execute_script("sessionStorage.clear(); return window.hacked") is None


def wait_for(browser, expression):
    """The value of a JavaScript expression, as soon as it counts as true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, SECONDS).until(lambda b: b.execute_script(f"return {expression}"))


def requests(browser):
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if url != "about:blank"]


def keep_screenshot(browser, name):
    """In the folder that SOUP_SCREENSHOTS names, for eyes."""
    if folder := os.environ.get("SOUP_SCREENSHOTS"):
        browser.save_screenshot(os.path.join(folder, f"report-{name}.png"))


def colours(browser):
    """Of the page's background, of its text, and of the text in the first figure."""
    script = "const of = (e, key) => getComputedStyle(document.querySelector(e))[key];"
    return browser.execute_script(
        script + "return [of('body', 'backgroundColor'), of('body', 'color'), of('.plot .xtitle', 'fill')]"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_the_screen_and_every_figure_is_drawn(browser, page, width, scheme):
    with opened(browser, page, width=width, scheme=scheme):
        wide, seen = browser.execute_script(
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert wide <= seen <= width
        plots, svgs, lines = browser.execute_script(
            "const all = (s) => document.querySelectorAll(s).length;"
            "return [all('.plot'), all('.plot .main-svg') > 0 ? all('.plot:has(.main-svg)') : 0, all('.plot .js-line')]"
        )
        assert plots == svgs > 10 and lines > plots
        outside = browser.execute_script(
            "return [...document.querySelectorAll('.plot')].filter((plot) => {"
            "  const box = plot.getBoundingClientRect();"
            "  return [...plot.querySelectorAll('.xtitle, .ytitle, .xtick text, .ytick text')].some((text) => {"
            "    const at = text.getBoundingClientRect();"
            "    return at.left < box.left - 1 || at.right > box.right + 1 || at.bottom > box.bottom + 1; }); }).length"
        )
        assert outside == 0  # no label is cut
        background, text, title = colours(browser)
        assert (background == "rgb(255, 255, 255)") == (scheme == "light") and text == title


def test_the_button_switches_the_colours_of_page_and_figures(browser, page):
    with opened(browser, page, width=1280, scheme="light"):
        before = colours(browser)
        browser.find_element("id", "theme").click()
        after = colours(browser)
        assert all(a != b for a, b in zip(before, after, strict=True)) and after[1] == after[2]
        browser.find_element("id", "theme").click()
        assert colours(browser) == before


# A page scrolls at once and says so (which hides the tooltip) in its next frame: one for that, one to be past it.
FRAMES = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
TOOLTIP = "const t = document.getElementById('tooltip'); return t.hidden ? '' : t.textContent"


@pytest.mark.parametrize("width", [360, 1280])
def test_a_tokens_ratio_shows_when_pointed_at_tapped_or_reached_by_keys(browser, page, width):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    with opened(browser, page, width=width, scheme="light"):
        tokens = browser.find_elements("css selector", "pre.tokens .t")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", tokens[1])
        browser.execute_async_script(FRAMES)
        assert browser.execute_script(TOOLTIP) == ""
        ActionChains(browser).move_to_element(tokens[1]).perform()
        assert browser.execute_script(TOOLTIP).startswith("token 2 of 63; prefix, policy of step 1; ratio 1.5;")
        tokens[0].click()
        assert browser.execute_script(TOOLTIP).startswith("token 1 of 63")
        ActionChains(browser).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT).perform()
        assert browser.execute_script(TOOLTIP).startswith("token 3 of 63")
        assert browser.execute_script("return document.activeElement.getAttribute('aria-describedby')") == "tooltip"
        ActionChains(browser).send_keys(Keys.END).perform()
        assert browser.execute_script(TOOLTIP).startswith("token 63 of 63; current policy")
        left, right = browser.execute_script(
            "const at = document.getElementById('tooltip').getBoundingClientRect(); return [at.left, at.right]"
        )
        assert left >= 0 and right <= width
        ActionChains(browser).send_keys(Keys.ESCAPE).perform()
        assert browser.execute_script(TOOLTIP) == ""


def test_a_watched_page_loads_itself_again_and_keeps_its_place(browser, runs, tmp_path):
    def stop(seconds):
        raise KeyboardInterrupt

    def write(seconds):
        assert report.main([str(runs[0]), "--out", str(path), "--watch", seconds], stop) == 0

    path = tmp_path / "report.html"
    write("10")
    with opened(browser, path, width=360, scheme="light"):
        browser.execute_script("document.querySelector('details').open = true; scrollTo(0, 1500)")
        before = browser.execute_script("return performance.timeOrigin")
        write("600")  # this one stays while it is looked at
        found = wait_for(
            browser,
            f"{DRAWN} && performance.timeOrigin !== {before} && [scrollY, document.querySelector('details').open]",
        )
        assert found == [1500, True]


def test_a_printed_page_is_light_and_has_every_figure(browser, page):
    with opened(browser, page, width=1280, scheme="dark"):
        browser.execute_script("dispatchEvent(new Event('beforeprint'))")
        widths = browser.execute_script(
            "return [...document.querySelectorAll('.plot .main-svg')].map((s) => s.clientWidth)"
        )
        assert colours(browser)[0] == "rgb(255, 255, 255)" and max(widths) <= 680
        browser.execute_script("dispatchEvent(new Event('afterprint'))")
        assert colours(browser)[0] != "rgb(255, 255, 255)"
