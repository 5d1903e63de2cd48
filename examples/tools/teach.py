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

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads crawl when cores are shared
sys.path.insert(0, str(Path(__file__).parents[1] / "quickstart"))

import torch
from prepare import IGNORED, Problem, Settings, build_model, build_tokenizer, draw_problems, rows, warm_start
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


def teacher_batch(tokenizer: Qwen2Tokenizer, problems: list[Problem]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, both (batch, length), padded on the right."""
    pairs = [conversation(tokenizer, problem) for problem in problems]
    length = max(len(ids) for ids, _ in pairs)
    ids = torch.full((len(pairs), length), tokenizer.pad_token_id)
    labels = torch.full((len(pairs), length), IGNORED)
    for row, (tokens, taught) in enumerate(pairs):
        ids[row, : len(tokens)], labels[row, : len(tokens)] = torch.tensor(tokens), torch.tensor(taught)
    return ids, labels


def teach(out: Path, settings: Settings) -> dict[str, object]:
    """Write `out`/model, train.parquet, val.parquet and, last of all, teach.json, which is returned."""
    torch.manual_seed(settings.seed)
    splits = draw_problems(settings)
    tokenizer = tool_tokenizer()
    model = build_model(tokenizer)
    started = time.perf_counter()
    loss = warm_start(model, tokenizer, splits["sft"], settings, batch_of=teacher_batch)
    seconds = round(time.perf_counter() - started, 1)
    tokenizer.save_pretrained(out / "model")
    model.save_pretrained(out / "model")
    for split in ("train", "val"):
        rows(splits[split], split).assign(agent_name="tool_agent").to_parquet(out / f"{split}.parquet")
    report = {"settings": asdict(settings), "sft_seconds": seconds, "sft_loss": round(loss, 3)}
    (out / "teach.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def main() -> None:
    """Parse the command line and teach, unless that is done."""
    parser = argparse.ArgumentParser(description="Make the model and data of the example with a tool.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--sft-steps", type=int, default=120, help="steps of the warm start")
    arguments = parser.parse_args()
    if (arguments.out / "teach.json").exists():
        print(f"{arguments.out} is complete: reused")
        return
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")
    print(json.dumps(teach(arguments.out, Settings(sft_steps=arguments.sft_steps))))


if __name__ == "__main__":
    main()
