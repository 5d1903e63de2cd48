"""Every file of examples/ablations and examples/neighbors in one real run: the same processes, a new setting every few
steps.

The configurations are composed as on the command line and written to `sweep.json` in the run's folder. Between steps
the trainer takes up the next one: the `soup` and `algorithm` sections and the actor's loss settings. What a running
stack cannot change (dynamic sampling, the model, the number of responses) is refused, so that nothing is passed over
in silence; such a file needs a run of its own.
"""

import json
from functools import partial
from pathlib import Path

import ray
from omegaconf import OmegaConf
from verl.single_controller.base.decorator import Dispatch, register
from verl.trainer.ppo.v1 import register_trainer
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.losses import ppo_loss

from soup_verl.actor_worker import SegmentLoss
from soup_verl.config import SoupConfig
from soup_verl.cpu.training import CpuSoupActorWorker, CpuSoupTrainer
from soup_verl.mixing import SolvedRates
from soup_verl.run_rules import check_run
from tests.e2e.examples import STEPS, differences
from tests.e2e.probe import Probe

CHANGEABLE = (
    "soup.",
    "algorithm.adv_estimator",
    "algorithm.norm_adv_by_std_in_grpo",
    "actor_rollout_ref.actor.",
    "critic.loss_agg_mode",  # repeats the actor's; there is no critic
)


class SweepActorWorker(CpuSoupActorWorker):
    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def adopt_loss_settings(self, actor):
        config = omega_conf_to_dataclass(OmegaConf.create(actor))
        config.model_config = self.loss_fn.keywords["config"].model_config
        self.actor.set_loss_fn(SegmentLoss(partial(ppo_loss, config=config)))


@register_trainer("sweep_soup_cpu")
class SweepTrainer(Probe, CpuSoupTrainer):
    def _init_resource_pool_mgr(self):
        super()._init_resource_pool_mgr()
        for role, worker in self.role_worker_mapping.items():
            if issubclass(worker.__ray_metadata__.modified_class, CpuSoupActorWorker):
                self.role_worker_mapping[role] = ray.remote(SweepActorWorker)

    def on_train_begin(self):
        super().on_train_begin()
        folder = Path(self.config.trainer.default_local_dir)
        self._sweep = json.loads((folder / "sweep.json").read_text())

    def on_step_begin(self):
        super().on_step_begin()
        index, within = divmod(self.global_steps - 1, STEPS)
        if within == 0:
            self._adopt(**self._sweep["examples"][index])

    def _adopt(self, name, config):
        changed = differences(config, self._sweep["base"])
        fixed = [k for k in changed if not k.startswith(CHANGEABLE)]
        assert not fixed, f"{name} changes {fixed}: it needs a run of its own"
        for version in getattr(self._source, "_kept", []):
            self._engine.drop_policy(version)
        for section in ("soup", "algorithm"):
            self.config[section] = OmegaConf.create(config[section])
        self._soup = SoupConfig.parse(config["soup"])
        check_run(self._soup, config)
        self._solved = SolvedRates(self._soup.when)
        self._planner = self._build_planner(self.total_training_steps)
        self._source = None
        if self._soup.mixing:
            self._build_history(self.total_training_steps)
            self._engine.fetched_step = self.global_steps - 1
        self.actor_rollout_wg.adopt_loss_settings(config["actor_rollout_ref"]["actor"])
