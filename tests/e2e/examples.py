"""The files of examples/ablations and examples/neighbors, and a few settings more, as overrides of a run."""

from pathlib import Path

ROOT = Path(__file__).parents[2]

MORE = {
    "more/warm_start": ("soup.warm_start=true",),  # a run's first steps are the only place where it shows
    "more/suffix": ("soup.source=snapshot", "soup.position=suffix", "soup.prefix_length.high=4"),
}
"""Settings that no example file has."""


def names() -> list[str]:
    """`ablations/age` and so on, in order."""
    files = sorted(p for folder in ("ablations", "neighbors") for p in (ROOT / "examples" / folder).glob("*.yaml"))
    return [*MORE, *(f"{p.parent.name}/{p.stem}" for p in files)]


NEEDED = {"neighbors/luffy_shaped": ("actor_rollout_ref.rollout.n=8",)}
"""What a file's own settings ask of a run: an eighth of the responses mixed."""

LAST = (3, 4)
"""With two batches an epoch every source has history for these steps."""


def steps(name: str) -> int:
    """Of a run. Ages are 2 and 8 in one, and a schedule ends at 0 with the run."""
    return {"ablations/age": 10, "ablations/schedule": 8}.get(name, 4)


def overrides(name: str) -> tuple[str, ...]:
    """As on the command line; where age is not the factor, it is small enough for a short run."""
    own = MORE.get(name) or (name.replace("/", "="), *NEEDED.get(name, ()))
    return own if name == "ablations/age" else (*own, "soup.lookahead.age=2")
