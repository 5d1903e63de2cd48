"""Training on some of a prompt's responses (`soup.down_sampling`), of which verl must not notice; mixed into the
trainers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import PPOTrainer

from soup_verl.method.config import SoupConfig
from soup_verl.method.down_sampling import trained_rows
from soup_verl.stack import batch as batches
from soup_verl.stack.batch import StoredBatch


class DownSampling(PPOTrainer):
    """Mixin: which rows of a batch are trained on; those that are not stay with the step to its end."""

    _soup: SoupConfig
    _place_of_uid: dict[str, int]
    """Where each prompt was in the batch that was submitted."""
    _sampled: tuple[KVBatchMeta, StoredBatch] | None = None
    """Every row of the step, where not all are trained on."""
    _dropped: KVBatchMeta | None = None
    """Those that are not."""

    def _down_sample(self, batch: KVBatchMeta, stored: StoredBatch) -> KVBatchMeta:
        """The rows that are trained on. The others stay in TransferQueue to the end of the step: metrics are of all.

        Args:
            batch, stored: every row, and what `batch.read` gave for them.
        """
        self._sampled = batch, stored
        sessions = batches.counted_rows(batch).nonzero().flatten().tolist()
        rows = trained_rows(
            stored.responses.rewards[sessions].tolist(),
            [self._place_of_uid[stored.responses.uids[row]] for row in sessions],
            train_on=self._soup.down_sampling.train_on,
            choice=self._soup.down_sampling.choice,
            seed=self._soup.seed,
            step=self.global_steps,
        )
        trained, self._dropped = batches.split_by_session(batch, [sessions[i] for i in rows])
        batches.leave_untrained(self._dropped)
        return trained

    @contextmanager
    def _trained_responses_as_n(self) -> Iterator[None]:
        """verl multiplies its mini-batches by `rollout.n`: those of the update have as many as are trained on."""
        rollout = self.config.actor_rollout_ref.rollout
        sampled, rollout.n = rollout.n, self._soup.down_sampling.train_on or rollout.n
        try:
            yield
        finally:
            rollout.n = sampled

    def _with_dropped(self, batch: KVBatchMeta) -> KVBatchMeta:
        """verl's metrics of the step, its file of responses and its clean-up are of every response."""
        if self._dropped is None:
            return batch
        keys, tags = [*batch.keys, *self._dropped.keys], [*batch.tags, *self._dropped.tags]
        return KVBatchMeta(partition_id=batch.partition_id, keys=keys, tags=tags)
