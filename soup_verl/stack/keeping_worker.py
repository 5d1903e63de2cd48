"""verl's FSDP worker, which keeps policies: this rank's shards in host memory, sent to the rollout engine and scored
under without the actor's weights being touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn
from verl.single_controller.base.decorator import register as remote

from soup_verl.stack import fsdp1_adapters, kept_weights
from soup_verl.stack.kept_policies import KeptPolicies


class KeepingActorWorker(DetachActorWorker):
    """One FSDP rank and its kept policies."""

    _held: int | None = None

    @remote(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        if self._trains_adapters and self.config.actor.strategy == "fsdp":
            fsdp1_adapters.find_adapters()
        super().init_model()
        self.cpu_saved_models: dict[Any, dict[str, torch.Tensor]] = {}
        self._kept = KeptPolicies()

    @property
    def _trains_adapters(self) -> bool:
        return self.config.model.get("lora_rank", 0) > 0

    @remote(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_model_to_cpu(self, n: Any) -> None:
        """As verl's, and right for every strategy: a real copy also of shards in host memory, none still on its way.
        What it replaces goes first, so that host memory never holds both."""
        self.cpu_saved_models.pop(n, None)
        self.cpu_saved_models[n] = kept_weights.keep(self.actor.engine.module)

    @remote(dispatch_mode=Dispatch.ONE_TO_ALL)
    def restore_model_from_cpu(self, n: Any) -> None:
        """As verl's, and the next forward pass uses these weights: verl leaves FSDP1's gathered copy as it was."""
        kept_weights.take_back(self.actor.engine.module, self.cpu_saved_models[n])

    @remote(dispatch_mode=Dispatch.ONE_TO_ALL)
    def keep_policy(self, version: int) -> None:
        self._kept.keep(version, self._shards())

    @remote(dispatch_mode=Dispatch.ONE_TO_ALL)
    def drop_policy(self, version: int) -> None:
        self._kept.drop(version)

    @remote(dispatch_mode=Dispatch.ONE_TO_ALL)
    def kept_bytes(self) -> int:
        """Host memory of this rank's kept policies."""
        return self._kept.bytes

    @remote(dispatch_mode=Dispatch.ONE_TO_ALL)
    def hold_policy(self, version: int | None) -> None:
        """Until the next call the rollout engine is sent this kept policy, and log-probs are its own. None: those of
        the actor's weights, which are untouched all the while."""
        self._held = version

    def _shards(self) -> dict[str, torch.Tensor]:
        """Copies in the rollout engine's dtype, to which it would round them; adapters, which may be merged, as are."""
        engine_dtype = getattr(torch, self.config.rollout.dtype, None)  # its names are torch's, but for `auto`
        return kept_weights.keep(self.actor.engine.module, None if self._trains_adapters else engine_dtype)

    def _holding(self) -> AbstractContextManager[None]:
        if self._held is None:
            return nullcontext()
        return kept_weights.holding(self.actor.engine.module, self._kept.weights(self._held))

    def _of_held(self, per_tensor_param: Callable[..., Any], **how: Any) -> tuple[Iterator[Any], Any]:
        """What verl's engine would hand the rollout engine if it had the held policy's weights, which it has until the
        last tensor is out."""
        with ExitStack() as stack:
            stack.enter_context(self._holding())
            tensors, peft_config = per_tensor_param(**how)
            until_sent = stack.pop_all()

        def sent() -> Iterator[Any]:
            with until_sent:
                yield from tensors

        return sent(), peft_config

    @remote(dispatch_mode=Dispatch.ONE_TO_ALL, blocking=False)
    async def update_weights(self, global_steps: int | None = None, mode: str = "auto") -> Any:
        """verl's, with the weights of the held policy."""
        engine = self.actor.engine
        if self._held is not None:
            engine.get_per_tensor_param = partial(self._of_held, engine.get_per_tensor_param)
        try:
            return await super().update_weights(global_steps=global_steps, mode=mode)
        finally:
            vars(engine).pop("get_per_tensor_param", None)

    @remote(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_log_prob(self, data: TensorDict) -> TensorDict | None:
        """verl's, with the weights of the held policy."""
        with self._holding():
            return super().compute_log_prob(data)

    @remote(dispatch_mode=Dispatch.ONE_TO_ALL)
    def write_kept_policies(self, folder: str, versions: list[int]) -> None:
        """One safetensors file a version and rank."""
        self._kept.write(partial(self._policy_file, folder), versions)

    @remote(dispatch_mode=Dispatch.ONE_TO_ALL)
    def read_kept_policies(self, folder: str, versions: list[int]) -> None:
        """Take up what `write_kept_policies` wrote with the same number of ranks.

        Raises:
            ValueError: names a file that is missing, torn or of another model.
        """
        self._kept.read(partial(self._policy_file, folder), versions, like=self._shards())

    def _policy_file(self, folder: str, version: int) -> Path:
        return Path(folder) / f"policy_{version}_rank_{self.rank}_of_{self.world_size}.safetensors"
