"""The trainer of `bench_overhead.py`: blocks of steps with and without mixing."""

from bench_overhead import is_soup_block
from verl.trainer.ppo.v1 import register_trainer

from soup_verl.cpu.training import CpuSoupTrainer
from soup_verl.mixing import MixingPlanner, PrefixRequest


class AlternatingPlanner(MixingPlanner):
    """Plans nothing for the steps of GRPO's blocks."""

    def mixes(self, step: int) -> bool:
        return is_soup_block(step)

    def plan_prompt(self, *, step: int, position: int) -> tuple[PrefixRequest, ...]:
        return super().plan_prompt(step=step, position=position) if self.mixes(step) else ()


@register_trainer("alternating_soup_cpu")
class AlternatingSoupTrainer(CpuSoupTrainer):
    def _build_planner(self, last_step: int) -> MixingPlanner:
        return AlternatingPlanner(**vars(super()._build_planner(last_step)))
