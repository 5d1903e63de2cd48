"""What domains=NAME, ablations=NAME and neighbors=NAME can be, a line each: python -m recipe.soup.list"""

from __future__ import annotations

import re
from pathlib import Path

CONFIG = Path(__file__).parent / "config"
GROUPS = {
    "domains": "data and rewards beside mathematics",
    "ablations": "one factor of SOUP a file",
    "neighbors": "the nearest settings to published methods",
}


def header(path: Path) -> str:
    """The comment before a file's first key, without the package directive, as one text."""
    comment = []
    for line in path.read_text().splitlines()[1:]:
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    return " ".join(comment)


def line_of(path: Path) -> str:
    """The question that an ablation asks; of a neighbour, what it is; of a domain, its first sentence."""
    text = header(path)
    if text.startswith("Question: "):
        return text.removeprefix("Question: ").partition("?")[0] + "?"
    return re.split(r" Same: | For a node ", text)[0]


def main() -> None:
    for group, what in GROUPS.items():
        print(f"{group}=NAME: {what}")
        files = sorted((CONFIG / group).glob("*.yaml"))
        width = max(len(file.stem) for file in files)
        for file in files:
            print(f"  {file.stem:{width}}  {line_of(file)}")
        print()
    print("What is the same as the original, and what is not: the head of each file; docs/methods.md is the overview.")


if __name__ == "__main__":
    main()
