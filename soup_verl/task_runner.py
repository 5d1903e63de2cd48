"""verl's task runner, with our trainers registered before it looks one up."""

from __future__ import annotations

from omegaconf import DictConfig
from verl.trainer.main_ppo import TaskRunnerV1

_TaskRunner = TaskRunnerV1.__ray_metadata__.modified_class.__ray_actor_class__


class SoupTaskRunner(_TaskRunner):
    def run(self, config: DictConfig) -> None:
        """Register `soup` (and on a CPU `soup_cpu`, `sync_cpu`), then run."""
        import soup_verl.trainer  # noqa: F401

        if config.trainer.device == "cpu":
            import soup_verl.cpu.training  # noqa: F401
        super().run(config)
