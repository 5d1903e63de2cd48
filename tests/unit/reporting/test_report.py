import subprocess
import sys
from pathlib import Path

import pytest

from soup_verl.reporting import __main__ as report
from soup_verl.reporting import page
from tests.unit.reporting.folders import write_run

ROOT = Path(__file__).parents[3]


def test_the_page_is_written_and_nothing_else(tmp_path, capsys):
    write_run(tmp_path / "a")
    assert report.main([str(tmp_path / "a"), "--out", str(tmp_path / "new" / "report.html")]) == 0
    assert capsys.readouterr().out == f"page: {tmp_path / 'new' / 'report.html'}\n"
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["report.html"]
    text = (tmp_path / "new" / "report.html").read_text()
    assert text.startswith("<!doctype html>") and "Plotly" in text


def test_a_folder_that_is_no_run_ends_in_one_line(tmp_path, capsys):
    assert report.main([str(tmp_path / "a"), "--out", str(tmp_path / "report.html")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/a: expected the folder of a run") and error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_a_missing_package_ends_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, page.__name__)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    write_run(tmp_path / "a")
    assert report.main([str(tmp_path / "a"), "--out", str(tmp_path / "report.html")]) == 1
    assert capsys.readouterr().err == "error: the report needs jinja2: pip install plotly Jinja2\n"


def test_watching_follows_the_run_until_it_is_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "")
    folder, out, pages = write_run(tmp_path / "a"), tmp_path / "report.html", []

    def sleep(seconds):
        pages.append(out.read_text())
        if len(pages) == 2:
            raise KeyboardInterrupt
        assert seconds == 5
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 33, "data": {"critic/rewards/mean": 1.0}}\n')

    assert report.main([str(folder), "--out", str(out), "--watch", "5"], sleep) == 0
    assert ["step 33" in page for page in pages] == [False, True] and 'content="5"' in pages[0]


def test_watching_outlives_files_that_cannot_be_read_for_a_moment(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "")
    folder, out, turns = write_run(tmp_path / "a"), tmp_path / "report.html", []

    def sleep(seconds):
        turns.append(out.read_text())
        if len(turns) == 3:
            raise KeyboardInterrupt
        (folder / "run.json").write_text("" if len(turns) == 1 else "{}")

    assert report.main([str(folder), "--out", str(out), "--watch", "5"], sleep) == 0
    assert turns[0] == turns[1] and "run.json: expected JSON" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "-1", "1.5", "x"])
def test_seconds_are_whole_and_at_least_one(seconds, capsys):
    with pytest.raises(SystemExit):
        report.parse(["run", "--watch", seconds])
    assert f"{seconds!r}: expected a whole number of seconds" in capsys.readouterr().err or seconds == "-1"


def test_the_command_loads_none_of_the_heavy_packages():
    code = (
        "import sys, soup_verl.report, soup_verl.reporting.page;"
        "print([m for m in ('torch', 'verl', 'ray', 'vllm', 'transformers', 'numpy', 'pandas') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
