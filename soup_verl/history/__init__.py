"""Sources of historical prefixes: one module a source, one interface (`base.PrefixSource`)."""

from soup_verl.config import SoupConfig
from soup_verl.history.base import GroupPrefixes, PendingPrefixes, PolicyEngine, Prefix, PrefixSource
from soup_verl.history.lookahead import LookaheadSource
from soup_verl.history.snapshot import SnapshotSource


def build_source(soup: SoupConfig, engine: PolicyEngine, *, last_step: int) -> PrefixSource:
    """The source that `soup.source` names."""
    if soup.source == "lookahead":
        return LookaheadSource(engine, age=soup.lookahead.age, last_step=last_step)
    assert soup.source == "snapshot", soup.source
    return SnapshotSource(
        engine,
        every=soup.snapshot.every,
        capacity=soup.snapshot.capacity,
        choice=soup.snapshot.choice,
        seed=soup.seed,
        last_step=last_step,
    )


__all__ = [
    "GroupPrefixes",
    "LookaheadSource",
    "PendingPrefixes",
    "PolicyEngine",
    "Prefix",
    "PrefixSource",
    "SnapshotSource",
    "build_source",
]
