"""SOUP on verl's `colocate_async`: rollout goes on while batches wait, and updates interrupt it (`inflight.py`)."""

from __future__ import annotations

from typing import Any

from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import PPOTrainerColocateAsync, register_trainer
from verl.workers.rollout.llm_server import LLMServerClient

from soup_verl.stack.inflight import RecordingClient
from soup_verl.stack.trainer import SoupStages


@register_trainer("soup_colocate_async")
class SoupColocateAsyncTrainer(SoupStages, PPOTrainerColocateAsync):
    """On verl's asynchronous trainer whose rollout and training share their devices."""

    def get_llm_client(self) -> LLMServerClient:
        return self.llm_server_manager.get_client(client_cls=RecordingClient)

    def _balance_batch(self, batch: KVBatchMeta, *args: Any, **kwargs: Any) -> KVBatchMeta:
        """Prompts that were submitted in this step and before; others are under way. Those that verl took up from a
        checkpoint come first, in the order it gives them."""
        here = dict.fromkeys(key.split("_")[0] for key in batch.keys)
        under_way = {uid: place for uid, place in self._place_of_uid.items() if uid not in here}
        in_order = [
            *(uid for uid in here if uid not in self._place_of_uid),
            *(u for u in self._place_of_uid if u in here),
        ]
        self._place_of_uid = {uid: place for place, uid in enumerate(in_order)}
        batch = super()._balance_batch(batch, *args, **kwargs)
        self._place_of_uid = under_way
        return batch
