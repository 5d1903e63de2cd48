"""Validation: verl's, with its failures explained, the unbiased pass@k, and the best checkpoint judged; mixed into the
trainers."""

from __future__ import annotations

import logging

from soup_verl.method.validation import is_solved, pass_at_k_metrics
from soup_verl.stack.failures import ExplainedFailures
from soup_verl.stack.history_checkpoints import HistoryCheckpoints

logger = logging.getLogger(__name__)


class ExplainedValidation(ExplainedFailures, HistoryCheckpoints):
    """Mixin: what a validation says besides verl's metrics."""

    def _validate(self) -> dict[str, float]:
        with self._failures_explained():
            metrics = super()._validate()
            self._raise_session_errors()
        if self._best:
            self._best.judge(metrics, self.global_steps)
        return metrics

    def _val_metrics_update(
        self,
        data_sources: list[str],
        sample_uids: list[str],
        reward_extra_infos_dict: dict[str, list],
        sample_turns: list[int],
        expected_acc_counts: dict[tuple[str, str], int] | None = None,
    ) -> dict[str, float]:
        """verl's metrics, and the unbiased pass@k: verl's `best@k` resamples with replacement and reads low."""
        metrics = super()._val_metrics_update(
            data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts
        )
        rewards = reward_extra_infos_dict["reward"]
        acc = reward_extra_infos_dict.get("acc", [None] * len(rewards))
        expected = sum((expected_acc_counts or {}).values())
        if len(rewards) < expected:
            logger.warning(
                "step %d: %d of %d validation responses are missing: val-soup/*/pass@k is of the prompts that have k",
                self.global_steps,
                expected - len(rewards),
                expected,
            )
        return metrics | pass_at_k_metrics(data_sources, sample_uids, list(map(is_solved, acc, rewards)))
