import json
import re
import shutil

import pytest
import torch

from soup_verl.stack import checkpoint
from soup_verl.stack.checkpoint import OtherFormat, TornCheckpoint


def write(folder, *, history=b"prefixes"):
    """A checkpoint as a run leaves it: verl's two files, then ours."""
    (folder / "actor").mkdir(parents=True, exist_ok=True)
    torch.save({"weight": torch.arange(100.0)}, folder / "actor" / "model.pt")
    (folder / "data.pt").write_bytes(b"loader")
    checkpoint.write(
        folder,
        state={"step": checkpoint.step_of(folder), "settings": {"soup.seed": 0}},
        write_history=lambda f: (f / "history.bin").write_bytes(history),
    )
    return folder


@pytest.fixture
def saved(tmp_path):
    return write(tmp_path / "global_step_3")


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def drop_last_byte(path):
    path.write_bytes(path.read_bytes()[:-1])


def test_what_was_written_verifies_and_its_state_is_read_back(saved):
    checkpoint.verify(saved)
    assert checkpoint.read_state(saved) == {"step": 3, "settings": {"soup.seed": 0}}
    assert (saved / "soup" / "history.bin").read_bytes() == b"prefixes"
    assert not (saved / "soup.partial").exists()


def test_the_manifest_lists_every_file(saved):
    files = json.loads((saved / "soup" / "manifest.json").read_text())["files"]
    assert set(files) == {"soup/history.bin", "soup/state.json", "actor/model.pt", "data.pt"}
    assert files["actor/model.pt"]["bytes"] == (saved / "actor" / "model.pt").stat().st_size


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("soup/manifest.json", lambda p: p.unlink()),
        ("soup/manifest.json", lambda p: p.write_bytes(b"")),
        ("soup/manifest.json", drop_last_byte),
        ("soup/manifest.json", lambda p: p.write_text('{"files": {}}')),
        ("soup/manifest.json", lambda p: p.write_text('{"format": 1, "files": {"data.pt": {"size": 3}}}')),
        ("soup/history.bin", drop_last_byte),
        ("soup/history.bin", flip_bit),
        ("soup/history.bin", lambda p: p.unlink()),
        ("soup/state.json", flip_bit),
        ("soup/state.json", lambda p: p.unlink()),
        ("actor/model.pt", drop_last_byte),
        ("actor/model.pt", lambda p: p.unlink()),
        ("actor/model.pt", flip_bit),
        ("data.pt", flip_bit),
        ("data.pt", lambda p: p.write_bytes(b"")),
    ],
)
def test_damage_is_refused_by_the_files_path(saved, file, damage):
    damage(saved / file)
    with pytest.raises(TornCheckpoint) as caught:
        checkpoint.verify(saved)
    assert str(caught.value).startswith(f"{saved / file}: ")


def test_a_flipped_bit_in_a_large_file_of_verls_is_found_by_torchs_own_checksums(tmp_path, monkeypatch):
    """No bit of a tensor can flip unseen; a bit of padding or of a date may."""
    monkeypatch.setattr(checkpoint, "_SMALL", 0)
    folder = write(tmp_path / "global_step_3")
    model = folder / "actor" / "model.pt"
    assert "crc32" not in json.loads((folder / "soup" / "manifest.json").read_text())["files"]["actor/model.pt"]
    checkpoint.verify(folder)
    intact = model.read_bytes()
    start = intact.find(torch.arange(100.0).numpy().tobytes())
    assert start > 0
    for i in range(start, start + 400, 7):
        model.write_bytes(intact[:i] + bytes([intact[i] ^ 1]) + intact[i + 1 :])
        with pytest.raises(TornCheckpoint, match="model.pt: its checksum"):
            checkpoint.verify(folder)


def test_any_flipped_bit_in_the_manifest_is_refused(saved):
    manifest = saved / "soup" / "manifest.json"
    intact = manifest.read_bytes()
    for i in range(len(intact)):
        manifest.write_bytes(intact[:i] + bytes([intact[i] ^ 1]) + intact[i + 1 :])
        with pytest.raises((TornCheckpoint, OtherFormat)):
            checkpoint.verify(saved)


def of_format(folder, number):
    """The checkpoint as another version of this project might have left it."""
    (folder / "soup" / "manifest.json").write_text(json.dumps({"format": number, "files": {"a": ["other", "facts"]}}))
    return folder


@pytest.mark.parametrize("number", [0, 2, 17])
def test_another_format_is_refused_with_the_file_what_is_expected_and_what_to_do(saved, number):
    with pytest.raises(OtherFormat) as caught:
        checkpoint.verify(of_format(saved, number))
    said = str(caught.value)
    assert said.startswith(f"{saved / 'soup/manifest.json'}: format {number}, expected 1: ") and "\n" not in said
    assert "another version of this project wrote it" in said and "trainer.default_local_dir" in said


def test_the_format_is_looked_at_before_the_files(saved):
    """A later version may have other files; what it lacks is no damage."""
    (saved / "soup" / "history.bin").unlink()
    with pytest.raises(OtherFormat):
        checkpoint.verify(of_format(saved, 2))


def test_no_older_checkpoint_takes_the_place_of_one_of_another_format(tmp_path):
    """Going on from step 8 would overwrite step 9."""
    write(tmp_path / "global_step_8")
    of_format(write(tmp_path / "global_step_9"), 2)
    with pytest.raises(OtherFormat, match="global_step_9"):
        checkpoint.newest_intact(tmp_path)
    write(tmp_path / "global_step_10")
    assert checkpoint.newest_intact(tmp_path) == (tmp_path / "global_step_10", [])


def test_the_format_that_is_written_is_the_one_that_is_read(saved):
    assert json.loads((saved / "soup" / "manifest.json").read_text())["format"] == checkpoint.FORMAT == 1


def test_an_interrupted_write_leaves_no_usable_checkpoint_and_does_not_hinder_the_next(tmp_path):
    folder = tmp_path / "global_step_2"

    def interrupted(partial):
        (partial / "half.bin").write_bytes(b"x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(folder, state={}, write_history=interrupted)
    assert not (folder / "soup").exists() and not (folder / "soup.partial").exists()
    with pytest.raises(TornCheckpoint, match="manifest.json"):
        checkpoint.verify(folder)

    (folder / "soup.partial").mkdir()  # as a kill leaves it
    (folder / "soup.partial" / "half.bin").write_bytes(b"x")
    write(folder)
    checkpoint.verify(folder)
    files = json.loads((folder / "soup" / "manifest.json").read_text())["files"]
    assert not any("half.bin" in name or "partial" in name for name in files)


def test_a_leftover_beside_an_intact_checkpoint_is_harmless(saved):
    (saved / "soup.partial").mkdir()
    (saved / "soup.partial" / "half.bin").write_bytes(b"x")
    checkpoint.verify(saved)


def test_a_checkpoint_can_be_written_again(saved):
    write(saved, history=b"other")
    checkpoint.verify(saved)
    assert (saved / "soup" / "history.bin").read_bytes() == b"other"


def test_the_newest_intact_checkpoint_is_chosen_by_number(tmp_path):
    for step in (9, 10, 8):
        write(tmp_path / f"global_step_{step}")
    assert checkpoint.newest_intact(tmp_path) == (tmp_path / "global_step_10", [])


def test_torn_newer_checkpoints_are_passed_over_and_reported_newest_first(tmp_path):
    for step in (8, 9, 10):
        write(tmp_path / f"global_step_{step}")
    flip_bit(tmp_path / "global_step_10" / "soup" / "history.bin")
    shutil.rmtree(tmp_path / "global_step_9" / "actor")
    folder, refused = checkpoint.newest_intact(tmp_path)
    assert folder == tmp_path / "global_step_8"
    assert [str(e).split(":")[0] for e in refused] == [
        str(tmp_path / "global_step_10/soup/history.bin"),
        str(tmp_path / "global_step_9/actor/model.pt"),
    ]


def test_no_checkpoint_at_all(tmp_path):
    assert checkpoint.newest_intact(tmp_path) == (None, [])
    assert checkpoint.newest_intact(tmp_path / "none") == (None, [])


def test_only_torn_checkpoints(tmp_path):
    (tmp_path / "global_step_1").mkdir()
    folder, refused = checkpoint.newest_intact(tmp_path)
    assert folder is None and len(refused) == 1


@pytest.mark.parametrize(
    ("name", "step"),
    [("global_step_12", 12), ("global_step_0", 0), ("global_step_", -1), ("global_step_3.tmp", -1), ("step_3", -1)],
)
def test_step_of_a_folder(tmp_path, name, step):
    assert checkpoint.step_of(tmp_path / name) == step


def test_what_was_written_after_verls_newest_is_of_another_history(tmp_path):
    for step in (2, 4, 8):
        write(tmp_path / f"global_step_{step}")
    (tmp_path / checkpoint.NEWEST).write_text("4")
    folder, (refused,) = checkpoint.newest_intact(tmp_path)
    assert folder == tmp_path / "global_step_4"
    assert re.search(
        r"global_step_8: latest_checkpointed_iteration.txt says 4: not written to its end, or of", str(refused)
    )
    (tmp_path / checkpoint.NEWEST).write_text("")  # verl was killed while it wrote
    assert checkpoint.newest_intact(tmp_path) == (tmp_path / "global_step_8", [])
