"""What a rehearsal leaves: a line a stage while it runs, a table at its end, rehearsal.json."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from soup_verl.records.files import write_json
from soup_verl.rehearsal.overrides import assignment

FILE = "rehearsal.json"
EXERCISED, FAILED, NOT_REACHED, NOT_ASKED = "exercised", "FAILED", "not reached", "not asked for"
_COLOURS = {EXERCISED: "green", FAILED: "red", NOT_REACHED: "yellow", NOT_ASKED: "yellow"}
ONLY_A_GPU_SHOWS = {
    "kernels": "flash-attn, vLLM's CUDA kernels and graphs, torch.compile",
    "memory": "whether model, activations and key-value cache fit (preflight estimates it)",
    "speed": "seconds a step, and what waits for what",
    "numerics": "bf16 in training and rollout, and how far their log-probs are apart",
    "communication": "NCCL, more than one rank, tensor and sequence parallelism, several nodes",
    "sleep and wake": "the engine giving its memory to the trainer and taking it back",
    "learning": "a random model solves nothing: advantages are 0 unless the reward tells its responses apart",
}


@dataclass
class Stage:
    """One stage.

    Args:
        seen: what it left behind, or the cause of its failure.
        details: lines for the screen, below.
        log: the file that says more of a failure.
    """

    name: str
    verdict: str = NOT_REACHED
    seconds: float = 0.0
    seen: str = ""
    details: str = ""
    log: str = ""


class Record:
    """All stages of the rehearsal in `folder`, in order.

    Args:
        script: the script's own arguments.
        names: of all stages there are.
        asked: those to go through.
    """

    def __init__(self, folder: Path, script: Sequence[str], names: Sequence[str], asked: Sequence[str]):
        self.folder, self.script = folder, script
        self.stages = [Stage(name, NOT_REACHED if name in asked else NOT_ASKED) for name in names]
        self.overrides: dict[str, Any] = {}
        self._screen = sys.stdout
        self.write()

    @property
    def log(self) -> Path:
        """What this process's own stages print."""
        return self.folder / "rehearsal.log"

    def asks_for(self, name: str) -> bool:
        return any(stage.name == name and stage.verdict != NOT_ASKED for stage in self.stages)

    def assignments(self) -> list[str]:
        """The overrides as arguments."""
        return [assignment(key, value) for key, value in self.overrides.items()]

    @property
    def failed(self) -> Stage | None:
        return next((s for s in self.stages if s.verdict == FAILED), None)

    @property
    def complete(self) -> bool:
        return all(s.verdict == EXERCISED for s in self.stages if s.verdict != NOT_ASKED)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Times the block and has it print to the log; says how it went in a line and in the file."""
        stage = next(s for s in self.stages if s.name == name)
        stage.verdict, started = FAILED, time.monotonic()
        self._say(f"{name:<12}")
        try:
            with self.log.open("a") as log, redirect_stdout(log), redirect_stderr(log):
                yield stage
            stage.verdict = EXERCISED
        except KeyboardInterrupt:
            stage.seen = "interrupted"
            raise
        except Exception as error:
            stage.seen = " ".join(str(error).split()) or repr(error)
            with self.log.open("a") as log:
                traceback.print_exception(error, file=log)
            stage.log = str(getattr(error, "log", None) or self.log)
            raise
        finally:
            stage.seconds = round(time.monotonic() - started, 1)
            self._say(f"{stage.seconds:>6.1f} s  {stage.verdict}: {stage.seen}\n{stage.details}")
            self.write()

    def write(self) -> None:
        stored = {
            "script": list(self.script),
            "overrides": self.overrides,
            "stages": [{k: v for k, v in asdict(stage).items() if k != "details"} for stage in self.stages],
            "complete": self.complete,
            "only_a_gpu_shows": ONLY_A_GPU_SHOWS,
        }
        write_json(self.folder / FILE, stored)

    def _say(self, text: str) -> None:
        self._screen.write(text)
        self._screen.flush()


def override_lines(overrides: Mapping[str, Any], script: Mapping[str, Any]) -> str:
    """A line for each override, with the script's own value.

    Args:
        script: the script's own values, by key.
    """
    width = max(map(len, overrides))
    return "".join(f"    {key:<{width}}  {_short(script.get(key))} -> {_short(v)}\n" for key, v in overrides.items())


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def show(record: Record) -> None:
    """The table of stages, and what a CPU cannot show."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table(title=f"rehearsal in {record.folder}", title_justify="left")
    for heading in ("stage", "", "seconds", "what was seen"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "seconds" else "left")
    for s in record.stages:
        colour, seconds = _COLOURS[s.verdict], f"{s.seconds:.1f}" if s.seconds else ""
        table.add_row(s.name, f"[{colour}]{s.verdict}[/{colour}]", seconds, escape(s.seen))
    console.print(table)
    console.print("Only a GPU shows:")
    for what, meaning in ONLY_A_GPU_SHOWS.items():
        console.print(f"  {what}: {meaning}", highlight=False)
