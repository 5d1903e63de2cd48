from soup_verl.config import SoupConfig
from soup_verl.history import LookaheadSource, SnapshotSource, build_source


def test_the_setting_chooses_the_source_and_its_numbers_arrive(engine, fake_run):
    soup = SoupConfig.parse({"lookahead": {"age": 3}})
    source = build_source(soup, engine, last_step=5)
    assert isinstance(source, LookaheadSource)
    fake_run.steps(source, engine, 1, 5)
    assert engine.calls == [("sample", 4, 0), ("sample", 5, 1)]


def test_snapshot_settings_arrive(engine, fake_run):
    soup = SoupConfig.parse({"source": "snapshot", "snapshot": {"every": 2, "capacity": 1, "choice": "latest"}})
    source = build_source(soup, engine, last_step=5)
    assert isinstance(source, SnapshotSource)
    fake_run.steps(source, engine, 1, 5)
    assert [call for call in engine.calls if call[0] != "return"] == [
        ("keep", 2),
        ("borrow", 2),
        ("sample", 4, 2),
        ("borrow", 2),
        ("sample", 5, 2),
        ("keep", 4),
        ("drop", 2),
    ]
