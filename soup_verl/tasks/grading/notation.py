r"""Tables of the normal form: characters and commands that are written otherwise for the same thing.

`latex_text.py` applies them to expected and given answers alike; what is added here needs no code.
"""

from __future__ import annotations

import re
import string
import unicodedata

CONSTANTS = (  # and functions and operators: commands that are no variables
    "frac sqrt cdot times div pi infty binom ln log exp sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh"
)


def spaced(text: str) -> list[str]:
    """The words of a text: a table that is read like one."""
    return text.split()


FUNCTIONS = frozenset(
    spaced(
        "ln log exp sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth det dim gcd lcm max min "
        "deg ker arg sup inf lim Re Im Pr rank sgn"
    )
)
GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega hbar ell odot"
)

# ---- characters ----

_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋ₙᵢⱼₖ", "0123456789+-nijk")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱˣ", "0123456789+-nix")
_FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if not 0xFF10 <= code <= 0xFF19}
_FULL_WIDTH_DIGITS = str.maketrans("０１２３４５６７８９", "0123456789")
_VULGAR = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5), "⅘": (4, 5),
    "⅙": (1, 6), "⅚": (5, 6), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8), "⅐": (1, 7), "⅑": (1, 9),
    "⅒": (1, 10),
}  # fmt: skip
_GREEK_LETTERS = {
    "αβγδεζηθικλμνξρστυφχψω": "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi chi psi omega",
    "ΓΔΘΛΞΠΣΦΨΩπϕϵ∆": "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega pi phi epsilon Delta",
}
_CHARACTERS: dict[str, str] = (
    {
        **{chr(code): letter for code, letter in _FULL_WIDTH.items()},
        **dict.fromkeys("\u2212\u2013\u2010\u2011", "-"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", ""),  # zero width
        **dict.fromkeys("\u00a0\u202f\u2009\u2007\u3000~", " "),
        **{letter: rf"\frac{{{top}}}{{{bottom}}}" for letter, (top, bottom) in _VULGAR.items()},
        **{c: rf"\{n} " for cs, ns in _GREEK_LETTERS.items() for c, n in zip(cs, spaced(ns), strict=True)},
        "✕": r"\times ", "•": r"\cdot ", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ",
        "÷": "/", "⁄": "/", "∕": "/", "∞": r"\infty ",
        "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "⩽": r"\le ", "⩾": r"\ge ", "≈": r"\approx ", "≡": r"\equiv ",
        "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∖": r"\setminus ", "∅": r"\emptyset ", "±": r"\pm ", "∓": r"\mp ",
        "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
        "∠": r"\angle ", "△": r"\triangle ", "…": r"\ldots ", "⋯": r"\ldots ", "→": r"\to ", "∛": r"\sqrt[3]",
        "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "⟨": r"\langle ", "⟩": r"\rangle ",
        "\u2032": "'", "\u2019": "'", "\u2033": "''", "º": "°", "∘": "°", "∶": ":", "、": ",", "。": ".",
        "\0": "\ufffd",
    }
)  # fmt: skip
UNICODE = str.maketrans(_CHARACTERS)
_STYLED_LETTER = re.compile("[\U0001d400-\U0001d7cb\u210e]")  # mathematical italic and the like; no digits
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱˣ]+")
_SUBSCRIPT_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋ₙᵢⱼₖ]+")
_ROOT = re.compile(r"(√|∛)\s*(?:([0-9]+(?:\.[0-9]+)?|[A-Za-z])|(?=[({\\]))")


def read_unicode(text: str) -> str:
    """`text` with LaTeX for mathematical characters. Digits of other scripts stay what they are, with one exception:
    full-width digits where no others are."""
    if text.isascii():
        return text.replace("~", " ").replace("\0", "\ufffd")
    text = _ROOT.sub(lambda m: rf"\sqrt{'[3]' if m[1] == '∛' else ''}{'{' + m[2] + '}' if m[2] else ''}", text)
    text = _SUPERSCRIPT_RUN.sub(lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _SUBSCRIPT_RUN.sub(lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    if not any(digit in text for digit in string.digits):
        text = text.translate(_FULL_WIDTH_DIGITS)
    text = _STYLED_LETTER.sub(lambda m: unicodedata.normalize("NFKC", m[0]), text)
    return text.translate(UNICODE)


# ---- commands ----

SYMBOLS = {
    # nothing: sizes, layout
    **dict.fromkeys(spaced("middle displaystyle textstyle scriptstyle limits nolimits hline nobreak noindent"), ""),
    **dict.fromkeys(spaced("bigl bigr Bigl Bigr biggl biggr Biggl Biggr big Big bigg Bigg bigm Bigm"), ""),
    **dict.fromkeys(spaced("tiny scriptsize footnotesize small normalsize large Large LARGE huge Huge"), ""),
    **dict.fromkeys(["(", ")", "[", "]"], ""),
    # spaces
    **dict.fromkeys([",", ";", ":", ">", " ", "quad", "qquad", "enspace", "thinspace", "enskip", "medspace"], " "),
    **dict.fromkeys(["leq", "leqslant", "leqq"], r"\le"),
    **dict.fromkeys(["geq", "geqslant", "geqq"], r"\ge"),
    **dict.fromkeys(["simeq", "thickapprox"], r"\approx"),
    **dict.fromkeys(["varnothing", "O", "empty"], r"\emptyset"),
    **dict.fromkeys(["dots", "cdots", "dotsc", "dotsb", "hdots"], r"\ldots"),
    **dict.fromkeys(["ast", "star", "bullet"], r"\cdot"),
    **dict.fromkeys(["degree", "degrees"], "°"),
    **dict.fromkeys(["lvert", "rvert", "vert", "mid"], "|"),
    **dict.fromkeys(["backslash", "smallsetminus"], r"\setminus"),
    **dict.fromkeys(["rightarrow", "longrightarrow", "Rightarrow", "implies"], r"\to"),
    "neq": r"\ne", "lt": "<", "gt": ">", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]",
    "lparen": "(", "rparen": ")", "colon": ":", "ratio": ":", "isin": r"\in", "infin": r"\infty", "land": ",",
    "varphi": r"\phi", "varepsilon": r"\epsilon", "vartheta": r"\theta", "varrho": r"\rho", "lor": ",", "wedge": ",",
    "vee": ",", "lg": r"\log_{10}", "tg": r"\tan", "ctg": r"\cot", "cotg": r"\cot", "cosec": r"\csc",
    "arctg": r"\arctan", "euro": "€", "pounds": "£", "textdollar": r"\$", "percent": r"\%", "perp": r"\perp",
    "reals": r"\mathbb{R}", "R": r"\mathbb{R}", "Z": r"\mathbb{Z}", "N": r"\mathbb{N}", "Q": r"\mathbb{Q}",
    "sim": r"\sim", "and": ",", "measuredangle": r"\angle", "bigtriangleup": r"\triangle", "prime": "'",
}  # fmt: skip
RENAMED = {  # with their arguments
    **dict.fromkeys(["dfrac", "tfrac", "cfrac"], "frac"),
    **dict.fromkeys(["dbinom", "tbinom"], "binom"),
    **dict.fromkeys(["pod", "mod"], "pmod"),
    **dict.fromkeys(["overrightarrow", "mathvec"], "vec"),
    "bar": "overline",
    "dot": "dot",
}
ARITY = {"frac": 2, "binom": 2, "sqrt": 1, "overline": 1, "pmod": 1, "vec": 1, "hat": 1, "dot": 1, "ddot": 1}
ARITY |= {"tilde": 1, "mathbb": 1, "mathcal": 1, "widehat": 1, "xrightarrow": 1}
# What is around changes how it looks, not what it says: command -> which argument is kept, of how many.
WRAPPERS = {
    **dict.fromkeys(spaced("underline boxed fbox ensuremath mathop mathord mathbin mathrel mathstrut uline"), (0, 1)),
    **dict.fromkeys(["emph", "mathnormal", "boldsymbol", "bm", "pmb", "textstyle", "smash"], (0, 1)),
    **dict.fromkeys(["textcolor", "colorbox"], (1, 2)),
    "color": (None, 1),
}
UPRIGHT = frozenset(
    spaced(
        "text mathrm mathbf mathit mathsf mathtt textbf textit textrm textsf texttt textnormal textup mbox hbox "
        "operatorname operatorname*"
    )
)
SWITCHES = {"rm": "mathrm", "bf": "mathbf", "it": "mathit", "sf": "mathsf", "tt": "mathtt", "bfseries": "mathbf"}
ENVIRONMENTS = {"tabular": "array", "smallmatrix": "matrix", "dcases": "cases", "psmallmatrix": "pmatrix"}
NULLARY = frozenset(spaced(GREEK)) | frozenset(
    spaced(
        "cdot times div pi infty le ge ne in cup cap setminus pm mp approx equiv ldots emptyset angle triangle to sim"
    )
)
FUNCTION_NAMES = FUNCTIONS | {"arctg", "lg", "tg", "ctg"}
"""Upright, or before a bracket without a backslash, they are the functions: `sin(x)`, `\\operatorname{sin}`."""
