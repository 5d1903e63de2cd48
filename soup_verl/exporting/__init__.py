"""What `soup_verl.export` is made of: the model's files, its card, and the push to the hub."""

from __future__ import annotations

from soup_verl.method.checks import PortableError


class ExportError(PortableError):
    """An export that cannot go on: names the option, the value seen, what is expected and what to do."""
