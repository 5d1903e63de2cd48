r"""Braces and commands in one form: the part of the normal form that reads LaTeX as TeX does, group by group.

    \frac12, \frac{{1}}{{2}}           ─►  \frac{1}{2}
    {5}, \mathbf{5}, \textcolor{red}{5} ─►  5
    {20 \choose 10}                    ─►  \binom{20}{10}

One pass over the characters; every group is written once, when it is closed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from soup_verl.tasks.grading.notation import (
    ARITY,
    ENVIRONMENTS,
    FUNCTION_NAMES,
    FUNCTIONS,
    NULLARY,
    RENAMED,
    SWITCHES,
    SYMBOLS,
    UPRIGHT,
    WRAPPERS,
)
from soup_verl.tasks.grading.units import read_unit

KEPT_SPACE = "\0"
"""A space within words, while other spaces are taken out."""
SPACE = r"(?:\s|\\[ ,;:]|\\q?quad(?![A-Za-z]))"
_TOKEN = re.compile(r"\\operatorname\*|\\[A-Za-z]+|\\.|\s+|[^\\\s]|\\$", re.DOTALL)
_MAX_COMMANDS_IN_ARGUMENTS = 8


@dataclass(frozen=True)
class _Group:
    """`{...}`: its content in normal form and as it was written."""

    content: str
    raw: str


def layout(text: str) -> str:
    """Braces and commands in one form. Braces that do not pair up stay as they are."""
    stack: list[list[str | _Group]] = [[]]
    starts: list[int] = []
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token == "{":
            stack.append([])
            starts.append(match.end())
        elif token == "}" and starts:
            items = stack.pop()
            stack[-1].append(_Group(_Writer(items).write(), text[starts.pop() : match.start()]))
        else:
            stack[-1].append(token)
    open_groups = [_Writer(items).write() for items in stack]
    return "{".join(open_groups)


class _Writer:
    """Writes the items of one group: characters, commands, spaces, groups."""

    def __init__(self, items: list[str | _Group]):
        self.items = items
        self.at = 0
        self.out: list[str] = []
        self.depth = 0  # of commands that are arguments of commands
        self.braces_stay = False  # the command before is not known: the next group is its argument
        self.after_function = False

    def write(self) -> str:
        for old in (r"\choose", r"\over"):
            if old in self.items:
                return self._infix(old)
        for switch, font in SWITCHES.items():
            if "\\" + switch in self.items:
                return self._switch("\\" + switch, font)
        while self.at < len(self.items):
            item = self.items[self.at]
            self.at += 1
            self._write_item(item)
        return "".join(self.out)

    def _infix(self, command: str) -> str:
        r"""`a \choose b` and `a \over b` divide their whole group."""
        at = self.items.index(command)
        above, below = _Writer(self.items[:at]).write(), _Writer(self.items[at + 1 :]).write()
        return rf"\{'binom' if command == chr(92) + 'choose' else 'frac'}{{{above.strip()}}}{{{below.strip()}}}"

    def _switch(self, switch: str, font: str) -> str:
        r"""`{\rm cm}`: the font holds to the end of the group."""
        at = self.items.index(switch)
        rest = self.items[at + 1 :]
        raw = "".join(f"{{{i.raw}}}" if isinstance(i, _Group) else i for i in rest)
        return _Writer(self.items[:at]).write() + _upright(_Group(_Writer(rest).write(), raw), font)

    def _write_item(self, item: str | _Group) -> None:
        braces_stay, after_function = self.braces_stay, self.after_function
        self.braces_stay = self.after_function = False
        if isinstance(item, _Group):
            self.braces_stay = braces_stay
            if braces_stay:
                self.out.append(f"{{{item.content}}}")
            else:
                self.out.append(_argument_of_function(item.content) if after_function else item.content)
        elif item[0] == "\\" and len(item) > 1:
            self.out.append(self._command(item[1:]))
        elif item in "^_":
            self.out.append(self._script(item))
            self.after_function = after_function
        elif item != "$":
            self.out.append(" " if item.isspace() else item)
            self.braces_stay, self.after_function = braces_stay and item.isspace(), after_function and item.isspace()

    def _next(self) -> str | _Group:
        """The next item that is no space, "" at the end."""
        while self.at < len(self.items):
            item = self.items[self.at]
            self.at += 1
            if isinstance(item, _Group) or not item.isspace():
                return item
        return ""

    def _argument(self) -> str:
        item = self._next()
        if isinstance(item, _Group):
            return item.content.strip()
        if item[:1] != "\\" or self.depth >= _MAX_COMMANDS_IN_ARGUMENTS:
            return item
        self.depth += 1
        text = self._command(item[1:]).strip()
        self.depth -= 1
        return text

    def _script(self, sign: str) -> str:
        item = self._next()
        self.at -= item != ""
        upright = isinstance(item, str) and item[1:] in UPRIGHT
        argument = self._argument()
        if argument in ("°", r"\circ"):
            return "°"
        if sign == "_":
            argument = re.sub(r"\\text\{([^{}]*)\}|\\(max|min) ?", r"\1\2", argument).replace(KEPT_SPACE, "")
        elif re.fullmatch(r"'+|\\text\{(?:st|nd|rd|th)\}", argument):
            return argument
        elif upright and argument in ("st", "nd", "rd", "th"):
            return rf"\text{{{argument}}}"
        return f"{sign}{{{argument}}}" if argument else ""

    def _command(self, name: str) -> str:
        name = RENAMED.get(name, name)
        if name in ("left", "right"):
            return self._delimiter()
        if name in SYMBOLS:
            self.after_function = SYMBOLS[name][1:].split("_")[0] in FUNCTIONS
            return SYMBOLS[name] + (" " if SYMBOLS[name][-1:].isalpha() else "")
        if name in UPRIGHT:
            return self._upright(name)
        if name in WRAPPERS:
            kept, arity = WRAPPERS[name]
            arguments = [self._argument() for _ in range(arity)]
            return "" if kept is None else arguments[kept]
        if name in ("begin", "end"):
            return self._environment(name)
        if name in ARITY:
            return self._with_arguments(name)
        self.after_function = name in FUNCTIONS
        self.braces_stay = name.isalpha() and name not in FUNCTIONS and name not in NULLARY
        return f"\\{name} " if name.isalpha() else f"\\{name}"

    def _delimiter(self) -> str:
        item = self._next()
        if item in (".", "<", ">"):
            return {".": "", "<": r"\langle ", ">": r"\rangle "}[str(item)]
        self.at -= item != ""
        return ""

    def _upright(self, name: str) -> str:
        item = self._next()
        if not isinstance(item, _Group):
            self.at -= item != ""
            return self._argument()
        text = _upright(item, name)
        self.after_function = text[1:].strip() in FUNCTIONS
        return text

    def _environment(self, name: str) -> str:
        item = self._next()
        raw = item.raw.strip().rstrip("*") if isinstance(item, _Group) else str(item)
        kind = ENVIRONMENTS.get(raw, raw)
        if name == "begin" and kind == "array":
            self._next()  # the columns
        return rf"\{name}{{{kind}}}"

    def _with_arguments(self, name: str) -> str:
        option = ""
        if name == "sqrt":
            option, whole = self._option(), self._parenthesised()
            if whole is not None:
                return rf"\sqrt{option}{{{whole}}}"
        arguments = [self._argument() for _ in range(ARITY[name])]
        return rf"\{name}{option}" + "".join(f"{{{argument}}}" for argument in arguments)

    def _option(self) -> str:
        """`[3]` of a cube root."""
        rest = self.items[self.at : self.at + 12]
        if "[" not in rest or "]" not in rest or any(i != " " for i in rest[: rest.index("[")]):
            return ""
        start, end = rest.index("["), rest.index("]")
        self.at += end + 1
        order = _Writer(rest[start + 1 : end]).write().strip()
        return "" if order == "2" else f"[{order}]"

    def _parenthesised(self) -> str | None:
        """What follows a root in parentheses: `√(3)`."""
        if self.items[self.at : self.at + 1] != ["("]:
            return None
        depth = 0
        for end in range(self.at, len(self.items)):
            depth += (self.items[end] == "(") - (self.items[end] == ")")
            if not depth:
                inner = self.items[self.at + 1 : end]
                self.at = end + 1
                return _Writer(inner).write().strip()
        return None


def _argument_of_function(content: str) -> str:
    r"""`\sin{2x}` is sin(2x), `\sin{x}` sin x."""
    bare = content.strip()
    return f"({bare})" if len(bare) > 1 and not re.fullmatch(r"\\[A-Za-z]+|\(.*\)", bare) else bare


def _upright(group: _Group, font: str) -> str:
    """Upright or bold text: words are `\text{...}`, anything else is what it would be without the font."""
    raw = re.sub(r"\$|\\(?:left|right)(?![A-Za-z])", "", group.raw)
    raw = " ".join(re.sub(f"{SPACE}+", " ", raw).split()).strip("{} ")
    is_letter = re.fullmatch("[A-Za-z]", raw)
    if font == "mathbf" and raw in ("R", "Z", "N", "Q"):
        return rf"\mathbb{{{raw}}}"
    if is_letter and (raw in "ied" or font in ("mathbf", "mathit", "textit")):
        return raw
    if raw in FUNCTION_NAMES and (font.startswith("operatorname") or raw not in ("min", "deg")):
        return SYMBOLS.get(raw, rf"\{raw}") + " "
    if not re.search(r"[^\W\d_]", re.sub(r"\\[A-Za-z]+", "", raw)):
        return group.content
    if "^" in raw and read_unit(raw):
        return re.sub(r"[A-Za-z/ ]+", _upright_unit, group.content.strip())
    if font.startswith("math") and re.search(r"\\[A-Za-z]|[\^_{]", raw):
        return group.content
    return ",".join(map(_text, re.split(r"\s*,\s*", raw)))


def _upright_unit(match: re.Match) -> str:
    return rf"\text{{{match[0].strip().replace(' ', KEPT_SPACE)}}}"


def _text(raw: str) -> str:
    r"""`5 apples` is `5\text{apples}`; a comma that separated words does so outside."""
    number, words = re.fullmatch(r"([0-9.,/ ]*)(.*)", raw, re.DOTALL).groups()  # type: ignore[union-attr]
    words = words.strip()
    return number.strip() + (rf"\text{{{words.replace(' ', KEPT_SPACE)}}}" if words else "")
