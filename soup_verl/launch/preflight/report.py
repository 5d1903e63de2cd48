"""What preflight found: findings with a verdict, and the report they make."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soup_verl.launch.preflight.sizing import Amount, readable
from soup_verl.method.checks import ConfigError
from soup_verl.records.files import write_json

FILE = "preflight.json"
OK, WARNING, NO = "ok", "warning", "no"
_COLOURS = {OK: "green", WARNING: "yellow", NO: "red"}
_PIPE_WIDTH = 160  # columns, where no terminal says otherwise


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        topic: model, data, GPUs, memory, ...
        name: what was looked at.
        verdict: ok; warning: an estimate or something suspicious; no: the run would fail for certain.
        need, have: what the run needs and what there is.
        how: the formula, or what to do.
        error: the line that ends the run; there is one if and only if the verdict is no.
    """

    topic: str
    name: str
    verdict: str
    need: str
    have: str
    how: str = ""
    error: Exception | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        assert self.verdict in _COLOURS and (self.verdict == NO) == (self.error is not None), self


def judged(topic: str, name: str, good: bool, *, need: Any, have: Any, how: str = "") -> Finding:
    """ok or warning."""
    return Finding(topic, name, OK if good else WARNING, str(need), str(have), how)


def refused(topic: str, name: str, key: str, value: Any, expected: str, remedy: str = "") -> Finding:
    """A setting that cannot work; takes the arguments of ConfigError."""
    return Finding(topic, name, NO, expected, f"{key}={value!r}", remedy, ConfigError(key, value, expected, remedy))


def fits(topic: str, name: str, need: Amount, have: int, *, spare: float = 0.0, where: str = "") -> Finding:
    """An estimate against what there is, of which the share `spare` should stay free: ok or warning."""
    good = need.bytes <= have * (1 - spare)
    return judged(topic, name, good, need=need, have=f"{readable(have)}{where}", how=need.formula)


@dataclass(frozen=True)
class Report:
    """Findings in order, and the first prompts as the model will see them."""

    findings: Sequence[Finding]
    prompts: Sequence[str] = ()
    seconds: float = 0.0

    def raise_if_refused(self) -> None:
        """
        Raises:
            Exception: that of the first finding that is certain to fail.
        """
        for finding in self.findings:
            if finding.error is not None:
                raise finding.error

    def write(self, folder: Path) -> None:
        """`preflight.json` in `folder`."""
        names = ("topic", "name", "verdict", "need", "have", "how")
        findings = [{name: getattr(finding, name) for name in names} for finding in self.findings]
        stored = {"findings": findings, "prompts": list(self.prompts), "seconds": round(self.seconds, 2)}
        write_json(folder / FILE, stored)

    def show(self) -> None:
        """A table on stdout, and the prompts."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
        table = Table(title=self._title(), title_justify="left", expand=True)
        for heading, ratio in (("", None), ("check", None), ("need", 3), ("have", 3), ("how", 5)):
            table.add_column(heading, overflow="fold", ratio=ratio, max_width=24 if heading == "check" else None)
        for topic in dict.fromkeys(f.topic for f in self.findings):
            table.add_section()
            table.add_row("", f"[bold]{escape(topic)}[/bold]")
            for f in (f for f in self.findings if f.topic == topic):
                colour = _COLOURS[f.verdict]
                table.add_row(f"[{colour}]{f.verdict}[/{colour}]", *map(escape, (f.name, f.need, f.have, f.how)))
        console.print(table)
        for i, prompt in enumerate(self.prompts):
            console.print(f"[bold]prompt {i} as the model sees it[/bold]")
            console.print(repr(prompt), markup=False, highlight=False)

    def _title(self) -> str:
        counts = {verdict: sum(f.verdict == verdict for f in self.findings) for verdict in _COLOURS}
        tally = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        return f"preflight: {tally} ({self.seconds:.1f} s)"
