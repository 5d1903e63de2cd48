"""verl's synchronous trainer and its agent loop worker, with stand-ins for what needs processes or a model; what the
trainer does is noted in its order."""

from types import SimpleNamespace

from verl.experimental.agent_loop import AgentLoopWorker, agent_loop
from verl.trainer.ppo.v1 import PPOTrainerSync, trainer_base

from tests.unit import preflight_files as files


def run_of(**settings):
    """The recipe's settings of a short run; `settings` are those of `trainer`."""
    settings = {"total_training_steps": 3, "total_epochs": 9, "test_freq": 2, "save_freq": 2} | settings
    return files.configure("actor_rollout_ref.rollout.n=4", **{f"trainer__{k}": v for k, v in settings.items()})


def noting(trainer, events, name, answer):
    """A function that answers, and notes in `events` its name and the trainer's step."""
    return lambda *_, **__: events.append((name, trainer.global_steps)) or answer


def recording(events, config, **answers):
    """verl's synchronous trainer with functions that answer so, and note it, in place of its own methods."""
    trainer = PPOTrainerSync.__new__(PPOTrainerSync)
    trainer.config, trainer.global_steps = config, 0
    for name, answer in answers.items():
        setattr(trainer, name, noting(trainer, events, name, answer))
    return trainer


def new(config, trainer_class=PPOTrainerSync):
    """A trainer, constructed and not set up."""
    config.trainer.v1.trainer_mode = "sync"
    return trainer_class(config)


class _Noted:
    """Has every method that it is asked for; a call is noted."""

    def __init__(self, events):
        self._events = events

    def __getattr__(self, name):
        return lambda *_, **__: self._events.append(name)


STOOD_IN_FOR = ("_init_tokenizer", "_init_dataloader", "_load_checkpoint")


def set_up(monkeypatch, trainer):
    """Run verl's `_setup`; what it starts is stood in for. The names of what it called, in order."""
    events: list[str] = []
    workers, pool = _Noted(events), object()
    pools = SimpleNamespace(
        create_resource_pool=lambda: events.append("create_resource_pool"),
        resource_pool_dict={"global_pool": pool},
        get_resource_pool=lambda role: pool,
    )
    for name, stand_in in {
        "ResourcePoolManager": lambda **_: pools,
        "RayClassWithInitArgs": lambda **given: given,
        "create_colocated_worker_cls": lambda class_dict: class_dict,
        "RayWorkerGroup": lambda **given: SimpleNamespace(spawn=lambda prefix_set: dict.fromkeys(prefix_set, workers)),
        "RewardLoopManager": lambda **_: object(),
        "LLMServerManager": SimpleNamespace(create=lambda **_: SimpleNamespace(get_replicas=list)),
        "CheckpointEngineManager": lambda **_: _Noted(events),
    }.items():
        monkeypatch.setattr(trainer_base, name, stand_in)
    for name in STOOD_IN_FOR:
        setattr(trainer, name, lambda name=name: events.append(name))
    trainer._setup()
    return events


def agent_loop_worker(monkeypatch, config, worker_class=AgentLoopWorker):
    """A worker made by verl's constructor, with a tokenizer and no model."""
    model = SimpleNamespace(tokenizer="tokenizer", processor=None, hf_config=SimpleNamespace(model_type="qwen2"))
    model.get = lambda name, default=None: default
    real = agent_loop.omega_conf_to_dataclass
    monkeypatch.setattr(
        agent_loop, "omega_conf_to_dataclass", lambda c: model if c == config.actor_rollout_ref.model else real(c)
    )
    worker = worker_class.__new__(worker_class)
    AgentLoopWorker.__init__(worker, config, llm_client="client")
    return worker
