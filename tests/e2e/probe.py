"""The real trainer with one eye more: after every step it writes what the step trained on to a file, and at every stage
which one it is.

Imported in the task runner through SOUP_IMPORT; chosen by `trainer.v1.trainer_mode`.
"""

from pathlib import Path

import torch
import transfer_queue as tq
from verl.trainer.ppo.v1 import register_trainer

from soup_verl.batch import items, sort_rows
from soup_verl.cpu.training import CpuSoupTrainer, CpuSyncTrainer

FIELDS = [
    "uid",
    "index",
    "prompts",
    "responses",
    "response_mask",
    "prefix_mask",
    "policy_version",
    "rollout_log_probs",
    "old_log_probs",
    "advantages",
    "rm_scores",
]


class Stages:
    """Mixin: the file `stage` in the run's folder says where the run is, as `STEP STAGE`."""

    def _enter(self, stage):
        (Path(self.config.trainer.default_local_dir) / "stage").write_text(f"{self.global_steps} {stage}")

    def _submit_batch_to_rollout(self, batch):
        self._enter("rollout")
        return super()._submit_batch_to_rollout(batch)

    def on_sample_end(self):
        self._enter("prefixes")
        super().on_sample_end()

    def _compute_old_log_prob(self, batch, metrics):
        self._enter("log_probs")
        return super()._compute_old_log_prob(batch, metrics)

    def _update_actor(self, batch, metrics):
        self._enter("update")
        return super()._update_actor(batch, metrics)

    def _save_checkpoint(self):
        self._enter("checkpoint")
        super()._save_checkpoint()

    def on_step_end(self):
        self._enter("weights")
        super().on_step_end()


class Probe(Stages):
    """Mixin: `steps/step_N.pt` in the run's folder, a list of rows sorted by (index, session)."""

    recomputed = None

    def _compute_old_log_prob(self, batch, metrics):
        batch = super()._compute_old_log_prob(batch, metrics)
        stored = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["old_log_probs"])
        self.recomputed = [row.clone() for row in stored["old_log_probs"].unbind()]
        return batch

    def _update_actor(self, batch, metrics):
        stored = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=FIELDS)
        # A nested tensor is taken apart once: a row at a time, it would be taken apart for every row.
        columns = {name: list(stored[name]) for name in FIELDS if name in stored and name != "uid"}
        rows = []
        for i, key in enumerate(batch.keys):
            row = {"session": int(key.split("_")[1]), "recomputed_log_probs": self.recomputed[i]}
            for name, column in columns.items():
                row[name] = (
                    column[i].clone() if isinstance(column[i], torch.Tensor) else getattr(column[i], "data", column[i])
                )
            rows.append(row)
        rows.sort(key=lambda r: (int(r["index"]), r["session"]))
        batch = super()._update_actor(batch, metrics)
        folder = Path(self.config.trainer.default_local_dir) / "steps"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"rows": rows, "metrics": dict(metrics)}, folder / f"step_{self.global_steps}.pt")
        return batch


@register_trainer("probed_soup_cpu")
class ProbedSoupTrainer(Probe, CpuSoupTrainer):
    pass


@register_trainer("probed_sync_cpu")
class ProbedSyncTrainer(Probe, CpuSyncTrainer):
    """verl's own, but for the order of its rows, which is that of their arrival, and sums depend on it."""

    def _submit_batch_to_rollout(self, batch):
        self._uids = items(batch["uid"])
        return super()._submit_batch_to_rollout(batch)

    def _balance_batch(self, batch, *args, **kwargs):
        sort_rows(batch, {uid: place for place, uid in enumerate(self._uids)})
        return super()._balance_batch(batch, *args, **kwargs)
