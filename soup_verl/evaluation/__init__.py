"""What `soup_verl.evaluate` is made of; `estimators` is pure, and only `engine` knows vLLM."""

from __future__ import annotations

from soup_verl.method.checks import PortableError


class EvaluationError(PortableError):
    """An evaluation that cannot go on: names the option or file, the value seen, what is expected and what to do."""
