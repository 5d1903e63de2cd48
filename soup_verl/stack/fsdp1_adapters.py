"""LoRA under FSDP1. peft 0.21 looks for adapters by their modules' names, which have FSDP1's wrappers in them, among
the keys of a state dict, which have not: it finds none, verl hands the rollout engine none, and both wait for ever."""

from __future__ import annotations

from typing import Any

from peft.tuners import tuners_utils

_WRAPPER = "_fsdp_wrapped_module."


def find_adapters() -> None:
    """Patch peft's `_get_tuner_state_dict_key_prefixes` in this process: names without the wrappers."""
    with_wrappers = tuners_utils._get_tuner_state_dict_key_prefixes

    def prefixes(*args: Any, **kwargs: Any) -> set[str]:
        return {prefix.replace(_WRAPPER, "") for prefix in with_wrappers(*args, **kwargs)}

    tuners_utils._get_tuner_state_dict_key_prefixes = prefixes
