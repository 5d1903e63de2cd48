"""All hostile programs, at least 200: each costs its limit and nothing else."""

import pytest

from tests.faults.hostile_programs import programs
from tests.faults.sandbox_under_fire import NEEDS_NAMESPACES, harmless, shoot


@NEEDS_NAMESPACES
@pytest.mark.e2e
def test_no_hostile_program_scores_harms_or_stays(tmp_path):
    with harmless(tmp_path) as world:
        corpus = list(programs(world))
        assert len(corpus) >= 200 and len({p.name for p in corpus}) == len(corpus)
        assert shoot(corpus) == []
