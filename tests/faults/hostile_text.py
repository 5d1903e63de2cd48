r"""Model outputs that try to crash, stall, fool or take over whoever grades them: made from a seed, never stored.

    for attack in hostile_texts(seed=0, each=150):   # 15 kinds, so 2,250 of them
        compute_score("hostile", attack.text, attack.gold)

No text is the answer to its `gold`, so none may score. The expected answers say 7919 or 104729, and where a text says
so too, it says something else with it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

GOLDS = (
    "7919",
    r"\frac{7919}{104729}",
    r"\sqrt{7919}",
    "7919x+1",
    "x=7919",
    "(7919,-7919)",
    "7919,104729",
    r"\begin{pmatrix}7919\\1\end{pmatrix}",
    r"(-\infty,7919]",
    "79.19",
    r"7919\text{ cm}",
    r"7919\%",
    r"\text{sevenninonenine}",
    r"7919!",
    r"e^{7919}",
)
SECRET = "soup_canary_7f3a91"
"""Value of an environment variable that no result may hold."""
SECRET_NAME = "SOUP_CANARY"


@dataclass(frozen=True)
class Attack:
    """One output, and an expected answer that it is not."""

    kind: str
    text: str
    gold: str


Maker = Callable[[random.Random], "str | tuple[str, str]"]
"""Makes the text, or (text, gold) where the two belong together."""


def hostile_texts(*, seed: int, each: int, canary: Path = Path("/tmp/canary")) -> Iterator[Attack]:
    """`each` texts of every kind, kinds taking turns; one is made when it is asked for.

    Args:
        seed: the same seed gives the same texts.
        canary: the file that injected code tries to make.
    """
    makers: dict[str, Maker] = {**MAKERS, "code": lambda r: code(r, canary)}
    sources = {kind: random.Random(f"{seed}/{kind}") for kind in makers}
    for number in range(each):
        for kind, maker in makers.items():
            made = maker(sources[kind])
            text, gold = made if isinstance(made, tuple) else (made, GOLDS[number % len(GOLDS)])
            yield Attack(kind, text, gold)


HANDWRITTEN = (
    ("5'", "5"),  # each of the first nine was worth a point, or an exception, before it was put here
    ("x'", "x"),
    (r"5 \text{ squared}", "5"),
    (r"\sqrt{10^{40}+1}", "10^{20}"),
    (r"\pi+10^{-40}", r"\pi"),
    ("1.00000e2", "2e"),
    ("1.234567e9999", r"\sqrt{2}"),
    (r"1.234567\times10^{9999}", r"\sqrt{2}"),
    ("7" * 5000, "8" * 4000),
    (r"9^{9^{9^9}}", "5"),
    (r"10^{10^{10}}!", "5"),
    (r"\boxed{" * 1000, "5"),
    ("5\u202e", "5"),
    ("5\x00", "5"),
    ("\ud800", "5"),
    ("__import__('os').system('id')", "5"),
)


def handwritten() -> Iterator[Attack]:
    """A few that are worth keeping by name."""
    for content, gold in HANDWRITTEN:
        yield Attack("handwritten", box(content), gold)


def box(content: str) -> str:
    return rf"Therefore the answer is $\boxed{{{content}}}$."


# ---- what makes a parser or an evaluator work for ever ----


def latex_bomb(r: random.Random) -> str:
    """Definitions that double, loops, reads and writes of files: what TeX itself would do."""
    n = r.randrange(2, 12)
    names = [f"\\x{chr(97 + i)}" for i in range(n)]
    doubling = "".join(rf"\def{b}{{{a}{a}}}" for a, b in zip(names, names[1:], strict=False))
    return box(
        r.choice(
            [
                rf"\def\xa{{9}}{doubling}{names[-1]}",
                r"\loop\iftrue 7\repeat",
                rf"\newcommand{{\z}}{{\z\z}}\z^{{{n}}}",
                r"\input{/etc/passwd}",
                r"\immediate\write18{id}",
                rf"\csname{'x' * n * 40}\endcsname",
                r"\expandafter" * n * 9 + "7",
                r"\romannumeral" + "9" * n * 30,
                r"\begin{document}" * n + "7",
                rf"\frac{{1}}{{1+{r.randrange(9)}}}" + r"\over" * n + "3",
            ]
        )
    )


def nesting(r: random.Random) -> str:
    """Brackets, fractions, roots and scripts within one another, from a dozen deep to a hundred thousand."""
    opening, closing = r.choice(
        [("(", ")"), ("{", "}"), ("[", "]"), (r"\{", r"\}"), (r"\left(", r"\right)"), (r"\frac{1}{", "}")]
        + [(r"\sqrt{", "}"), ("x^{", "}"), ("x_{", "}"), (r"\text{", "}"), ("|", "|"), (r"\log_{2}(", ")")]
        + [(r"\begin{pmatrix}", r"\end{pmatrix}"), (r"\lfloor ", r"\rfloor "), ("-(", ")"), (r"\sin(", ")")]
    )
    depth = r.choice([9, 11, 12, 13, 30, 60, 300, 5_000, 100_000])
    inner = r.choice(["5", "x", "", "1,2"])
    return box(opening * depth + inner + closing * r.choice([depth, depth, depth - 1, 0]))


def exponents(r: random.Random) -> str:
    """Numbers that do not fit anywhere: towers, scientific notation, tiny ones."""
    big = "9" * r.choice([1, 3, 6, 40, 300])
    tower = "9"
    for _ in range(r.randrange(2, 11)):
        tower = rf"{r.randrange(2, 10)}^{{{tower}}}"
    return box(
        r.choice(
            [
                tower,
                f"{tower}-{tower}+5",
                rf"\sqrt{{{tower}}}",
                f"9e{big}",
                f"-9e-{big}",
                f"1.234567e{r.choice(['9999', '999', '400', '-9999'])}",
                rf"1.234567\times10^{{{r.choice(['9999', '-9999', '309'])}}}",
                rf"10^{{{big}}}",
                rf"(1+10^{{-{big}}})^{{10^{{{big}}}}}",
                rf"x^{{{big}}}-x^{{{big}1}}",
                rf"\exp(\exp(\exp({big})))",
                f"0.{'0' * 300}{big}",
                rf"2^{{{big}}}\cdot3^{{{big}}}",
                rf"\frac{{1}}{{10^{{{big}}}}}",
                rf"(x+y+z)^{{{r.randrange(20, 999)}}}",
                rf"e^{{e^{{e^{{{big}}}}}}}",
            ]
        )
    )


def factorials(r: random.Random) -> str:
    """Factorials of factorials, binomials of large numbers."""
    n, k = r.choice([9, 99, 999, 99_999, 10**9]), r.randrange(1, 7)
    nested = "(" * k + str(n) + "!)" * k
    return box(
        r.choice(
            [
                nested,
                f"{n}" + "!" * k,
                rf"\frac{{{nested}}}{{{nested}-1}}",
                rf"\binom{{10^{{{k + 3}}}}}{{10^{{{k + 2}}}}}",
                rf"\binom{{{n}}}{{{n // 2}}}",
                rf"\log({nested})",
                f"({n}!)^{{{n}!}}",
                rf"\sin({n}!)",
                r"\binom{x!}{y!}!",
                rf"\sqrt{{{n}!}}!",
            ]
        )
    )


GRAMMAR = (
    *(f"{command}{{@}}{{@}}" for command in (r"\frac", r"\binom")),
    *(f"{command}(@)" for command in (r"\sin", r"\cos", r"\tan", r"\log", r"\ln", r"\exp", r"\arcsin", r"\sinh")),
    *("@+@", "@-@", r"@\cdot @", r"@\cdot @", "@^{@}", r"\sqrt{@}", r"\sqrt[3]{@}", "(@)", "|@|", "@!", "-@", "@@"),
)
LEAVES = ("2", "10", "x", "y", r"\pi", "e", "i", "0", r"\infty", "99", "0.5", r"\alpha", "n_{1}", "1000000", "-1")


def expressions(r: random.Random) -> str:
    """Random expressions of what may be handed to math-verify: the only kind that gets that far on purpose."""
    text = "@"
    for _ in range(r.randrange(3, 22)):
        text = text.replace("@", r.choice(GRAMMAR), 1) if r.random() < 0.7 else text.replace("@", r.choice(LEAVES), 1)
    while "@" in text:
        text = text.replace("@", r.choice(LEAVES), 1)
    return box(text)


# ---- text that is not what it looks like ----

ODD = (
    *"\u202e\u202d\u2066\u2069\u200b\u200c\u200d\u2060\ufeff\u00ad\u0301\u20d7\u0338\u034f\u180e\u3000\u2028\u2029",
    *"\x00\x07\x08\x0b\x0c\x1b\x7f\x85\ud800\udfff\ufffd\uffff\U000e0041\U0001f642٣५৩０１５𝟓五Ⅷ²₅½⁻",
    *("a" + "\u0300" * 400, "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\x1b[2J", "\r\n", "\x1b]0;x\x07"),
)


def unicode_tricks(r: random.Random) -> tuple[str, str]:
    """The expected answer with characters in it that do not show, turn the line round, or look like others."""
    gold = r.choice(GOLDS)
    at = r.randrange(1, len(gold))
    odd = "".join(r.choice(ODD[:-1]) for _ in range(r.choice([1, 1, 2, 50])))
    digit = r.choice("٣५０１𝟓五²₅½3")  # so that the answer is another one, whatever is taken out
    return box(gold[:at] + odd + gold[at:] + digit), gold


def control(r: random.Random) -> str:
    """Control characters and raw bytes as text."""
    return box("".join(chr(r.choice([*range(32), 127, *range(128, 160), 0xD800, 0xDC00])) for _ in range(90)))


def noise(r: random.Random) -> str:
    """Any characters at all, in and around a box."""
    alphabet = "\\{}()[],;=^_.-+0123456 xyefracsqtdboml!|'&%$<>~\n\t\x00\u202e\ud83d🙂"
    text = "".join(r.choice(alphabet) for _ in range(r.randrange(400)))
    return r.choice([text, box(text), rf"\boxed{{{text}", text + r"\boxed", rf"{text}\boxed{{{text}}}{text}"])


def code(r: random.Random, canary: Path) -> str:
    """Python, sympy, shell and template injection; each would make the canary file or give the secret away."""
    file = str(canary)
    run = r.choice(
        [
            f"__import__('os').system('touch {file}')",
            f"__import__('pathlib').Path('{file}').touch()",
            f"open('{file}','w')",
            f"exec(\"open('{file}','w')\")",
            f"eval(compile('open(\"{file}\",\"w\")','','exec'))",
            f"(lambda: open('{file}','w'))()",
            f"[c for c in ().__class__.__base__.__subclasses__() if c.__name__=='Popen'][0]('touch {file}',shell=True)",
            f"getattr(getattr(__builtins__,'__imp'+'ort__')('os'),'system')('touch {file}')",
            f'sympify(\'open("{file}","w")\')',
            f"Symbol('x').__class__.__mro__[-1].__subclasses__()[0].__init__.__globals__['os'].system('touch {file}')",
            f"parse_expr(\"open('{file}','w')\")",
            f'lambdify([],\'open("{file}","w")\')()',
            f"$(touch {file})",
            f"`touch {file}`; touch {file} | touch {file} && touch {file}",
            f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}} ${{jndi:{file}}} %(x)s {{0.__class__}}",
            f"__import__('os').environ['{SECRET_NAME}']",
            rf"\getenv{{{SECRET_NAME}}} ${SECRET_NAME} ${{{SECRET_NAME}}}",
            f"cposix\nsystem\n(S'touch {file}'\ntR.",
            f"!!python/object/apply:os.system ['touch {file}']",
            '","equal":true}\n{"equal":true}\n{"gold":"1","pred":"1","within":null,"equation":false}',
            "kill 1\nfork\n",
        ]
    )
    wrap = r.choice(
        ["{}", r"\text{{{}}}", "1+{}", "x_{{{}}}", "{}!", r"\frac{{{}}}{{1}}", r"\operatorname{{{}}}", "'{}'"]
    )
    return box(wrap.format(run))


# ---- size ----


def megabytes(r: random.Random) -> str:
    """One to two million characters, with a box before, behind or around."""
    unit = r.choice(
        ["9", "a ", "\\", "{", "}", r"\boxed", r"\boxed{", r"\boxed {", "\u0301", "🙂", r"\text{", "(", "\n"]
    )
    bulk = unit * (r.randrange(1_000_000, 2_000_000) // len(unit))
    return r.choice([bulk, box(bulk), bulk + box("5"), box("5") + bulk, rf"\boxed{{5{bulk}"])


def digits(r: random.Random) -> str | tuple[str, str]:
    """Up to 1e5 digits, in all the ways numbers are written; now and then the expected answer is as long."""
    n = r.choice([200, 400, 999, 4_299, 4_301, 100_000])
    run = "".join(r.choices("123456789", k=n))
    spelled = [run, f"-{run}", f"0.{run}", f"{run}.{run}", f"{run}/{run}1", f"{run}e{r.randrange(9999)}", f"{run}%"]
    spelled += [rf"\frac{{{run}}}{{{run}7}}", ",".join([run[:3]] * (n // 3)), f"{run[:3]} {run}", rf"{run}\text{{ cm}}"]
    spelled += [f"{run[:400]}!", rf"\sqrt{{{run[:350]}}}", f"10^{{{run}}}"]
    text = box(r.choice(spelled))
    return (text, "8" * r.choice([2_200, 4_400, 9_000])) if r.random() < 0.2 else text


def lists(r: random.Random) -> str:
    """Many parts: lists, sets, tuples, signs, matrices, relations, unions, alternatives of each other."""
    n = r.choice([2, 9, 63, 64, 65, 200])
    values = [str(r.randrange(99)) for _ in range(n)]
    return box(
        r.choice(
            [
                ",".join(values),
                r"\{" + ",".join(values) + r"\}",
                "(" + ",".join(rf"{v}+9^{{9^{{9}}}}" for v in values[:30]) + ")",
                ",".join(rf"\pm {v}" for v in values),
                r"\begin{pmatrix}" + "&".join(values) + r"\\" + "&".join(values) + r"\end{pmatrix}",
                "=".join(values),
                r" \cup ".join(f"[{v},{v}9)" for v in values),
                "<".join(values),
                ";".join(values),
                r" \text{ or } ".join(values),
                "," * n,
                "&" * n + r"\\" * n,
                ",".join(rf"\sqrt{{{v}}}+\pi" for v in values[:40]),
            ]
        )
    )


# ---- the box itself ----


def boxes(r: random.Random) -> tuple[str, str]:
    """The expected answer in a box that does not count: not the last one, not closed, within another, not a box."""
    gold, n = r.choice(GOLDS), r.choice([1, 2, 50, 3_000])
    right = rf"\boxed{{{gold}}}"
    texts = [right * n + r"\boxed{}", right * n + r"\boxed{5}", right + r"\boxed{", right + r"\boxed{5" * n, gold, ""]
    texts += [r"\boxed{" + right * min(n, 9) + r"\boxed{5}}", right + r"\boxed{ \n }", right + "\\boxed{\t\u3000}"]
    texts += [rf"\fbox{{{gold}}}", rf"\boxed {gold}", rf"boxed{{{gold}}}", rf"\Boxed{{{gold}}}", rf"\boxed[{gold}]"]
    texts += [right + r"\boxed{\boxed{\boxed{5}}}", r"\boxed{" * n + gold + "+1" + "}" * n, right + r"\boxed{\}", "\\"]
    return r.choice(texts), gold


def unbalanced(r: random.Random) -> str:
    """Braces and brackets in any order."""
    return box(
        "".join(r.choice(["{", "}", "(", ")", "[", "]", r"\{", r"\}", "5", r"\left", r"\right"]) for _ in range(80))
    )


# ---- answers that are almost right ----


def near_misses(r: random.Random) -> tuple[str, str]:
    """Differs from the expected answer by less than floats, or by a sign that a lenient reader drops."""
    n, k = r.randrange(3, 99), r.randrange(13, 60)
    pairs = [
        (rf"10^{{{k}}}+1", f"10^{{{k}}}"),
        (f"{10**k + 1}", f"{10**k}"),
        (rf"\sqrt{{10^{{{2 * k}}}+1}}", f"10^{{{k}}}"),
        (rf"\sqrt{{{n}}}+10^{{-{k}}}", rf"\sqrt{{{n}}}"),
        (rf"\pi+10^{{-{k}}}", r"\pi"),
        (rf"x+10^{{-{k}}}", "x"),
        (rf"\frac{{{10**k}}}{{{10**k + 1}}}", "1"),
        (f"{n}!+1", f"{n}!"),
        (rf"2^{{{k}}}-1", f"2^{{{k}}}"),
        (rf"e^{{-{100 * n}}}", "0"),
        (rf"10^{{-{k}}}", "0"),
        (f"{n}'", f"{n}"),
        ("x'", "x"),
        (rf"{n}\text{{ minus one}}", f"{n}"),
        (rf"{n}\text{{ squared}}", f"{n}"),
        (f"{n}_{{8}}", f"{n}"),
        (rf"{n}\ne {n}", f"{n}"),
        (rf"\neg {n}", f"{n}"),
        (f"{n} {n}", f"{n}{n}"),
        (f"{n},{n}", f"{n}"),
        (rf"\{{{n},{n + 1}\}}", f"{n}"),
        (f"({n},{n}]", f"({n},{n})"),
        (f"{n}={n + 1}", f"{n + 1}"),
        (rf"\pm {n}", f"{n}"),
        (r"\infty", f"{n}"),
        (rf"\frac{{{n}}}{{0}}", f"{n}"),
        (rf"{n}+0^{{-1}}", f"{n}"),
        (rf"\lfloor {n}.5 \rfloor", f"{n}"),
        (f"{n}{'!' * 2}", str(math.factorial(n))),
        (rf"\frac{{{n}}}{{x}}x+0\cdot y", rf"{n}z"),
    ]
    text, gold = r.choice(pairs)
    return box(text), gold


MAKERS: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (latex_bomb, nesting, exponents, factorials, expressions, unicode_tricks, control, noise, megabytes)
    + (digits, lists, boxes, unbalanced, near_misses)
}
