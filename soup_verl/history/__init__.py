"""Sources of historical prefixes: one module a source, one interface (`base.PrefixSource`)."""

from soup_verl.config import SoupConfig
from soup_verl.history.base import (
    GroupPrefixes,
    PendingPrefixes,
    PolicyEngine,
    PolicyResponse,
    Prefix,
    PrefixSource,
    PromptPlan,
)
from soup_verl.history.kl_control import CollapseWatch, NoiseWatch
from soup_verl.history.lookahead import LookaheadSource
from soup_verl.history.replay import ReplaySource
from soup_verl.history.snapshot import SnapshotSource


def build_source(soup: SoupConfig, engine: PolicyEngine, *, response_length: int, last_step: int) -> PrefixSource:
    """The source that `soup.source` names."""
    if soup.source == "lookahead":
        return LookaheadSource(engine, ages=soup.lookahead.ages, last_step=last_step, warm_start=soup.warm_start)
    if soup.source == "replay":
        return ReplaySource(engine, soup.replay, response_length=response_length, seed=soup.seed, last_step=last_step)
    assert soup.source == "snapshot", soup.source
    return SnapshotSource(
        engine,
        soup.snapshot,
        seed=soup.seed,
        last_step=last_step,
        target_kl=soup.kl_control.target_kl,
        heads_first=soup.position != "prefix",
        warm_start=soup.warm_start,
    )


__all__ = [
    "CollapseWatch",
    "GroupPrefixes",
    "LookaheadSource",
    "NoiseWatch",
    "PendingPrefixes",
    "PolicyEngine",
    "PolicyResponse",
    "Prefix",
    "PrefixSource",
    "PromptPlan",
    "ReplaySource",
    "SnapshotSource",
    "build_source",
]
