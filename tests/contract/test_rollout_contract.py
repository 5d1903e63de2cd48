"""What soup_verl/stack/rollout.py and soup_verl/stack/cpu/vllm_extension.py lean on in verl and vLLM."""

import ast
import asyncio
import importlib.util
import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import NonTensorStack
from verl.experimental.agent_loop import AgentLoopWorker
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput, _agent_loop_registry
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1 import AgentLoopManagerTQ
from verl.utils import tensordict_utils as tu
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from soup_verl.launch import watch
from soup_verl.stack import rollout
from soup_verl.stack.cpu import vllm_extension
from soup_verl.stack.prefix_sampler import PRIORITY
from soup_verl.stack.rollout import SoupAgentLoopManager, SoupAgentLoopWorker
from soup_verl.stack.session import MixedOutput, SessionClient
from tests.contract.verl_trainer import agent_loop_worker, run_of
from tests.unit import preflight_files as files

pytestmark = pytest.mark.contract


def own_functions(ours, verls):
    return {n for n, v in vars(ours).items() if n in dir(verls) and not hasattr(object, n) and inspect.isfunction(v)}


@pytest.mark.parametrize(
    ("ours", "verls", "names"),
    [
        (
            SoupAgentLoopWorker,
            AgentLoopWorker,
            {"generate_sequences", "_run_agent_loop", "_agent_loop_postprocess", "_compute_score"},
        ),
        (SoupAgentLoopManager, AgentLoopManagerTQ, set()),
        (MixedOutput, AgentLoopOutput, {"as_dict"}),
        (SessionClient, LLMServerClient, {"generate"}),
    ],
)
def test_we_override_these_methods_of_verl_and_no_other_by_accident(ours, verls, names):
    assert own_functions(ours, verls) == names


def test_our_agent_loop_is_verls_single_turn_loop():
    assert _agent_loop_registry["soup_agent"] == _agent_loop_registry["single_turn_agent"]


# ---- worker ----


def test_the_transfer_queue_worker_has_the_methods_we_borrow():
    worker = rollout._WorkerTQ
    inspect.signature(worker.generate_sequences).bind(None, batch={})
    inspect.signature(worker._run_prompt).bind(None, {}, {}, trajectory={}, trace=False)
    inspect.signature(worker._agent_loop_postprocess).bind(None, "output", False, uid="u", session_id=0)
    assert {"generate_sequences", "_run_prompt", "_agent_loop_postprocess"} <= set(vars(worker))


def test_the_transfer_queue_workers_constructor_does_what_ours_repeats(monkeypatch):
    """Ours cannot call it: beside verl's own constructor it opens the queue and has one set of tasks."""
    opened = []
    monkeypatch.setattr(inspect.getmodule(rollout._WorkerTQ), "tq", SimpleNamespace(init=lambda: opened.append(1)))
    worker = agent_loop_worker(monkeypatch, config := run_of(), rollout._WorkerTQ)
    before = set(vars(worker))
    rollout._WorkerTQ.__init__(worker, config, llm_client="client")
    assert opened == [1] and set(vars(worker)) - before == {"background_tasks"} and worker.background_tasks == set()


class Queue:
    """The transfer queue of a worker: what was put there."""

    def __init__(self):
        self.put = []

    async def async_kv_put(self, **what):
        self.put.append(what)

    async_kv_batch_put = async_kv_put


@pytest.fixture
def queue(monkeypatch):
    made = Queue()
    monkeypatch.setattr(inspect.getmodule(rollout._WorkerTQ), "tq", made)
    return made


def worker_with(**methods):
    """A worker of the transfer queue that knows the recipe's settings, with these methods in place of its own."""
    worker = rollout._WorkerTQ.__new__(rollout._WorkerTQ)
    worker.config, worker.background_tasks = files.configure("actor_rollout_ref.rollout.n=2"), set()
    for name, method in methods.items():
        setattr(worker, name, method)
    return worker


def sessions_of(batch):
    """What the agent loops of a batch's prompts are given."""
    given = []

    async def run_agent_loop(sampling_params, *, trajectory, **kwargs):
        given.append(kwargs | {"validate": trajectory["validate"]})

    async def run(worker):
        await worker.generate_sequences(batch)
        await asyncio.gather(*worker.background_tasks)

    asyncio.run(run(worker_with(_run_agent_loop=run_agent_loop)))
    return given


def prompts(**more):
    return tu.get_tensordict({"index": torch.tensor([5, 6]), "uid": ["a", "b"]}, {"global_steps": 3} | more)


def test_a_session_gets_its_number_and_every_field_of_its_prompt(queue):
    batch = prompts()
    batch["prefixes"] = NonTensorStack(*({"of": name} for name in "ab"))
    given = sessions_of(batch)
    assert [(s["uid"], s["session_id"], s["index"].item()) for s in given] == [
        ("a", 0, 5),
        ("a", 1, 5),
        ("b", 0, 6),
        ("b", 1, 6),
    ]
    assert [s["prefixes"] for s in given] == [{"of": "a"}] * 2 + [{"of": "b"}] * 2  # an object, as it was put in
    assert {s["agent_name"] for s in given} == {"soup_agent"} and not any(s["validate"] for s in given)


def test_a_rows_own_agent_loop_goes_first_and_a_validation_is_marked(queue):
    batch = prompts(validate=True)
    batch["agent_name"] = NonTensorStack("tool_agent", None)
    given = sessions_of(batch)
    assert [s["agent_name"] for s in given] == ["tool_agent", None]  # one session each: rollout.val_kwargs.n
    assert all(s["validate"] for s in given)


def test_a_column_of_the_data_chooses_the_agent_loop_and_files_without_it_leave_null(tmp_path):
    """What preflight refuses; `SoupAgentLoopWorker` refuses the rest."""
    from verl.utils.dataset.rl_dataset import RLHFDataset

    one = files.write_rows(tmp_path / "one.parquet", [files.row() | {"agent_name": "tool_agent"}])
    other = files.write_rows(tmp_path / "other.parquet", [files.row()])
    config = OmegaConf.create({"prompt_key": "prompt", "filter_overlong_prompts": False, "cache_dir": str(tmp_path)})
    data = RLHFDataset([str(one), str(other)], files.byte_tokenizer(), config)
    assert [row["agent_name"] for row in data] == ["tool_agent", None]


def output_of(**more):
    fields = {"prompt_ids": [1, 2], "response_ids": [7, 8], "response_mask": [1, 1], "metrics": AgentLoopMetrics()}
    return AgentLoopOutput(**fields | more)


def test_the_worker_stores_every_keyword_and_asks_the_output_for_its_fields(queue):
    scored = []

    async def score(outputs, *, kwargs):
        scored.append((outputs, kwargs["row"]))
        outputs[-1].reward_score = 0.5

    async def nothing(*_, **__):
        pass

    worker = worker_with(
        _compute_score=score,
        _compute_teacher_logprobs=nothing,
        _compute_multi_modal_inputs=lambda output, ids: {},
        _compute_position_ids=lambda ids, mask, inputs: torch.arange(ids.shape[1]).unsqueeze(0),
    )
    versions = {"min_global_steps": 3, "max_global_steps": 4}
    output = output_of(response_logprobs=[-1.0, -2.0], extra_fields=versions)
    asyncio.run(worker._agent_loop_postprocess(output, False, uid="u", session_id=1, row=9, global_steps=3))
    assert scored == [([output], 9)]
    (put,) = queue.put
    assert put["keys"] == ["u_1_0"] and put["partition_id"] == "train"  # batch.counted_rows takes the key apart
    (tag,) = put["tags"]
    assert {name: tag[name] for name in versions} == versions
    row = put["fields"][0]
    assert row["row"] == 9 and row["loss_mask"].tolist() == row["response_mask"].tolist() == [1, 1]
    assert row["rm_scores"].tolist() == [0, 0.5] and row["rollout_log_probs"].tolist() == [-1, -2]


def test_the_worker_has_what_the_prompt_builder_needs(monkeypatch):
    worker = agent_loop_worker(monkeypatch, config := run_of())
    assert worker.config is config and worker.llm_client == "client"
    assert (worker.tokenizer, worker.processor, worker.hf_model_type) == ("tokenizer", None, "qwen2")
    assert worker.model_config.tokenizer == "tokenizer" and callable(worker.dataset_cls)


def run_single_turn(output, **given):
    """verl's agent loop with a prompt of the tokens 1, 2 and a response length of 3; its output, and the requests."""
    requests = []

    async def generate(**request):
        requests.append(request)
        return output

    async def tokens(messages, **_):
        return [1, 2]

    async def no_media(messages):
        return {}

    async def merge(prompt_ids, ids, mask, log_probs, *, assistant_logprobs):
        return SimpleNamespace(token_ids=[*prompt_ids, *ids]), [1] * len(ids), assistant_logprobs

    loop = SingleTurnAgentLoop.__new__(SingleTurnAgentLoop)
    loop.rollout_config, loop.response_length = SimpleNamespace(full_determinism=False), 3
    loop.server_manager = SimpleNamespace(generate=generate)
    loop.process_multi_modal_info, loop.ct_build_initial_tokens, loop.ct_merge_assistant_token = no_media, tokens, merge
    loop._get_mm_processor_kwargs = loop._assert_mm_supported = loop.build_sglang_video_payload = lambda *_: None
    return asyncio.run(loop.run({"temperature": 0.7}, raw_prompt=[{"role": "user"}], **given)), requests


def test_the_single_turn_loop_generates_once_and_cuts_at_the_response_length():
    """From an output that has no more than those have that `SessionClient` gives without asking the engine."""
    token_output = TokenOutput(
        token_ids=[5, 6, 7, 8], log_probs=[-1.0] * 4, stop_reason="completed", extra_fields={"a": 1}
    )
    output, (request,) = run_single_turn(token_output)
    assert (output.prompt_ids, output.response_ids, output.response_mask) == ([1, 2], [5, 6, 7], [1, 1, 1])
    assert output.response_logprobs == [-1.0] * 3 and output.extra_fields["a"] == 1
    assert request["prompt_ids"] == [1, 2] and request["sampling_params"] == {"temperature": 0.7}
    assert request["request_id"] and request["priority"] == 0


# ---- client and manager ----


def test_the_client_takes_what_we_pass_and_ours_takes_what_verl_passes():
    for generate in (LLMServerClient.generate, SessionClient.generate):
        inspect.signature(generate).bind(None, "r", prompt_ids=[], sampling_params={})
        inspect.signature(generate).bind(
            None, request_id="r", prompt_ids=[], sampling_params={}, image_data=0, priority=0
        )
    assert {"token_ids", "log_probs", "extra_fields", "stop_reason"} <= set(TokenOutput.model_fields)


def ask_client(engine, **given):
    """What reaches the rollout server when verl's client is asked to generate, and what the client answers."""
    requests = []

    async def generate(**request):
        requests.append(request)
        return TokenOutput(token_ids=[1], log_probs=[-1.0], extra_fields={"global_steps": 6})

    class Client(LLMServerClient):
        async def _acquire_server(self, request_id, **extra):
            return "server", SimpleNamespace(generate=SimpleNamespace(remote=generate))

        def _release_server(self, server_id, request_id=None):
            pass

    client = Client(OmegaConf.create({"actor_rollout_ref": {"rollout": {"name": engine, "full_determinism": False}}}))
    output = asyncio.run(client.generate("r", prompt_ids=[1], sampling_params={}, **given))
    return requests[0], output


def test_a_requests_priority_reaches_vllm_and_no_engine_that_has_none():
    request, _ = ask_client("vllm", priority=PRIORITY)
    assert request["priority"] == PRIORITY
    for engine, given in (("sglang", {"priority": PRIORITY}), ("vllm", {})):
        request, _ = ask_client(engine, **given)
        assert "priority" not in request


def test_the_steps_own_responses_have_a_lower_number_than_prefixes():
    """The number of a response is 0 unless its row has another."""
    one = TokenOutput(token_ids=[5], log_probs=[-1.0])
    priorities = [run_single_turn(one, **given)[1][0]["priority"] for given in ({}, {"priority": 4})]
    assert priorities == [0, 4] and PRIORITY > 0
    _, server = functions_of("verl.workers.rollout.vllm_rollout.vllm_async_server")
    assert '"scheduling_policy": self.config.scheduling_policy,' in server.read_text()


def test_verls_client_adds_the_versions_that_ours_gives_itself():
    """To the one that the engine says."""
    _, output = ask_client("vllm")
    assert output.extra_fields == {"global_steps": 6, "min_global_steps": 6, "max_global_steps": 6}


def test_the_engine_says_which_version_sampled():
    package = Path(inspect.getfile(vLLMColocateWorkerExtension)).parent
    assert 'extra_fields = {"global_steps": self.global_steps}' in (package / "vllm_async_server.py").read_text()


def test_an_output_has_the_fields_we_read_and_drops_unset_ones():
    names = {"prompt_ids", "response_ids", "response_mask", "response_logprobs", "reward_score", "extra_fields"}
    assert names <= set(AgentLoopOutput.model_fields)
    assert set(output_of().as_dict()) == {"prompts", "responses", "response_mask", "metrics", "extra_fields"}


def test_the_manager_builds_the_worker_class_we_set_and_keeps_its_workers(monkeypatch):
    node = {"NodeID": "0" * 56, "Alive": True, "Resources": {"CPU": 1}}
    monkeypatch.setattr("ray.nodes", lambda: [node])
    config = run_of()
    config.actor_rollout_ref.rollout.agent.num_workers = 2
    manager = SoupAgentLoopManager(config, "client")
    made = SimpleNamespace(remote=lambda config, llm_client, *_: (config, llm_client))
    manager.agent_loop_workers_class = SimpleNamespace(options=lambda **_: made)
    asyncio.run(manager._init_agent_loop_workers())
    assert manager.agent_loop_workers == [(config, "client")] * 2


# ---- vLLM on a CPU ----


def functions_of(path):
    module = importlib.util.find_spec(path.split(".")[0])
    file = Path(module.submodule_search_locations[0], *path.split(".")[1:]).with_suffix(".py")
    return {n.name: n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.FunctionDef)}, file


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_has_the_function_that_the_cpu_extension_replaces_and_looks_it_up_late():
    """Read, not imported: importing vLLM takes long."""
    functions, _ = functions_of("vllm.model_executor.layers.utils")
    names = [a.arg for a in functions["dispatch_cpu_unquantized_gemm"].args.args]
    assert names == ["layer", "remove_weight"]
    assert names == list(inspect.signature(vllm_extension._linear_that_keeps_its_weight).parameters)
    for caller in ("linear", "vocab_parallel_embedding"):
        _, file = functions_of(f"vllm.model_executor.layers.{caller}")
        lines = [ln for ln in file.read_text().splitlines() if "import dispatch_cpu_unquantized_gemm" in ln]
        assert lines and all(line.startswith("    ") for line in lines), "imported at module level: our patch is late"


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_verls_server_holds_an_engine_that_says_when_it_is_lost():
    _, server = functions_of("verl.workers.rollout.vllm_rollout.vllm_async_server")
    assert f"class {watch.SERVER}:" in server.read_text() and "self.engine = engine_client" in server.read_text()
    functions, file = functions_of("vllm.v1.engine.async_llm")
    assert [d.id for d in functions["errored"].decorator_list] == ["property"]
    assert "engine_dead" in ast.get_source_segment(file.read_text(), functions["errored"])


def test_the_worker_extension_is_made_with_keywords_before_the_model_is_loaded():
    assert list(inspect.signature(vLLMColocateWorkerExtension.__new__).parameters) == ["cls", "kwargs"]
