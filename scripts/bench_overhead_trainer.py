"""The trainer of `bench_overhead.py`: blocks of steps with and without mixing."""

from bench_overhead import is_soup_block
from verl.trainer.ppo.v1 import register_trainer

from soup_verl.method.mixing import MixingPlanner, PrefixRequest
from soup_verl.stack.cpu.training import CpuSoupTrainer


class AlternatingPlanner(MixingPlanner):
    """Plans nothing for the steps of GRPO's blocks."""

    def mixes(self, step: int) -> bool:
        return is_soup_block(step)

    def plan_prompt(self, *, step: int, place: int) -> tuple[PrefixRequest, ...]:
        return super().plan_prompt(step=step, place=place) if self.mixes(step) else ()


@register_trainer("alternating_soup_cpu")
class AlternatingSoupTrainer(CpuSoupTrainer):
    def _build_planner(self, last_step: int) -> MixingPlanner:
        return AlternatingPlanner(**vars(super()._build_planner(last_step)))
