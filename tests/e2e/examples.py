"""The files of recipe/soup/config/ablations and neighbors, and a few settings more, as overrides of a run."""

from pathlib import Path

CONFIG = Path(__file__).parents[2] / "recipe" / "soup" / "config"

_HALF = ("actor_rollout_ref.rollout.n=8", "soup.down_sampling.train_on=4")  # 16 rows, a micro-batch of all runs

MORE = {
    "more/warm_start": ("soup.warm_start=true",),  # a run's first steps are the only place where it shows
    "more/suffix": ("soup.source=snapshot", "soup.position=suffix", "soup.prefix_length.high=4"),
    "more/whole": ("soup.position=whole",),
    "more/pods_mixed": ("neighbors=pods", *_HALF, "soup.mixed_fraction=0.5", "soup.source=replay"),
    "more/forget": ("soup.source=forget", "soup.prefix_length.high=4", "soup.behavior_log_probs=actor"),
}
"""Settings that no example file has."""


ASYNCHRONOUS = ("neighbors/partial_rollout", "neighbors/partial_rollout_two_pools")
"""Have trainers of their own, and runs of their own: `test_inflight.py`."""


def names() -> list[str]:
    """`ablations/age` and so on, in order."""
    files = sorted(p for folder in ("ablations", "neighbors") for p in (CONFIG / folder).glob("*.yaml"))
    found = [*MORE, *(f"{p.parent.name}/{p.stem}" for p in files)]
    return [name for name in found if name not in ASYNCHRONOUS]


NEEDED = {
    "neighbors/luffy_shaped": ("actor_rollout_ref.rollout.n=8",),  # an eighth of the responses mixed
    # Two policies in four steps.
    **dict.fromkeys(("ablations/held_policy", "neighbors/oapl", "neighbors/oapl_paired"), ("soup.snapshot.every=2",)),
    "neighbors/m2po": ("soup.kl_control.max_second_moment=1e-3",),  # a policy that is two steps old is near
    "neighbors/exgrpo": ("actor_rollout_ref.rollout.n=8",),
    "neighbors/prefix_sampling": ("soup.replay.target_pass_rate=0.4",),  # which two or four responses never pass at
    "neighbors/pods": _HALF,
    "neighbors/dapo": ("algorithm.filter_groups.metric=reward",),  # a random model's answers are all wrong
}
"""What a file's own settings ask of a run, or of a short one."""

SELDOM = ("neighbors/failure_prefixes",)
"""Mix only what was solved every time, and failed before: where `seldom_wrong` rewards, at every other visit."""

LAST = (3, 4)
"""With two batches an epoch every source has history for these steps."""


def steps(name: str) -> int:
    """Of a run. Ages are 2 and 8 in one, a schedule ends at 0 with the run, and a control or a gate needs visits."""
    needed = {"neighbors/dapo_soup": 6, "ablations/age": 10, "ablations/schedule": 8, "neighbors/prefix_sampling": 8}
    return (needed | dict.fromkeys(SELDOM, 14)).get(name, 4)


def data(name: str) -> str:
    """The prompts of a run, by their reward: some methods need responses that are right."""
    special = {
        "neighbors/dapo_soup": "half",  # so that every step replaces groups, however the rest goes
        "neighbors/exgrpo": "mostly",
        "neighbors/prefix_sampling": "also_mostly",
    }
    return (special | dict.fromkeys(SELDOM, "seldom_wrong")).get(name, "varied")


def overrides(name: str) -> tuple[str, ...]:
    """As on the command line; where age is not the factor, it is small enough for a short run."""
    own = MORE.get(name) or (name.replace("/", "="), *NEEDED.get(name, ()))
    return own if name == "ablations/age" else (*own, "soup.lookahead.age=2")
