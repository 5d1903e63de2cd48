"""verl's single-turn loop with the seeds of `soup.sampling_seed=1`, for runs of verl's own worker."""

from verl.experimental.agent_loop.agent_loop import register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from soup_verl.method.mixing import stable_seed
from soup_verl.tasks.data.row_index import index_text


@register("seeded_agent")
class SeededLoop(SingleTurnAgentLoop):
    async def run(self, sampling_params, **kwargs):
        place = (kwargs["global_steps"], index_text(kwargs.get("index")), kwargs["session_id"])
        return await super().run(sampling_params | {"seed": stable_seed("response", 1, *place)}, **kwargs)
