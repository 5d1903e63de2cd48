import pytest

from soup_verl.method.history import Prefix, PrefixSource


@pytest.mark.parametrize(("tokens", "log_probs"), [((), ()), ((1, 2), (-1.0,)), ((1,), (-1.0, -2.0))])
def test_a_prefix_has_tokens_and_a_log_prob_for_each(tokens, log_probs):
    with pytest.raises(AssertionError):
        Prefix(tokens, log_probs, 0)


@pytest.mark.parametrize(("head", "historical"), [(0, 3), (1, 2), (3, 0)])
def test_what_is_not_head_is_historical(head, historical):
    prefix = Prefix((5, 6, 7), (-1.0, -2.0, -3.0), 0, head=head)
    assert prefix.historical == historical and len(prefix) == 3


@pytest.mark.parametrize("head", [-1, 4])
def test_a_head_is_part_of_the_prefix(head):
    with pytest.raises(AssertionError):
        Prefix((5, 6, 7), (-1.0, -2.0, -3.0), 0, head=head)


def test_a_source_needs_no_more_than_prefixes_and_a_way_to_disk(tmp_path):
    class Least(PrefixSource):
        def prefixes(self, step):
            return None

        def save(self, folder):
            return

        def load(self, folder):
            return

    source = Least()
    source.before_first_step(1)
    source.after_submit(1)
    source.before_sleep()
    source.observe_responses([])
    source.observe_kl({}, collapsed=False)
    source.before_update(1)
    source.after_update(1)
    assert source.metrics() == {} and source.without_history(1) == []
    assert (source.wants_responses, source.decodes_prefixes) == (False, True)
