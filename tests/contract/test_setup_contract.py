"""How verl sets a trainer up, and what it does with prompts and checkpoints."""

from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from omegaconf import OmegaConf
from tensordict import NonTensorStack, TensorDict
from verl.checkpoint_engine import CheckpointEngineManager
from verl.trainer import main_ppo
from verl.trainer.ppo.v1 import PPOTrainerSync, replay_buffer, trainer_base
from verl.workers.engine_workers import ActorRolloutRefWorker

from soup_verl.stack.prompt_stream import ReadAheadLoader
from soup_verl.stack.trainer import SoupTrainer
from tests.contract import verl_trainer
from tests.contract.verl_trainer import recording, run_of

pytestmark = pytest.mark.contract

BARE_TASK_RUNNER = main_ppo.TaskRunnerV1.__ray_metadata__.modified_class.__ray_actor_class__


# ---- set up ----


def test_loaders_are_made_before_the_workers_and_the_checkpoint_is_read_last(monkeypatch):
    trainer = verl_trainer.new(run_of())
    events = verl_trainer.set_up(monkeypatch, trainer)
    workers = ["create_resource_pool", "init_model", "sleep_replicas"]
    assert events == ["_init_tokenizer", "_init_dataloader", *workers, "_load_checkpoint"]
    for name in ("actor_rollout_wg", "checkpoint_manager"):
        assert getattr(trainer, name) is not None
    assert trainer.replay_buffer.poll_interval > 0  # from the constructor
    (worker,) = trainer.role_worker_mapping.values()
    assert worker.__ray_metadata__.modified_class.__ray_actor_class__ is ActorRolloutRefWorker


def test_our_worker_takes_the_actors_place_and_reward_workers_are_to_tell_of_exits(monkeypatch):
    told = []
    monkeypatch.setattr("soup_verl.stack.trainer.tell_exits", told.append)
    trainer = verl_trainer.new(run_of(), SoupTrainer)
    verl_trainer.set_up(monkeypatch, trainer)
    assert told == [trainer.reward_loop_manager]
    (worker,) = trainer.role_worker_mapping.values()
    assert worker.__ray_metadata__.modified_class.__ray_actor_class__.__name__ == "SoupActorWorker"


def test_a_checkpoint_manager_syncs_to_a_version_and_sleeps(monkeypatch):
    """With the backend that verl's set-up names: the version reaches the workers, and every replica sleeps."""
    seen = []

    async def sleep():
        seen.append("sleep")

    monkeypatch.setattr(ray, "get", lambda refs: refs)
    workers = SimpleNamespace(update_weights=lambda global_steps, mode: seen.append((global_steps, mode)))
    config = SimpleNamespace(backend="naive", custom_backend_module=None)
    manager = CheckpointEngineManager(config, workers, [SimpleNamespace(sleep=sleep)] * 2)
    manager.update_weights(3)
    manager.sleep_replicas()
    assert seen == [(3, "naive"), "sleep", "sleep"]


def test_the_task_runner_runs_the_registered_trainer_and_what_takes_its_place(monkeypatch):
    """As a series does: `init_agent_loop_manager` may leave another trainer to fit, whose logger is finished."""
    import transfer_queue as tq

    events = []

    class Trainer:
        def __init__(self, config):
            events.append("constructed")

        def init(self):
            events.append("init")

    manager = object()
    other = SimpleNamespace(
        fit=lambda given: events.append(("fit", given is manager)),
        logger=SimpleNamespace(finish=lambda exit_code: events.append(("finish", exit_code))),
    )

    class Runner(BARE_TASK_RUNNER):
        def init_agent_loop_manager(self):
            assert isinstance(self.trainer, Trainer)
            self.agent_loop_manager, self.trainer = manager, other

    asked = []
    monkeypatch.setattr("verl.trainer.ppo.v1.get_trainer_cls", lambda name: asked.append(name) or Trainer)
    monkeypatch.setattr(tq, "init", lambda _: None)
    monkeypatch.setattr(tq, "close", lambda: events.append("closed"))
    Runner().run(run_of())
    assert asked == ["soup"]
    assert events == ["constructed", "init", ("fit", True), ("finish", 0), "closed"]


def test_the_task_runner_makes_the_manager_that_the_settings_name(monkeypatch):
    made = {}
    monkeypatch.setattr(
        "soup_verl.stack.rollout.SoupAgentLoopManager.create", lambda **given: made.update(given) or "manager"
    )
    runner = BARE_TASK_RUNNER()
    runner.config = run_of()
    clients = {f"get_{name}": lambda name=name: name for name in ("llm_client", "teacher_client", "reward_handles")}
    runner.trainer = SimpleNamespace(**clients)
    runner.init_agent_loop_manager()
    assert runner.agent_loop_manager == "manager" and made["llm_client"] == "llm_client"


def test_verl_starts_the_task_runner_it_is_given(monkeypatch):
    ran = []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get", lambda ref: ref)
    runner = SimpleNamespace(run=SimpleNamespace(remote=ran.append))
    config = run_of()
    main_ppo.run_ppo(config, task_runner_class=SimpleNamespace(remote=lambda: runner))
    assert ran == [config]


# ---- `sync`, by which verl tells its own trainer from others ----


def trainer_in(mode, **more):
    """Our trainers are called `soup` and `soup_cpu`, and tell verl `sync` for what these tests show."""
    trainer = recording([], run_of(**more))
    trainer.trainer_mode, trainer.use_critic = mode, False
    return trainer


class Queue:
    """Notes what is asked of it; it is empty."""

    def __init__(self):
        self.asked = []

    def __getattr__(self, name):
        return lambda *_, **given: self.asked.append((name, sorted(given)))


@pytest.fixture
def queue(monkeypatch):
    made = Queue()
    monkeypatch.setattr(trainer_base, "tq", made)
    return made


def test_the_constructor_reads_the_mode_from_the_key_we_set():
    for name, trainer_class in (("sync", PPOTrainerSync), ("soup", SoupTrainer)):
        config = run_of()
        config.trainer.v1.trainer_mode = name
        assert trainer_class(config).trainer_mode == "sync"


def test_only_sync_has_the_buffer_that_waits_for_whole_batches():
    for mode, kind in (("sync", replay_buffer.ReplayBuffer), ("soup", trainer_base.ReplayBufferAsync)):
        assert type(trainer_in(mode)._build_replay_buffer()) is kind


def test_ours_looks_more_often_whether_a_batch_is_there():
    assert verl_trainer.new(run_of(), PPOTrainerSync)._build_replay_buffer().poll_interval == 2.0
    trainer = verl_trainer.new(run_of(), SoupTrainer)
    trainer._blocks = None
    assert trainer._build_replay_buffer().poll_interval == 0.5


@pytest.mark.parametrize(("mode", "asked"), [("sync", []), ("soup", [("kv_list", [])])])
def test_only_sync_issues_no_prompt_again(queue, mode, asked):
    assert trainer_in(mode)._reissue_inflight_prompts() == 0
    assert queue.asked == asked


@pytest.mark.parametrize("mode", ["sync", "soup"])
def test_only_sync_leaves_prompts_out_of_the_queue(queue, mode):
    trainer, batch = trainer_in(mode), TensorDict({"uid": NonTensorStack("a", "b")}, batch_size=2)
    trainer.agent_loop_manager = SimpleNamespace(generate_sequences=lambda given: queue.asked.append(given is batch))
    assert trainer._submit_batch_to_rollout(batch) == 2
    put, generated = queue.asked
    assert put == ("kv_batch_put", [*(["fields"] if mode != "sync" else []), "keys", "partition_id", "tags"])
    assert generated is True


@pytest.mark.parametrize(("mode", "fetched"), [("sync", 2), ("soup", 1)])
def test_only_sync_fetches_whole_batches(monkeypatch, mode, fetched):
    monkeypatch.setattr(trainer_base, "create_rl_dataset", lambda *_, **__: [{"x": i} for i in range(6)])
    trainer = trainer_in(mode)
    trainer.config.data.train_batch_size, trainer.config.data.dataloader_num_workers = 2, 0
    trainer.tokenizer = trainer.processor = None
    trainer.parameter_sync_step = 1
    trainer._init_dataloader()
    assert trainer.train_dataloader.batch_size == fetched
    assert (trainer.steps_per_epoch, trainer.total_training_steps) == (3, 3)


# ---- prompts ----


class Prompts:
    """Three batches of two prompts an epoch."""

    def __iter__(self):
        return iter({"raw_prompt": np.array([f"{i}a", f"{i}b"], dtype=object)} for i in range(3))

    def __len__(self):
        return 3

    def state_dict(self):
        return {}


def trainer_with(loader, **data):
    trainer = PPOTrainerSync.__new__(PPOTrainerSync)
    trainer.config = OmegaConf.create({"data": {"train_batch_size": 2, **data}})
    trainer.train_dataloader, trainer.train_dataloader_it, trainer.global_steps = loader, None, 7
    return trainer


def raw_prompts(batch):
    return [item.data if hasattr(item, "data") else item for item in batch["raw_prompt"]]


@pytest.mark.parametrize("loader", [Prompts, lambda: ReadAheadLoader(Prompts())], ids=["verl's", "ours"])
def test_verl_takes_batches_from_either_loader_epoch_after_epoch(loader):
    trainer = trainer_with(loader())
    batches = [trainer._next_train_batch(None) for _ in range(5)]
    assert [raw_prompts(b)[0] for b in batches] == ["0a", "1a", "2a", "0a", "1a"]
    assert batches[0]["global_steps"] == 7
    assert len({uid for b in batches for uid in b["uid"]}) == 10


def test_verl_joins_as_many_fetches_as_a_batch_needs():
    trainer = trainer_with(ReadAheadLoader(Prompts()), train_batch_size=4, gen_batch_size=2)
    assert raw_prompts(trainer._next_train_batch()) == ["0a", "0b", "1a", "1b"]
    trainer._fetch_one_gen_batch = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer._next_train_batch()


# ---- checkpoints ----


class Loader:
    """All that verl asks of a loader beside iterating over it."""

    def __init__(self):
        self.loaded = None

    def state_dict(self):
        return {"at": 5}

    def load_state_dict(self, state):
        self.loaded = state


def saving(mode, folder):
    trainer, saved = trainer_in(mode, default_local_dir=folder), []
    trainer.global_steps, trainer.train_dataloader = 7, Loader()
    trainer.actor_rollout_wg = SimpleNamespace(save_checkpoint=lambda path, *_, **__: saved.append(path))
    trainer.checkpoint_callback = SimpleNamespace(on_save=lambda **_: None)
    return trainer, saved


@pytest.mark.parametrize("mode", ["sync", "soup"])
def test_verls_checkpoint_files_are_where_we_look(queue, tmp_path, mode):
    trainer, saved = saving(mode, tmp_path)
    trainer._save_checkpoint()
    assert saved == [str(tmp_path / "global_step_7" / "actor")]
    assert torch.load(tmp_path / "global_step_7" / "data.pt", weights_only=True) == {"at": 5}
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "7"
    assert [name for name, _ in queue.asked] == ([] if mode == "sync" else ["save_checkpoint"])


@pytest.mark.parametrize("mode", ["sync", "soup"])
def test_verl_resumes_from_exactly_the_path_it_is_given(queue, monkeypatch, tmp_path, mode):
    (tmp_path / "global_step_7" / "transfer_queue").mkdir(parents=True)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("9")
    torch.save({"at": 5}, tmp_path / "global_step_7" / "data.pt")
    trainer, loaded = trainer_in(mode, resume_mode="resume_path", resume_from_path=tmp_path / "global_step_7"), []
    trainer.train_dataloader = Loader()
    trainer.actor_rollout_wg = SimpleNamespace(load_checkpoint=lambda local_path, **_: loaded.append(local_path))
    monkeypatch.setattr(trainer_base, "_count_tq_prompt_groups", lambda: 0)
    trainer._load_checkpoint()
    assert loaded == [str(tmp_path / "global_step_7" / "actor")]
    assert trainer.global_steps == 7 and trainer.train_dataloader.loaded == {"at": 5}
    assert [name for name, _ in queue.asked] == ([] if mode == "sync" else ["load_checkpoint"])


def test_or_not_at_all():
    trainer = trainer_in("sync", resume_mode="disable")
    trainer._load_checkpoint()
    assert trainer.global_steps == 0
