"""SOUP's part of a checkpoint: `global_step_N/soup/`, written beside verl's files and after them.

`soup/manifest.json` lists every file of the checkpoint with its size, and with a checksum if it is ours or small; large
files of verl's are archives of torch, which hold a checksum of every tensor. The folder is filled under another name
and renamed last, so a checkpoint with a manifest is complete. No pickle is written here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from soup_verl.method.checks import PortableError, is_int
from soup_verl.records.files import new_folder

FOLDER = "soup"
MANIFEST = "manifest.json"
STATE = "state.json"
NEWEST = "latest_checkpointed_iteration.txt"
"""verl's file in the run's folder."""
FORMAT = 1
"""Of the manifest and of every file of ours that it lists: one more whenever an earlier version could not read them."""
_CHUNK = 1 << 22  # bytes
_SMALL = 1 << 24  # bytes: a file of verl's that is quickly read again
_READERS = 8


class TornCheckpoint(PortableError):
    """A checkpoint that must not be used: names the path and the reason."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: {reason}")


class OtherFormat(PortableError):
    """An intact checkpoint of another version of this project. It is not passed over for an older one as a torn one is:
    a run that went on from there would overwrite it."""

    def __init__(self, manifest: Path, found: int):
        super().__init__(
            f"{manifest}: format {found}, expected {FORMAT}: another version of this project wrote it. Go on with that "
            "one (run.*.json in the run's folder name its commit), or start a new run in another "
            "trainer.default_local_dir."
        )


class CheckpointNotWritten(PortableError):
    """A checkpoint could not be written: names the folder, the room that is left, and the cause."""

    def __init__(self, checkpoint: Path, cause: Exception):
        free = shutil.disk_usage(checkpoint.parent).free
        said = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
        super().__init__(
            f"{checkpoint} could not be written, {free / 1e9:.3f} GB are free on its disk ({said}). The one "
            "before it, if there is one, is whole: mend the cause, and run the same command again to go on from there."
        )


def write(checkpoint: Path, *, state: dict, write_history: Callable[[Path], None]) -> None:
    """Write `checkpoint/soup/` in one step.

    Args:
        checkpoint: verl's `global_step_N` folder, complete.
        state: plain settings and counters.
        write_history: fills the given empty folder.
    """
    with new_folder(checkpoint / FOLDER) as partial:
        write_history(partial)
        (partial / STATE).write_text(json.dumps(state, indent=1))
        ours = {f"{FOLDER}/{p.name}": _describe(p, checksum=True) for p in sorted(partial.iterdir())}
        theirs = {
            str(p.relative_to(checkpoint)): _describe(p, checksum=p.stat().st_size <= _SMALL)
            for p in sorted(checkpoint.rglob("*"))
            if p.is_file() and p.relative_to(checkpoint).parts[0] not in (FOLDER, partial.name)
        }
        (partial / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": ours | theirs}, indent=1))
        _sync(partial)
        shutil.rmtree(checkpoint / FOLDER, ignore_errors=True)


def _describe(path: Path, *, checksum: bool) -> dict[str, int]:
    facts = {"bytes": path.stat().st_size}
    if checksum:
        facts["crc32"] = _crc32(path)
    return facts


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _sync(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def verify(checkpoint: Path) -> None:
    """Check every file against the manifest. Reads all of them once, several at a time.

    Raises:
        TornCheckpoint: the manifest or a file is missing, or a file differs from what was written.
        OtherFormat: another version of this project wrote it.
    """
    manifest = checkpoint / FOLDER / MANIFEST
    try:
        listing = json.loads(manifest.read_text())
    except FileNotFoundError:
        raise TornCheckpoint(manifest, "missing, so the checkpoint was not written to its end") from None
    except ValueError as error:
        raise TornCheckpoint(manifest, f"not readable ({error})") from None
    if not _is_listing(listing):
        raise TornCheckpoint(manifest, "not a manifest")
    if listing["format"] != FORMAT:
        raise OtherFormat(manifest, listing["format"])
    with ThreadPoolExecutor(_READERS) as readers:  # checksums are computed without Python's lock
        for _ in readers.map(lambda file: _verify_file(checkpoint / file[0], file[1]), listing["files"].items()):
            pass


def _is_listing(listing: Any) -> bool:
    """Of any format; what stands in one of another format is not ours to judge."""
    if not isinstance(listing, dict) or not is_int(listing.get("format")) or not isinstance(listing.get("files"), dict):
        return False
    return listing["format"] != FORMAT or all(
        isinstance(facts, dict) and "bytes" in facts and facts.keys() <= {"bytes", "crc32"}
        for facts in listing["files"].values()
    )


def _verify_file(path: Path, facts: dict[str, int]) -> None:
    if not path.is_file():
        raise TornCheckpoint(path, "missing")
    if path.stat().st_size != facts["bytes"]:
        raise TornCheckpoint(path, f"{path.stat().st_size} bytes, {facts['bytes']} were written")
    intact = _crc32(path) == facts["crc32"] if "crc32" in facts else _archive_is_intact(path)
    if not intact:
        raise TornCheckpoint(path, "its checksum is not the one that was written")


def _archive_is_intact(path: Path) -> bool:
    """Whether every member of an archive, such as `torch.save` writes, has its checksum; true for other files."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return True
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


def newest_intact(root: Path) -> tuple[Path | None, list[TornCheckpoint]]:
    """The newest checkpoint under `root` that can be used, and the newer ones that had to be refused.

    Raises:
        OtherFormat: as `verify`, of any that is newer than the one that can be used.
    """
    refused: list[TornCheckpoint] = []
    newest = newest_step(root)
    for checkpoint in sorted(root.glob("global_step_*"), key=step_of, reverse=True):
        if newest is not None and step_of(checkpoint) > newest:
            reason = f"{NEWEST} says {newest}: not written to its end, or of a history that the run has left"
            refused.append(TornCheckpoint(checkpoint, reason))
            continue
        try:
            verify(checkpoint)
        except TornCheckpoint as error:
            refused.append(error)
        else:
            return checkpoint, refused
    return None, refused


def newest_step(root: Path) -> int | None:
    """The step of the checkpoint that verl wrote last; None where there is none, or verl died while it said so."""
    try:
        return int((root / NEWEST).read_text())
    except (OSError, ValueError):
        return None


def step_of(checkpoint: Path) -> int:
    """N of `global_step_N`; -1 for any other name."""
    match = re.fullmatch(r"global_step_(\d+)", checkpoint.name)
    return int(match.group(1)) if match else -1


def read_state(checkpoint: Path) -> dict:
    """What was passed to `write` as `state`."""
    return json.loads((checkpoint / FOLDER / STATE).read_text())
