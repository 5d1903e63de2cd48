"""Make the model and data of this example: the quickstart's tiny Qwen2, taught to work a sum out with a calculator.

    python examples/tools/teach.py --out data/tools

The sums are the quickstart's ("8+7+9-6="). A demonstration calls the tool once a running total and then says the last:

    <tool_call>{"name": "calculate", "arguments": {"expression": "8+7"}}</tool_call>      the model
    15                                                                                     the tool
    ..                                                                                     two more calls
    18                                                                                     the model

Six in ten stop before the last term, as in the quickstart: reinforcement learning can mend that.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "quickstart"))
sys.path.insert(0, str(Path(__file__).parents[1] / "common"))

import teaching
from prepare import Problem, Settings, draw_problems, rows
from tiny_model import IGNORED, build_tokenizer
from transformers import Qwen2Tokenizer
from verl.tools.function_tool import load_function_tools_from_path

CALL, CALL_END = '<tool_call>{"name": "calculate", "arguments": {"expression": "', '"}}</tool_call>'
ANSWER, ANSWER_END = "\n<|im_start|>tool\n", "<|im_end|>\n<|im_start|>assistant\n"
TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}"
    "{{ tool['function']['name'] + '(' + (tool['function']['parameters']['properties'] | join(', ')) + ')\n' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '<tool_call>' + ({'name': call['function']['name'], 'arguments': call['function']['arguments']} | tojson) }}"
    "{{ '</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tool_tokenizer() -> Qwen2Tokenizer:
    """The quickstart's, with a template that names the tools, and the fixed text of a call as two tokens."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([CALL, CALL_END])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def conversation(tokenizer: Qwen2Tokenizer, problem: Problem) -> tuple[list[int], list[int]]:
    """Token ids of a whole demonstration, and its labels: IGNORED where the prompt or the tool speaks."""
    *worked, result = problem.solution.split("\n")
    question = [{"role": "user", "content": problem.question}]
    tools = load_function_tools_from_path(str(Path(__file__).with_name("calculator.py")))
    schemas = [tool.tool_schema.model_dump(exclude_unset=True, exclude_none=True) for tool in tools]
    ids = tokenizer.apply_chat_template(
        question, tools=schemas, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    labels = [IGNORED] * len(ids)
    for line in worked:
        expression, answer = line.split("=")
        call = CALL + expression + CALL_END + "<|im_end|>"
        for text, taught in ((call, True), (ANSWER + answer + ANSWER_END, False)):
            part = tokenizer.encode(text, add_special_tokens=False)
            ids, labels = ids + part, labels + (part if taught else [IGNORED] * len(part))
    part = [*tokenizer.encode(result, add_special_tokens=False), tokenizer.eos_token_id]
    return ids + part, labels + part


def teach(out: Path, settings: Settings) -> dict[str, Any]:
    """Write `out`/model, train.parquet, val.parquet and, last of all, a report, which is returned."""
    problems = draw_problems(settings)
    splits = {name: rows(problems[name], name).assign(agent_name="tool_agent") for name in ("train", "val")}
    return teaching.teach(out, tool_tokenizer(), problems["sft"], settings, splits=splits, encode=conversation)


def main() -> None:
    """Parse the command line and teach, unless that is done."""
    arguments = teaching.parser("the model and data of the example with a tool", sft_steps=120).parse_args()
    teaching.once(arguments.out, lambda: teach(arguments.out, Settings(sft_steps=arguments.sft_steps)))


if __name__ == "__main__":
    main()
