import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import SequentialSampler
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler

from soup_verl.stack.prompt_stream import ReadAheadLoader


def data_loader(*, size=7, batch_size=2, drop_last=True, shuffle=True):
    """As verl builds it (`PPOTrainer._init_dataloader`, `create_rl_sampler`)."""
    data = list(range(size))
    sampler = SequentialSampler(data)
    if shuffle:
        sampler = RandomSampler(data, generator=torch.Generator().manual_seed(3))
    return StatefulDataLoader(data, batch_size, sampler=sampler, drop_last=drop_last, collate_fn=list)


def verl_stream(loader):
    """Batches as `PPOTrainer._fetch_one_gen_batch` takes them."""
    iterator = None
    while True:
        try:
            if iterator is None:
                iterator = iter(loader)
            batch = next(iterator)
        except StopIteration:
            iterator = iter(loader)
            batch = next(iterator)
        yield batch


def take(stream, count):
    return list(itertools.islice(stream, count))


def resumed(state, **shape):
    loader = data_loader(**shape)
    loader.load_state_dict(state)
    return verl_stream(loader)


shapes = st.fixed_dictionaries(
    {
        "size": st.integers(3, 9),
        "batch_size": st.integers(1, 3),
        "drop_last": st.booleans(),
        "shuffle": st.booleans(),
    }
)
peeks = st.lists(st.integers(0, 8), min_size=12, max_size=12)


@given(shapes, peeks)
def test_peeking_never_changes_the_batches_or_the_state(shape, peeks):
    expected = take(verl_stream(data_loader(**shape)), 40)
    plain_loader = data_loader(**shape)
    plain, ours = verl_stream(plain_loader), ReadAheadLoader(data_loader(**shape))
    for i, ahead in enumerate(peeks):
        assert next(ours) == next(plain) == expected[i]
        assert ours.peek(0, ahead) == expected[i + 1 : i + 1 + ahead]
        rest = expected[i + 1 : i + 6]
        assert take(resumed(ours.state_dict(), **shape), 5) == rest
        assert take(resumed(plain_loader.state_dict(), **shape), 5) == rest


@given(shapes, st.integers(1, 10), st.integers(0, 6))
def test_a_resumed_loader_reads_ahead_from_where_it_was_saved(shape, handed_out, ahead):
    expected = take(verl_stream(data_loader(**shape)), 30)
    first = ReadAheadLoader(data_loader(**shape))
    take(first, handed_out)
    first.peek(0, ahead)

    second = ReadAheadLoader(data_loader(**shape))
    second.load_state_dict(first.state_dict())
    assert second.peek(0, ahead) == expected[handed_out : handed_out + ahead]
    # saved again before anything was handed out: still the same place
    assert take(resumed(second.state_dict(), **shape), 4) == expected[handed_out : handed_out + 4]
    assert take(second, 4) == expected[handed_out : handed_out + 4]


def test_the_state_at_an_epochs_end_begins_the_next_epoch():
    shape = {"size": 4, "batch_size": 2, "drop_last": True, "shuffle": True}
    ours = ReadAheadLoader(data_loader(**shape))
    expected = take(verl_stream(data_loader(**shape)), 6)
    take(ours, 2)  # the whole first epoch
    ours.peek(0, 3)
    assert take(resumed(ours.state_dict(), **shape), 4) == expected[2:]


def test_loading_a_state_forgets_what_was_read_ahead():
    loader = ReadAheadLoader(data_loader(shuffle=False))
    first = next(loader)
    state = loader.state_dict()
    second = next(loader)
    loader.peek(0, 2)
    loader.load_state_dict(state)
    assert first != second and next(loader) == second


class ListLoader:
    """A loader over batches 0..size-1 whose state is how many it has handed out in this epoch."""

    def __init__(self, size):
        self.size, self.position, self.epochs = size, 0, 0

    def __iter__(self):
        self.epochs += 1
        self.position %= self.size
        while self.position < self.size:
            self.position += 1
            yield self.position - 1

    def __len__(self):
        return self.size

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def test_peek_is_relative_to_the_next_batch_and_may_start_anywhere():
    loader = ReadAheadLoader(ListLoader(5))
    assert take(loader, 2) == [0, 1]
    assert loader.peek(1, 3) == [3, 4]
    assert loader.peek(4, 6) == [1, 2]  # into the next epoch
    assert loader.peek(2, 2) == []
    assert take(loader, 4) == [2, 3, 4, 0]


def test_the_state_follows_what_was_handed_out_not_what_was_read():
    loader = ReadAheadLoader(ListLoader(5))
    next(loader)
    loader.peek(0, 3)
    assert loader.state_dict() == {"position": 1}
    next(loader)
    assert loader.state_dict() == {"position": 2}


def test_nothing_is_read_before_it_is_asked_for():
    inner = ListLoader(3)
    loader = ReadAheadLoader(inner)
    assert inner.epochs == 0 and loader.state_dict() == {"position": 0}
    take(loader, 3)
    assert inner.epochs == 1


def test_length_is_batches_an_epoch_and_iterating_never_ends():
    loader = ReadAheadLoader(ListLoader(3))
    assert len(loader) == 3 and iter(loader) is loader
    assert take(loader, 7) == [0, 1, 2, 0, 1, 2, 0]


def test_a_state_asked_for_too_early_is_refused_rather_than_wrong():
    loader = ReadAheadLoader(ListLoader(3))
    loader.peek(0, 1)
    with pytest.raises(AssertionError, match="read ahead"):
        loader.state_dict()
