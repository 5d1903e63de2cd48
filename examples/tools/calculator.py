"""The tool of this example. verl loads the file (`rollout.multi_turn.function_tool_path`) and makes its schema."""

import re

from verl.tools.function_tool import function_tool

SUM = re.compile(r"([0-9]{1,9})([+-])([0-9]{1,9})")


@function_tool
def calculate(expression: str) -> str:
    """One sum of two numbers.

    Args:
        expression: for example 7+8
    """
    found = SUM.fullmatch(expression.strip())
    if found is None:
        return "not a sum"
    first, sign, second = found.groups()
    return str(int(first) + int(sign + second))
