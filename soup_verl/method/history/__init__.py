"""Sources of historical prefixes: one module a source, one interface (`base.PrefixSource`)."""

from soup_verl.method.config import SoupConfig
from soup_verl.method.history.balance import PassRateControl
from soup_verl.method.history.base import PendingPrefixes, PolicyEngine, PrefixSource
from soup_verl.method.history.forget import ForgetSource
from soup_verl.method.history.kl_control import CollapseWatch, NoiseWatch
from soup_verl.method.history.lookahead import LookaheadSource
from soup_verl.method.history.ordinals import PromptBlocks
from soup_verl.method.history.prefixes import GroupPrefixes, PolicyResponse, Prefix, PromptPlan
from soup_verl.method.history.replay import ReplaySource
from soup_verl.method.history.snapshot import SnapshotSource


def build_source(soup: SoupConfig, engine: PolicyEngine, *, response_length: int, last_step: int) -> PrefixSource:
    """The source that `soup.source` names."""
    if soup.source == "lookahead":
        return LookaheadSource(engine, ages=soup.lookahead.ages, last_step=last_step, warm_start=soup.warm_start)
    if soup.source == "replay":
        low, high = soup.prefix_length.bounds(response_length)
        control = PassRateControl(soup.replay.target_pass_rate, low=low, high=high)
        return ReplaySource(
            engine,
            soup.replay,
            response_length=response_length,
            seed=soup.seed,
            control=control if soup.replay.choice == "balanced" else None,
        )
    if soup.source == "forget":
        return ForgetSource(engine, soup.forget, last_step=last_step)
    assert soup.source == "snapshot", soup.source
    return SnapshotSource(
        engine,
        soup.snapshot,
        seed=soup.seed,
        last_step=last_step,
        target_kl=soup.kl_control.target_kl,
        heads_first=soup.position in ("middle", "suffix"),
        keep_first=soup.position == "whole",
        warm_start=soup.warm_start,
    )


__all__ = [
    "CollapseWatch",
    "ForgetSource",
    "GroupPrefixes",
    "LookaheadSource",
    "NoiseWatch",
    "PassRateControl",
    "PendingPrefixes",
    "PolicyEngine",
    "PolicyResponse",
    "Prefix",
    "PrefixSource",
    "PromptBlocks",
    "PromptPlan",
    "ReplaySource",
    "SnapshotSource",
    "build_source",
]
