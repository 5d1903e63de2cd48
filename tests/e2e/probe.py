"""The real trainer with one eye more: after every step it writes what the step trained on to a file, and at every stage
which one it is. There it waits while a test wants to do something to it.

Imported in the task runner through SOUP_IMPORT; chosen by `trainer.v1.trainer_mode`.
"""

import time
from contextlib import suppress
from pathlib import Path

import torch
import transfer_queue as tq
from verl.trainer.ppo.v1 import register_trainer

from soup_verl.stack.batch import items, sort_rows
from soup_verl.stack.cpu.training import (
    CpuColocateAsyncTrainer,
    CpuSeparateAsyncTrainer,
    CpuSoupColocateAsyncTrainer,
    CpuSoupSeparateAsyncTrainer,
    CpuSoupTrainer,
    CpuSyncTrainer,
)
from soup_verl.stack.rollout import GROUP_PREFIXES, ORDINAL
from soup_verl.tasks.data.row_index import index_text

FIELDS = [
    "uid",
    "index",
    "prompts",
    "responses",
    "response_mask",
    "prefix_mask",
    "policy_version",
    "token_versions",
    "rollout_log_probs",
    "old_log_probs",
    "advantages",
    "rm_scores",
]


class Stages:
    """Mixin: the file `stage` in the run's folder says where the run is, as `STEP STAGE`.

    While there is a file `hold` with `STEP STAGE`, the run stays where it enters this stage in this step or a later
    one, and says `STEP STAGE held`: a stage of milliseconds is not missed by who looks ten times a second.
    """

    def _enter(self, stage):
        folder = Path(self.config.trainer.default_local_dir)
        (folder / "stage").write_text(f"{self.global_steps} {stage}")
        hold = folder / "hold"
        with suppress(FileNotFoundError):
            step, held = hold.read_text().split()
            if held == stage and self.global_steps >= int(step):
                (folder / "stage").write_text(f"{self.global_steps} {stage} held")
                while hold.exists():
                    time.sleep(0.02)

    def _submit_batch_to_rollout(self, batch):
        submitted = super()._submit_batch_to_rollout(batch)
        self._enter("rollout")
        return submitted

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
    """Mixin: `steps/step_N.pt` in the run's folder, a list of rows sorted by (index, session); under dynamic sampling
    with it the prompts that the step took, in their order: (ordinal, index, prefixes or None). `step_N_before.pt` is of
    an earlier start that had made the step, too."""

    recomputed = None
    taken = ()

    def _submit_batch_to_rollout(self, batch):
        if ORDINAL in batch:
            groups = items(batch[GROUP_PREFIXES]) if GROUP_PREFIXES in batch else [None] * len(batch)
            self.taken = (*self.taken, *zip(items(batch[ORDINAL]), items(batch["index"]), groups, strict=True))
        return super()._submit_batch_to_rollout(batch)

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
            uid, session = key.split("_")[:2]
            row = {"uid": uid, "session": int(session), "recomputed_log_probs": self.recomputed[i]}
            for name, column in columns.items():
                row[name] = (
                    column[i].clone() if isinstance(column[i], torch.Tensor) else getattr(column[i], "data", column[i])
                )
            rows.append(row)
        rows.sort(key=lambda r: (index_text(r["index"]).rjust(40), r["session"]))  # numbers by their size
        batch = super()._update_actor(batch, metrics)
        folder = Path(self.config.trainer.default_local_dir) / "steps"
        folder.mkdir(parents=True, exist_ok=True)
        stored_keys = len(tq.kv_list(batch.partition_id).get(batch.partition_id, {}))
        record = {"rows": rows, "metrics": dict(metrics), "stored": stored_keys, "taken": self.taken}
        self.taken = ()
        file = folder / f"step_{self.global_steps}.pt"
        if file.exists():
            file.rename(file.with_stem(f"{file.stem}_before"))
        torch.save(record, file)
        return batch


@register_trainer("probed_soup_cpu")
class ProbedSoupTrainer(Probe, CpuSoupTrainer):
    pass


@register_trainer("probed_soup_colocate_async_cpu")
class ProbedSoupColocateAsyncTrainer(Probe, CpuSoupColocateAsyncTrainer):
    pass


@register_trainer("probed_soup_separate_async_cpu")
class ProbedSoupSeparateAsyncTrainer(Probe, CpuSoupSeparateAsyncTrainer):
    pass


class OrderedRows:
    """Mixin: the order of verl's rows is that of their arrival, and sums depend on it."""

    def _submit_batch_to_rollout(self, batch):
        self._uids = items(batch["uid"])
        return super()._submit_batch_to_rollout(batch)

    def _balance_batch(self, batch, *args, **kwargs):
        sort_rows(batch, {uid: place for place, uid in enumerate(self._uids)})
        return super()._balance_batch(batch, *args, **kwargs)


@register_trainer("probed_sync_cpu")
class ProbedSyncTrainer(OrderedRows, Probe, CpuSyncTrainer):
    """verl's own."""


@register_trainer("probed_colocate_async_cpu")
class ProbedColocateAsyncTrainer(OrderedRows, Probe, CpuColocateAsyncTrainer):
    """verl's own."""


@register_trainer("probed_separate_async_cpu")
class ProbedSeparateAsyncTrainer(OrderedRows, Probe, CpuSeparateAsyncTrainer):
    """verl's own."""
