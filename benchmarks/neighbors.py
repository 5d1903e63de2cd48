"""The methods of `recipe/soup/config/neighbors` as settings of the search instrument, read from the recipe's own files.

A file has verl's names. `NAMES` says what the instrument calls each key, `ALIKE` which keys change nothing here, `SOUP`
which parts of the `soup:` section the instrument runs. A file with any other key, or with a value that cannot be had
here, is refused by that key: nothing is left out in silence.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from omegaconf import OmegaConf

from recipe.soup.list import CONFIG, header
from soup_verl.records.settings import flatten

FOLDER = CONFIG / "neighbors"
ACTOR = "actor_rollout_ref.actor"
OF_ACTOR = ("loss_mode", "clip_cov_ratio", "clip_cov_lb", "clip_cov_ub", "kl_cov_ratio", "ppo_kl_coef")
NAMES = {
    "algorithm.adv_estimator": "adv_estimator",
    "algorithm.norm_adv_by_std_in_grpo": "norm_by_std",
    f"{ACTOR}.optim.clip_grad": "grad_clip",
    **{f"{ACTOR}.clip_ratio_{edge}": f"loss.clip_ratio_{edge}" for edge in ("low", "high", "c")},
    **{f"{ACTOR}.{key}": f"loss.{key}" for key in ("entropy_coeff", "loss_agg_mode", "loss_scale_factor")},
    **{f"{ACTOR}.{key}": f"loss.actor.{key}" for key in ("tau_pos", "tau_neg")},
    **{f"{ACTOR}.policy_loss.{key}": f"loss.actor.policy_loss.{key}" for key in OF_ACTOR},
}
"""verl's key -> that of `run_inputs.RunSettings`; `loss.actor` is handed to verl's own losses."""
ALIKE: dict[str, tuple[Any, ...]] = {
    f"{ACTOR}.use_kl_loss": (False,),
    f"{ACTOR}.ppo_epochs": (1,),
    f"{ACTOR}.clip_ratio": (),  # what `clip_ratio_low` and `_high` fall back to, which verl's configuration sets
    "algorithm.rollout_correction.bypass_mode": (),  # one model samples and scores: both log-probs are the same
}
"""verl's key -> the values that the instrument has anyway; none: any."""
MINI_BATCH = f"{ACTOR}.ppo_mini_batch_size"
SOUP = (
    *("mixed_fraction", "mixed_fraction_schedule", "when", "start_at_solved_rate", "source", "warm_start", "position"),
    *("prefix_length", "lookahead", "snapshot", "replay", "forget", "kl_control", "behavior_log_probs"),
    *("prefix_objective", "decoupled_weight_cap", "shaped_gamma", "prefix_correction", "baseline"),
    *("down_sampling", "step_size", "policy_loss"),
)
WHY_NOT = {
    "algorithm.filter_groups": "a step's prompts are fixed before any of them is sampled, and none is replaced",
    "reward": "a reward is what the task's checker gives, with nothing taken off",
    "soup.source": "a step waits for all of its responses, so no update interrupts one",
    "actor_rollout_ref.hybrid_engine": "there is one pool of processors",
    "actor_rollout_ref.rollout": "there is no engine beside the trainer",
    "trainer": "there is one trainer, which waits for all responses of a step",
}
"""Key, or a section above it -> why the instrument cannot do that."""


class NotHere(ValueError):
    """A method that needs something which the search instrument lacks."""


def names() -> list[str]:
    """All files, whether they can be run here or not."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def title(name: str) -> str:
    """What the file's first line calls the method."""
    return header(FOLDER / f"{name}.yaml").partition(":")[0]


def read(name: str, *, response_length: int, prompts: int) -> dict[str, Any]:
    """The settings of a file by the instrument's dotted keys.

    Args:
        name: of the file, without its ending.
        response_length, prompts: `data.max_response_length` and `data.train_batch_size`, which a file may name.

    Raises:
        NotHere: it has a key or a value that the instrument cannot honour; the message begins with the key.
    """
    raw = OmegaConf.load(FOLDER / f"{name}.yaml")
    for key in flatten(OmegaConf.to_container(raw)):
        _require_known(key)
    data = {"data": {"max_response_length": response_length, "train_batch_size": prompts}}
    given = flatten(OmegaConf.to_container(OmegaConf.merge(data, raw), resolve=True))
    found = {key: value for key, value in given.items() if key.startswith("soup.")}
    for key, value in given.items():
        if key in NAMES:
            found[NAMES[key]] = value
        elif ALIKE.get(key) and value not in ALIKE[key]:
            raise NotHere(f"{key}={value!r}: not on the search instrument: expected {ALIKE[key][0]!r}")
        elif key == MINI_BATCH:
            found["mini_batches"] = _updates(value, prompts)
    if found.get("soup.source") == "inflight":
        raise NotHere(f"soup.source=inflight: not on the search instrument: {WHY_NOT['soup.source']}")
    if found.get("loss.actor.policy_loss.loss_mode") == "soup":  # `soup.policy_loss.name` says which
        del found["loss.actor.policy_loss.loss_mode"]
    return found


def _updates(mini_batch: Any, prompts: int) -> int:
    if not isinstance(mini_batch, int) or mini_batch < 1 or prompts % mini_batch:
        expected = f"expected a divisor of the {prompts} prompts of a step"
        raise NotHere(f"{MINI_BATCH}={mini_batch!r}: not on the search instrument: {expected}")
    return prompts // mini_batch


def _require_known(key: str) -> None:
    section, _, rest = key.partition(".")
    if section == "soup" and rest.partition(".")[0] in SOUP:
        return
    if key in NAMES or key in ALIKE or key == MINI_BATCH:
        return
    why = next(
        (reason for part, reason in WHY_NOT.items() if f"{key}.".startswith(f"{part}.")), "there is no such thing"
    )
    raise NotHere(f"{key}: not on the search instrument: {why}")


def refusal(name: str, *, prompts: int) -> str | None:
    """Why a file cannot be run here at so many prompts a step; None where it can, or where there is no such file."""
    if name not in names():
        return None
    try:
        read(name, response_length=1, prompts=prompts)
    except NotHere as error:
        return str(error)
    return None


def all_of(*, response_length: int, prompts: int) -> dict[str, dict[str, Any]]:
    """The settings of every file that can be run here, by name; of the others `refusal` has the reason."""
    found = {}
    for name in names():
        with suppress(NotHere):
            found[name] = read(name, response_length=response_length, prompts=prompts)
    return found
