"""What verl's vLLM server makes of a request (`vLLMHttpServer.generate`), for engines that only tests have."""

from verl.utils.tokenizer import normalize_token_ids


def tokens_allowed(prompt_ids, sampling_params, *, prompt_length, response_length):
    """Most tokens of the answer, where the model's context is that of the run: prompt and response together.

    Raises:
        ValueError: the context has no room for a single one.
        AssertionError: two limits, of which the server hands vLLM one that it does not know; or one below 1, which
            the server would take for 1: the answer would be longer than was asked.
    """
    room = prompt_length + response_length - len(normalize_token_ids(prompt_ids))
    if room < 1:
        raise ValueError(f"Prompt length ({len(prompt_ids)}) leaves no room to generate")
    limits = [sampling_params[name] for name in ("max_tokens", "max_new_tokens") if name in sampling_params]
    assert len(limits) < 2, limits
    limit = limits[0] if limits else response_length
    assert limit >= 1, f"a request for {limit} tokens"
    return min(limit, room)
