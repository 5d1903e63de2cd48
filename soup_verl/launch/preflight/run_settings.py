"""The settings of a run that preflight computes with, under short names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from soup_verl.launch.preflight import sizing
from soup_verl.method.config import SoupConfig
from soup_verl.method.mixing import mixed_sessions
from soup_verl.records.settings import value_at

_ELEMENT_BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2, "auto": 2, "half": 2}
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
REF, MODEL = "actor_rollout_ref.ref", "actor_rollout_ref.model"


@dataclass(frozen=True)
class RunSettings:
    """A resolved configuration as plain mappings, and its `soup:` section."""

    plain: Mapping[str, Any]
    soup: SoupConfig

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> RunSettings:
        return cls(plain, SoupConfig.parse(plain.get("soup") or {}))

    def get(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path; `default` where there is none or null."""
        return value_at(self.plain, path, default)

    @property
    def on_cpu(self) -> bool:
        return self.get("trainer.device") == "cpu"

    @property
    def gpus_per_node(self) -> int:
        return self.get("trainer.n_gpus_per_node", 1)

    @property
    def nodes(self) -> int:
        return self.get("trainer.nnodes", 1)

    @property
    def world_size(self) -> int:
        """GPUs, or ranks on a CPU."""
        return self.gpus_per_node * self.nodes

    @property
    def has_two_pools(self) -> bool:
        """Whether rollout engines have GPUs of their own."""
        return "separate_async" in self.get("trainer.v1.trainer_mode", "")

    @property
    def rolls_out_apart(self) -> bool:
        """Whether rollout engines have GPUs of their own, and none of the trainer's."""
        return self.has_two_pools and not self.get("actor_rollout_ref.hybrid_engine", True)

    @property
    def rollout_pool(self) -> str:
        """The section whose `n_gpus_per_node` and `nnodes` are those that replicas of the rollout engine share."""
        return ROLLOUT if self.rolls_out_apart else "trainer"

    @property
    def rollout_gpus(self) -> int:
        return self.get(f"{self.rollout_pool}.n_gpus_per_node", 1) * self.get(f"{self.rollout_pool}.nnodes", 1)

    @property
    def n(self) -> int:
        return self.get(f"{ROLLOUT}.n", 1)

    @property
    def trained(self) -> int:
        """Responses of a prompt that are trained on."""
        return self.soup.down_sampling.train_on or self.n

    @property
    def prompts(self) -> int:
        """Prompts a step."""
        return self.get("data.train_batch_size", 1)

    @property
    def mini_batch(self) -> int:
        """Prompts a mini-batch."""
        return self.get(f"{ACTOR}.ppo_mini_batch_size", 1)

    @property
    def prompt_length(self) -> int:
        return self.get(f"{ROLLOUT}.prompt_length", 0)

    @property
    def response_length(self) -> int:
        return self.get(f"{ROLLOUT}.response_length", 0)

    @property
    def sequence(self) -> int:
        """Tokens of the longest prompt with the longest response."""
        return self.prompt_length + self.response_length

    @property
    def tensor_parallel(self) -> int:
        return self.get(f"{ROLLOUT}.tensor_model_parallel_size", 1)

    @property
    def replica(self) -> int:
        """GPUs of one replica of the rollout engine."""
        others = ("data_parallel_size", "pipeline_model_parallel_size")
        return self.tensor_parallel * self.get(f"{ROLLOUT}.{others[0]}", 1) * self.get(f"{ROLLOUT}.{others[1]}", 1)

    @property
    def sequence_parallel(self) -> int:
        """GPUs that share one sequence in training."""
        return self.get(f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size", 0) or self.get(
            f"{ACTOR}.ulysses_sequence_parallel_size", 1
        )

    @property
    def data_parallel(self) -> int:
        """Parts that a mini-batch is cut into."""
        return max(1, self.world_size // self.sequence_parallel)

    @property
    def shards(self) -> int:
        return sizing.shards(world_size=self.world_size, fsdp_size=self.get(f"{ACTOR}.fsdp_config.fsdp_size", -1))

    @property
    def actor_bytes(self) -> int:
        """Bytes of a parameter as the trainer keeps it."""
        return _ELEMENT_BYTES.get(self.get(f"{ACTOR}.fsdp_config.model_dtype", "fp32"), 4)

    @property
    def compute_bytes(self) -> int:
        """Bytes of an element in forward and backward."""
        kept = self.get(f"{ACTOR}.fsdp_config.mixed_precision.param_dtype", "bf16")
        return _ELEMENT_BYTES.get(kept, 2)

    @property
    def rollout_bytes(self) -> int:
        """Bytes of an element in the rollout engine."""
        return _ELEMENT_BYTES.get(self.get(f"{ROLLOUT}.dtype", "bfloat16"), 2)

    @property
    def serving_bytes(self) -> int:
        """Bytes of a weight of the kept policy that serves (`kept_weights.holding`)."""
        fsdp2 = self.get("actor_rollout_ref.actor.strategy") == "fsdp2"
        return self.rollout_bytes if fsdp2 and self.rollout_bytes == self.compute_bytes else self.actor_bytes

    @property
    def uses_reference(self) -> bool:
        return bool(self.get(f"{ACTOR}.use_kl_loss") or self.get("algorithm.use_kl_in_reward"))

    @cached_property
    def mixed(self) -> int:
        """Mixed responses a prompt, at the step that has most."""
        soup = self.soup
        return len(mixed_sessions(n=self.n, mixed_fraction=max(soup.mixed_fraction, _final(soup))))

    @property
    def longest_prefix(self) -> int:
        """Tokens."""
        _, longest = self.soup.prefix_length.longest(self.response_length)
        return int(longest * self.response_length) if self.soup.prefix_length.unit == "share" else int(longest)

    @property
    def training_tokens(self) -> int:
        """Tokens that one GPU has in one micro-batch at most."""
        if self.get(f"{ACTOR}.use_dynamic_bsz", False):
            return self.get(f"{ACTOR}.ppo_max_token_len_per_gpu", 0)
        micro = self.get(f"{ACTOR}.ppo_micro_batch_size_per_gpu") or self.get(f"{ACTOR}.ppo_micro_batch_size", 1)
        return -(-micro * self.sequence // self.sequence_parallel)

    @property
    def uses_snapshots(self) -> bool:
        return self.soup.mixing and self.soup.source == "snapshot"

    @property
    def unlearns(self) -> bool:
        return self.soup.mixing and self.soup.source == "forget"

    @property
    def uses_replay(self) -> bool:
        return self.soup.mixing and self.soup.source == "replay"


def _final(soup: SoupConfig) -> float:
    return soup.mixed_fraction_schedule.final or 0
