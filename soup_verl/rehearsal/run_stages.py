"""The small run and what is made of it, each stage checked by what it left behind."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from soup_verl.launch.preflight.report import FILE as PREFLIGHT_FILE
from soup_verl.launch.preflight.report import NO
from soup_verl.launch.preflight.run_settings import ROLLOUT, RunSettings
from soup_verl.records import run_log
from soup_verl.rehearsal.overrides import RESPONSE_TOKENS, Plan
from soup_verl.rehearsal.processes import Processes, StageFailed, wait_until
from soup_verl.rehearsal.record import Stage
from soup_verl.stack import checkpoint

LIMIT = 1800.0
"""Seconds a stage may take; most take a minute, but not on a busy machine."""
END = 60.0
"""Seconds a killed run's processes may take to end, as tests/e2e has it."""
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Two small processes of Ray's, by their titles, that try for a minute to report the death of their cluster."""
ROUNDING = 1e-3
"""Nats."""
TRAINED = "training/global_step"
"""A metric of trained steps alone."""


@dataclass(frozen=True)
class Expected:
    """What the small run is held against.

    Args:
        plan: its steps.
        own: the script's own settings.
        validation: its validation files.
        masked: share of the model's vocabulary that its tokenizer does not have: verl keeps the engine from sampling
            these ids, while the trainer's softmax has them. In a trained model they weigh nothing, in a random one
            as much as others.
    """

    plan: Plan
    own: RunSettings
    validation: Sequence[str]
    masked: float

    @property
    def apart(self) -> float:
        """Nats that rollout and trainer may be apart on a token of the current policy, both in fp32."""
        return ROUNDING - 2 * math.log(1 - self.masked)


class SmallRun:
    """The run of the script's command with the overrides, in the folder `run` of the rehearsal."""

    expected: Expected
    process: subprocess.Popen[bytes]

    def __init__(self, folder: Path):
        self.folder, self.processes = folder, Processes(folder)
        self.out = folder / "run"

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def begin(self, arguments: Sequence[str], expected: Expected) -> None:
        self._command = [sys.executable, "-m", "recipe.soup.main_soup", *arguments]
        self.expected = expected
        self.start("run")

    def start(self, log: str) -> None:
        self._log = self.log(log)
        self.process = self.processes.start(self._command, self._log)

    def wait(self, seen: Callable[[], bool], what: str) -> None:
        wait_until(seen, self.process, self._log, what=what, limit=LIMIT)

    def failed(self, cause: str) -> StageFailed:
        return StageFailed(cause, self._log)

    def preflight(self) -> list[dict[str, Any]]:
        """The findings of the run's own preflight."""
        file = self.out / PREFLIGHT_FILE
        self.wait(lambda: _json(file) is not None, "a preflight report")
        found = _json(file)["findings"]
        for finding in found:
            if finding["verdict"] == NO:
                raise self.failed(f"{finding['name']}: {finding['have']}: expected {finding['need']}")
        return found

    def finish(self) -> None:
        """To the end of the run, with exit code 0."""
        self.wait(lambda: self.process.poll() == 0, "its last step")

    def call(self, name: str, command: Sequence[str]) -> None:
        """A command with exit code 0."""
        log = self.log(name)
        process = self.processes.start([sys.executable, "-m", *command], log)
        wait_until(lambda: process.poll() == 0, process, log, what="an end", limit=LIMIT)


def trained_steps(out: Path) -> list[list[int]]:
    """The steps that each start of a run trained, in order."""
    files = [*sorted(out.glob("metrics.[0-9]*.jsonl")), out / run_log.FILE]
    return [[step for step, data in run_log.read_file(file) if TRAINED in data] for file in files if file.exists()]


def surviving_steps(starts: Sequence[Sequence[int]], kept: int) -> list[int]:
    """Steps in the history of a run that was resumed once, from the checkpoint of step `kept`."""
    return [*(step for step in starts[0] if step <= kept), *(step for start in starts[1:] for step in start)]


class RunStages:
    """From the first validation to the report.

    Args:
        whole: the run goes to its end at once: it is neither killed nor resumed.
    """

    def __init__(self, small: SmallRun, *, whole: bool):
        self._run, self._whole = small, whole
        self.all: dict[str, Callable[[Stage], None]] = {
            "validation": self._validation,
            "training": self._training,
            "kill": self._kill,
            "resume": self._resume,
            "evaluation": self._evaluation,
            "report": self._report,
        }

    def _validation(self, stage: Stage) -> None:
        self._run.wait(lambda: bool(self._validated()), "validation metrics of step 0")
        found = self._validated()
        stage.seen = f"{len(found)} metrics before training, such as {next(iter(found.items()))}"

    def _validated(self) -> dict[str, float]:
        return {key: value for key, value in self._metrics().get(0, {}).items() if key.startswith("val")}

    def _metrics(self) -> dict[int, dict[str, float]]:
        return run_log.read(self._run.out) if (self._run.out / run_log.FILE).exists() else {}

    def _training(self, stage: Stage) -> None:
        run, plan = self._run, self._run.expected.plan
        last = plan.steps if self._whole else plan.checkpoint
        run.wait(lambda: TRAINED in self._metrics().get(last, {}), f"metrics of step {last}")
        if self._whole:
            run.finish()
        newest, _ = checkpoint.newest_intact(run.out)
        if newest is None or checkpoint.step_of(newest) != last:
            raise run.failed(f"expected an intact checkpoint of step {last}, not {newest}")
        stage.seen = f"{last} steps, {self._look_at_steps(last)}; checkpoint {newest.name} is intact"

    def _look_at_steps(self, last: int) -> str:
        """The steps up to `last` have prefixes where they should, and rollout and trainer agree on a token."""
        metrics, plan = self._metrics(), self._run.expected.plan
        steps = range(plan.first, last + 1)
        tokens = [int(metrics[step].get("soup/prefix_tokens_total", 0)) for step in steps]
        apart = max(metrics[step].get("soup/alignment_error_max", 0.0) for step in range(1, last + 1))
        if apart > self._run.expected.apart:
            raise self._run.failed(f"rollout and trainer are {apart:.2g} nats apart on a token: expected rounding")
        if not self._run.expected.own.soup.planned:
            return f"without planned prefixes, as asked for; rollout and trainer agree to {apart:.0e} nats"
        if not all(tokens):
            raise self._run.failed(f"expected prefixes in steps {list(steps)}, but their tokens are {tokens}")
        return f"prefix tokens {tokens} in the last {len(tokens)}; rollout and trainer agree to {apart:.0e} nats"

    def _kill(self, stage: Stage) -> None:
        run = self._run
        last = max(self._metrics())
        found = run.processes.look()
        if run.process.poll() is not None:
            raise run.failed("the run was over before it could be killed")
        run.process.kill()
        run.process.wait()
        self._agents = [p for p, command in found.items() if command.startswith(AGENTS)]
        ended, left = psutil.wait_procs(found.keys() - set(self._agents), timeout=END)
        if left:
            raise run.failed(
                f"{len(left)} processes, such as {found[left[0]]}, run {END:.0f} s after the driver's death"
            )
        stage.seen = f"SIGKILL to the driver in step {last + 1}; its {len(ended)} processes ended by themselves"

    def _resume(self, stage: Stage) -> None:
        run, plan = self._run, self._run.expected.plan
        run.start("resume")
        run.finish()
        steps = surviving_steps(trained_steps(run.out), plan.checkpoint)
        if steps != list(range(1, plan.steps + 1)):
            raise run.failed(f"expected every step from 1 to {plan.steps} once, not {steps}")
        if left := psutil.wait_procs(self._agents, timeout=END)[1]:
            raise run.failed(f"{len(left)} of Ray's agents of the killed run are still there")
        stage.seen = f"went on with step {plan.checkpoint + 1}: every step to {plan.steps} once, "
        stage.seen += self._look_at_steps(plan.steps)

    def _evaluation(self, stage: Stage) -> None:
        run, own = self._run, self._run.expected.own
        reward = own.get("reward.custom_reward_function.path")
        sampling = f"{ROLLOUT}.val_kwargs"
        greedy = not own.get(f"{sampling}.do_sample", False)
        temperature, n = (0, 1) if greedy else (own.get(f"{sampling}.temperature"), 2)
        command = ["soup_verl.evaluate", "--model", str(run.out / f"global_step_{run.expected.plan.steps}")]
        command += ["--data", *run.expected.validation, "--out", str(run.folder / "evaluation")]
        command += ["--max-tokens", str(RESPONSE_TOKENS), "--n", str(n), "--temperature", str(temperature)]
        command += ["--top-p", str(own.get(f"{sampling}.top_p", 1.0))]
        command += ["--chat-template-args", json.dumps(own.get("data.apply_chat_template_kwargs", {}))]
        if reward is not None:
            command += ["--reward", f"{reward}:{own.get('reward.custom_reward_function.name')}"]
        if keywords := own.get("reward.custom_reward_function.reward_kwargs", {}):
            command += ["--reward-kwargs", *(f"{key}={json.dumps(value)}" for key, value in keywords.items())]
        run.call("evaluation", command)
        found = _json(run.folder / "evaluation" / "results.json") or {"files": {}}
        if missing := {Path(file).name for file in run.expected.validation} - found["files"].keys():
            raise StageFailed(f"results.json has nothing of {', '.join(sorted(missing))}", run.log("evaluation"))
        steps, files = run.expected.plan.steps, len(run.expected.validation)
        stage.seen = f"global_step_{steps} merged, sampled and scored on {files} files"

    def _report(self, stage: Stage) -> None:
        run, page = self._run, self._run.folder / "report.html"
        if missing := [name for name in ("plotly", "jinja2") if importlib.util.find_spec(name) is None]:
            raise StageFailed(f"{missing[0]} is not installed: bash scripts/install.sh")
        run.call(
            "report",
            ["soup_verl.report", str(run.out), "--evaluation", str(run.folder / "evaluation"), "--out", str(page)],
        )
        if not page.is_file() or "pass@" not in page.read_text():
            raise StageFailed(f"{page}: expected a page with the run's curves and pass@k", run.log("report"))
        stage.seen = f"{page} ({page.stat().st_size >> 20} MB)"


def _json(file: Path) -> Any:
    """What the file holds; None if it is not there or not whole yet."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None
