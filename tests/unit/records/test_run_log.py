import json

import pytest

from soup_verl.records import run_log


def write(folder, *steps, tail=""):
    lines = [json.dumps({"step": step, "data": data}) for step, data in steps]
    (folder / run_log.FILE).write_text("".join(line + "\n" for line in lines) + tail)


def test_resumes_are_put_together_and_the_last_word_on_a_step_counts(tmp_path):
    write(tmp_path, (1, {"a": 1.0}), (2, {"a": 2.0, "b": 5.0}))
    run_log.set_aside(tmp_path)
    write(tmp_path, (2, {"a": 2.5}), (3, {"a": 3.0}))
    run_log.set_aside(tmp_path)
    write(tmp_path, (4, {"a": 4.0}))
    expected = {1: {"a": 1.0}, 2: {"a": 2.5, "b": 5.0}, 3: {"a": 3.0}, 4: {"a": 4.0}}
    assert list(run_log.read(tmp_path).items()) == list(expected.items())


@pytest.mark.parametrize("tail", ['{"step": 2, "da', '{"step": 2, "data": {"a": 2.0}', "{", "null", '{"step": 2}'])
def test_a_half_written_line_or_a_foreign_one_is_passed_over(tmp_path, tail):
    write(tmp_path, (1, {"a": 1.0}), tail=tail)
    assert run_log.read(tmp_path) == {1: {"a": 1.0}}


def test_nothing_to_set_aside(tmp_path):
    run_log.set_aside(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_metrics_is_refused_by_its_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        run_log.read(tmp_path)
