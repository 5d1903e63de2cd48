"""All hostile programs, at least 200: each costs its limit and nothing else."""

import pytest

from tests.faults.hostile_programs import programs
from tests.faults.sandbox_under_fire import MUST_RUN, NEEDS_NAMESPACES, REFUSED, harmless, shoot


def test_the_tests_of_the_sandbox_are_not_skipped_where_they_must_run():
    """Else a machine that refuses namespaces passes every check and has tried no hostile program."""
    hint = "allow namespaces (docs/code_rewards.md says how), or set SOUP_SANDBOX_TESTS=optional to skip these tests"
    assert not (MUST_RUN and REFUSED), f"{REFUSED}; {hint}"


@NEEDS_NAMESPACES
@pytest.mark.e2e
def test_no_hostile_program_scores_harms_or_stays(tmp_path):
    with harmless(tmp_path) as world:
        corpus = list(programs(world))
        assert len(corpus) >= 200 and len({p.name for p in corpus}) == len(corpus)
        assert shoot(corpus) == []
