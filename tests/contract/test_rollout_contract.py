"""What soup_verl/rollout.py and soup_verl/cpu/vllm_extension.py lean on in verl and vLLM."""

import ast
import asyncio
import importlib.util
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from verl.experimental.agent_loop import AgentLoopWorker
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, _agent_loop_registry, get_trajectory_info
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1 import AgentLoopManagerTQ
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from soup_verl import rollout, watch
from soup_verl.cpu import vllm_extension
from soup_verl.prefix_sampler import PRIORITY
from soup_verl.rollout import ContinuingClient, SoupAgentLoop, SoupAgentLoopManager, SoupAgentLoopWorker
from tests.unit import preflight_files as files

pytestmark = pytest.mark.contract


def own_functions(ours, verls):
    return {n for n, v in vars(ours).items() if n in dir(verls) and not hasattr(object, n) and inspect.isfunction(v)}


@pytest.mark.parametrize(
    ("ours", "verls", "names"),
    [
        (SoupAgentLoop, SingleTurnAgentLoop, {"run"}),
        (
            SoupAgentLoopWorker,
            AgentLoopWorker,
            {"generate_sequences", "_run_agent_loop", "_agent_loop_postprocess", "_compute_score"},
        ),
        (SoupAgentLoopManager, AgentLoopManagerTQ, set()),
        (rollout.MixedOutput, AgentLoopOutput, {"as_dict"}),
        (ContinuingClient, LLMServerClient, {"generate"}),
    ],
)
def test_we_override_these_methods_of_verl_and_no_other_by_accident(ours, verls, names):
    assert own_functions(ours, verls) == names


def test_the_agent_loop_is_registered():
    assert _agent_loop_registry["soup_agent"]["_target_"] == "soup_verl.rollout.SoupAgentLoop"


# ---- worker ----


def test_the_transfer_queue_worker_has_the_methods_we_borrow():
    worker = rollout._WorkerTQ
    inspect.signature(worker.generate_sequences).bind(None, batch={})
    inspect.signature(worker._run_prompt).bind(None, {}, {}, trajectory={}, trace=False)
    inspect.signature(worker._agent_loop_postprocess).bind(None, "output", False, uid="u", session_id=0)
    assert {"generate_sequences", "_run_prompt", "_agent_loop_postprocess"} <= set(vars(worker))


def test_the_transfer_queue_workers_constructor_does_what_ours_repeats():
    lines = [line.strip() for line in inspect.getsource(rollout._WorkerTQ.__init__).splitlines()[1:] if line.strip()]
    assert lines == ["super().__init__(*args, **kwargs)", "tq.init()", "self.background_tasks = set()"]


def test_a_session_gets_its_number_and_every_field_of_its_prompt():
    source = inspect.getsource(rollout._WorkerTQ._run_prompt)
    assert "session_id=i, **prompt" in source
    assert "agent_loop.run(sampling_params, **kwargs)" in inspect.getsource(AgentLoopWorker._run_agent_loop)


def test_a_column_of_the_data_chooses_the_agent_loop_and_files_without_it_leave_null(tmp_path):
    """What preflight refuses; `SoupAgentLoopWorker` refuses the rest."""
    from verl.utils.dataset.rl_dataset import RLHFDataset

    one = files.write_rows(tmp_path / "one.parquet", [files.row() | {"agent_name": "tool_agent"}])
    other = files.write_rows(tmp_path / "other.parquet", [files.row()])
    config = OmegaConf.create({"prompt_key": "prompt", "filter_overlong_prompts": False, "cache_dir": str(tmp_path)})
    data = RLHFDataset([str(one), str(other)], files.byte_tokenizer(), config)
    assert [row["agent_name"] for row in data] == ["tool_agent", None]
    assert 'if "agent_name" not in batch:' in inspect.getsource(rollout._WorkerTQ.generate_sequences)
    assert '"validate": validate' in inspect.getsource(get_trajectory_info)


def test_an_object_field_reaches_the_session_as_it_was_put_in():
    assert "elif isinstance(v, NonTensorStack):\n                    prompt[k] = v[i].data" in inspect.getsource(
        rollout._WorkerTQ.generate_sequences
    )


def test_the_worker_stores_every_keyword_and_asks_the_output_for_its_fields():
    source = inspect.getsource(rollout._WorkerTQ._agent_loop_postprocess)
    for text in ("await self._compute_score(outputs, kwargs=kwargs)", "output.as_dict()", "field.update(kwargs)"):
        assert text in source
    assert 'f"{uid}_{session_id}_{i}"' in source  # batch.counted_rows takes the key apart
    assert 'field["loss_mask"] = field["response_mask"]' in source


@pytest.mark.parametrize(
    "attribute", ["config", "llm_client", "model_config", "tokenizer", "processor", "dataset_cls", "hf_model_type"]
)
def test_the_worker_has_what_the_prompt_builder_needs(attribute):
    source = inspect.getsource(AgentLoopWorker.__init__)
    assert f"self.{attribute} = " in source or f"self.{attribute}: " in source


def test_an_agent_loop_is_built_from_what_we_pass_and_builds_prompt_tokens():
    keys = ("trainer_config", "server_manager", "tokenizer", "processor", "dataset_cls", "data_config", "hf_model_type")
    inspect.signature(SingleTurnAgentLoop.__mro__[1].__init__).bind(None, **dict.fromkeys(keys))
    inspect.signature(SingleTurnAgentLoop.ct_build_initial_tokens).bind(None, [])


def test_the_single_turn_loop_generates_once_and_cuts_at_the_response_length():
    source = inspect.getsource(SingleTurnAgentLoop)
    assert source.count("self.server_manager.generate(") == 1
    assert "response_ids[: self.response_length]" in source
    assert "self.response_length = self.rollout_config.response_length" in source
    for keyword in ("request_id=", "prompt_ids=prompt_ids", "sampling_params=sampling_params"):
        assert keyword in source


# ---- client and manager ----


def test_the_client_takes_what_we_pass_and_ours_takes_what_verl_passes():
    for generate in (LLMServerClient.generate, ContinuingClient.generate):
        inspect.signature(generate).bind(None, "r", prompt_ids=[], sampling_params={})
        inspect.signature(generate).bind(
            None, request_id="r", prompt_ids=[], sampling_params={}, image_data=0, priority=0
        )
    assert {"token_ids", "log_probs", "extra_fields", "stop_reason"} <= set(TokenOutput.model_fields)


def requests_of_client(engine, **given):
    """What reaches the rollout server when verl's client is asked to generate."""
    requests = []

    async def generate(**request):
        requests.append(request)
        return TokenOutput(token_ids=[1], log_probs=[-1.0])

    class Client(LLMServerClient):
        async def _acquire_server(self, request_id, **extra):
            return "server", SimpleNamespace(generate=SimpleNamespace(remote=generate))

        def _release_server(self, server_id, request_id=None):
            pass

    client = Client(OmegaConf.create({"actor_rollout_ref": {"rollout": {"name": engine, "full_determinism": False}}}))
    asyncio.run(client.generate("r", prompt_ids=[1], sampling_params={}, **given))
    return requests


def test_a_requests_priority_reaches_vllm_and_no_engine_that_has_none():
    (request,) = requests_of_client("vllm", priority=PRIORITY)
    assert request["priority"] == PRIORITY
    for engine, given in (("sglang", {"priority": PRIORITY}), ("vllm", {})):
        (request,) = requests_of_client(engine, **given)
        assert "priority" not in request


def test_the_steps_own_responses_have_a_lower_number_than_prefixes():
    """The number of a response is 0 unless its row has another."""
    assert inspect.signature(SingleTurnAgentLoop.run).parameters["priority"].default == 0 < PRIORITY
    assert "priority=priority" in inspect.getsource(SingleTurnAgentLoop.run)
    _, server = functions_of("verl.workers.rollout.vllm_rollout.vllm_async_server")
    assert '"scheduling_policy": self.config.scheduling_policy,' in server.read_text()


def test_a_response_given_without_asking_the_engine_has_all_that_the_agent_loop_reads():
    read = set(re.findall(r"\boutput\.(\w+)", inspect.getsource(SingleTurnAgentLoop.run)))
    assert read == {"token_ids", "log_probs", "extra_fields", "num_preempted", "routed_experts"}
    left_out = TokenOutput(token_ids=[1], log_probs=[-1.0], stop_reason="completed", extra_fields={})
    assert left_out.num_preempted is None and left_out.routed_experts is None


def test_verls_client_adds_the_versions_that_ours_gives_itself():
    source = inspect.getsource(inspect.getmodule(LLMServerClient))
    for name in ("min_global_steps", "max_global_steps"):
        assert f'"{name}"' in source
        assert f'"{name}": field["extra_fields"].get("{name}")' in inspect.getsource(
            rollout._WorkerTQ._agent_loop_postprocess
        )


def test_the_engine_says_which_version_sampled():
    package = Path(inspect.getfile(vLLMColocateWorkerExtension)).parent
    assert 'extra_fields = {"global_steps": self.global_steps}' in (package / "vllm_async_server.py").read_text()


def test_an_output_has_the_fields_we_read_and_drops_unset_ones():
    names = {"prompt_ids", "response_ids", "response_mask", "response_logprobs", "reward_score", "extra_fields"}
    assert names <= set(AgentLoopOutput.model_fields)
    assert "model_dump(exclude_unset=True)" in inspect.getsource(AgentLoopOutput.as_dict)


def test_the_manager_builds_the_worker_class_we_set_and_keeps_its_workers():
    source = inspect.getsource(SoupAgentLoopManager.__mro__[2])
    assert "self.agent_loop_workers_class.options(" in source and "self.agent_loop_workers = []" in source


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
