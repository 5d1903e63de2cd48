"""The real trainer with one eye more: after every step it writes what the step trained on to a file.

Imported in the task runner through SOUP_IMPORT; chosen by `trainer.v1.trainer_mode`.
"""

from pathlib import Path

import torch
import transfer_queue as tq
from verl.trainer.ppo.v1 import register_trainer

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


class Probe:
    """Mixin: `steps/step_N.pt` in the run's folder, a list of rows sorted by (index, session)."""

    recomputed = None

    def _balance_batch(self, batch, *args, **kwargs):
        """Rows in the order of the data set: verl's own order is that of arrival, and sums depend on it."""
        stored = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["index"])
        place = [
            (int(getattr(i, "data", i)), key.split("_")[1]) for i, key in zip(stored["index"], batch.keys, strict=True)
        ]
        batch.reorder(sorted(range(len(place)), key=place.__getitem__))
        return super()._balance_batch(batch, *args, **kwargs)

    def _compute_old_log_prob(self, batch, metrics):
        batch = super()._compute_old_log_prob(batch, metrics)
        stored = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["old_log_probs"])
        self.recomputed = [row.clone() for row in stored["old_log_probs"].unbind()]
        return batch

    def _update_actor(self, batch, metrics):
        stored = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=FIELDS)
        rows = []
        for i, key in enumerate(batch.keys):
            row = {"session": int(key.split("_")[1]), "recomputed_log_probs": self.recomputed[i]}
            for name in (field for field in FIELDS if field in stored):
                value = stored[name][i]
                row[name] = value.clone() if isinstance(value, torch.Tensor) else getattr(value, "data", value)
            row.pop("uid")
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
    pass
