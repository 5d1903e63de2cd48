import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soup_verl.records import sample_log


def decode_bytes(ids):
    """A tokenizer whose tokens are single bytes: the hardest case for text."""
    return bytes(ids).decode("utf-8", errors="replace")


VOCABULARY = [b"a", b" the", "ü".encode(), "漢".encode()[:1], "漢".encode()[1:] + "🙂".encode()[:2], "🙂".encode()[2:]]


def decode_pieces(ids):
    """Tokens of several bytes; two of them hold the end of one character and the start of the next."""
    return b"".join(VOCABULARY[i] for i in ids).decode("utf-8", errors="replace")


def entry(**changes):
    values = {
        "step": 20,
        "sample": 0,
        "index": 7,
        "session": 3,
        "reward": 1.0,
        "policy_version": 16,
        "prompt_ids": list(b"2+2?"),
        "response_ids": list(b"4."),
        "response_mask": [1, 1],
        "prefix_mask": [1, 0],
        "behavior_log_probs": [math.log(0.25), math.log(0.5)],
        "current_log_probs": [math.log(0.5), math.log(0.5)],
        "decode": decode_bytes,
    }
    return sample_log.record(**values | changes)


# ---- which ----


@pytest.mark.parametrize(
    ("every", "count", "steps"),
    [(10, 5, [1, 10, 20]), (1, 1, list(range(1, 21))), (0, 5, []), (10, 0, [])],
)
def test_the_first_step_and_every_so_manieth(every, count, steps):
    assert [step for step in range(1, 21) if sample_log.due(step, every=every, count=count)] == steps


@pytest.mark.parametrize(
    ("mixed", "onpolicy", "count", "of_mixed", "of_onpolicy"),
    [
        (8, 8, 5, 3, 2),
        (8, 8, 4, 2, 2),
        (1, 8, 5, 1, 4),
        (8, 1, 5, 4, 1),
        (0, 8, 5, 0, 5),
        (8, 0, 5, 5, 0),
        (1, 1, 5, 1, 1),
    ],
)
def test_half_are_mixed_as_far_as_there_are_both(mixed, onpolicy, count, of_mixed, of_onpolicy):
    is_mixed = [True] * mixed + [False] * onpolicy
    rows = sample_log.choose(range(len(is_mixed)), is_mixed, numbers=range(count), seed=1)
    assert len(set(rows)) == len(rows)
    assert (sum(is_mixed[r] for r in rows), sum(not is_mixed[r] for r in rows)) == (of_mixed, of_onpolicy)


@given(count=st.integers(0, 20), parts=st.integers(1, 9))
def test_the_mini_batches_of_a_step_share_its_responses_and_half_of_all_are_mixed(count, parts):
    shares = [sample_log.numbers_of(part, parts, count=count) for part in range(parts)]
    assert [number for share in shares for number in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    is_mixed = [True, False] * 20
    mixed = [is_mixed[r] for share in shares for r in sample_log.choose(range(40), is_mixed, numbers=share, seed=1)]
    assert len(mixed) == count and sum(mixed) == (count + 1) // 2


def test_only_the_given_rows_and_others_with_another_seed():
    is_mixed = [True, False] * 50
    rows = range(0, 100, 3)
    chosen = [sample_log.choose(rows, is_mixed, numbers=range(5), seed=seed) for seed in (1, 1, 2)]
    assert set(chosen[0]) <= set(rows)
    assert chosen[0] == chosen[1] != chosen[2]


# ---- text ----


@given(st.text())
def test_joined_texts_are_the_text_whatever_bytes_a_character_has(text):
    texts = sample_log.token_texts(list(text.encode()), decode_bytes)
    assert len(texts) == len(text.encode())
    assert "".join(texts) == text


def test_a_character_of_several_tokens_is_given_to_its_last():
    assert sample_log.token_texts([0, 1, 2, 3, 4, 5], decode_pieces) == ["a", " the", "ü", "", "", "漢🙂"]


def test_half_a_character_at_the_end_is_not_lost():
    assert sample_log.token_texts([0, 3], decode_pieces) == ["a", "\ufffd"]


def test_bytes_that_are_no_text_do_not_pile_up():
    lengths = []

    def decode(ids):
        lengths.append(len(ids))
        return decode_bytes(ids)

    texts = sample_log.token_texts([0xFF] * 200 + [0x61], decode)
    assert "".join(texts).endswith("a") and max(lengths) < 40


def test_a_space_that_is_written_only_behind_another_token_is_kept():
    def decode(ids):
        return " ".join(["two", "words", "here"][i] for i in ids)

    assert sample_log.token_texts([0, 1, 2], decode) == ["two", " words", " here"]


# ---- a record ----


def test_the_ratio_is_current_over_behavior():
    found = entry()
    assert found["tokens"] == ["4", "."] and found["prompt"] == "2+2?"
    assert found["ratio"] == [pytest.approx(2.0, rel=1e-5), 1.0]
    assert (found["prefix_mask"], found["policy_version"], found["session"]) == ([1, 0], 16, 3)


def test_without_recomputed_log_probs_there_is_no_ratio():
    found = entry(current_log_probs=None)
    assert found["ratio"] == found["current_log_probs"] == [None, None]
    assert found["behavior_log_probs"][1] == pytest.approx(-0.693147)


def test_tokens_that_no_policy_sampled_and_numbers_that_are_none_have_no_ratio():
    found = entry(
        response_mask=[0, 1], current_log_probs=[math.nan, 800.0], behavior_log_probs=[1.0, -1.0], reward=math.nan
    )
    assert found["ratio"] == [None, None] and found["current_log_probs"] == [None, 800.0] and found["reward"] is None


def test_of_a_long_response_the_head_and_the_tail_are_kept(monkeypatch):
    monkeypatch.setattr(sample_log, "HEAD", 3)
    monkeypatch.setattr(sample_log, "TAIL", 2)
    found = entry(
        response_ids=list(b"abcdefgh"),
        response_mask=[1] * 8,
        prefix_mask=[1, 1, 1, 1, 0, 0, 0, 0],
        behavior_log_probs=[-float(i) for i in range(8)],
        current_log_probs=None,
    )
    assert found["tokens"] == list("abcgh") and found["prefix_mask"] == [1, 1, 1, 0, 0]
    assert found["behavior_log_probs"] == [0, -1, -2, -6, -7]
    assert (found["response_tokens"], found["left_out"]) == (8, {"after": 3, "tokens": 3})


# ---- the file ----


def test_records_come_back_by_step(tmp_path):
    sample_log.append(tmp_path / "new", [entry(step=1), entry(step=1, sample=1)])
    sample_log.append(tmp_path / "new", [entry(step=10, prompt_ids=list("…\u2028".encode()))])
    found = sample_log.read(tmp_path / "new")
    assert {step: [e["sample"] for e in entries] for step, entries in found.items()} == {1: [0, 1], 10: [0]}
    assert found[10][0]["prompt"] == "…\u2028"


def test_a_repeated_step_counts_as_written_last_and_half_a_line_is_passed_over(tmp_path):
    sample_log.append(tmp_path, [entry(sample=i) for i in range(3)])
    sample_log.append(tmp_path, [entry(sample=i, reward=0.5) for i in range(2)])
    line = json.dumps(entry(step=30), ensure_ascii=False)
    with (tmp_path / sample_log.FILE).open("a") as file:
        file.write(line[: len(line) // 2])
    assert {step: [e["reward"] for e in es] for step, es in sample_log.read(tmp_path).items()} == {20: [0.5, 0.5]}


def test_nothing_recorded(tmp_path):
    assert sample_log.read(tmp_path) == {}


def test_a_record_behind_half_a_line_is_not_lost(tmp_path):
    """As a killed process leaves it, and the resumed one goes on."""
    sample_log.append(tmp_path, [entry(step=10, sample=i) for i in range(2)])
    with (tmp_path / sample_log.FILE).open("a") as file:
        file.write('{"step": 20, "sam')
    sample_log.append(tmp_path, [entry(step=10, index=5)])
    assert [record["index"] for record in sample_log.read(tmp_path)[10]] == [5]
