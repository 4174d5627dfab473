"""Makes text that is data (labels, paths, names) literal for each kind of output.

A label may come from a run folder or a trace that somebody else wrote. Each renderer passes such a
text through the one function of its output, so that it is shown as it stands and never acts as
markup, formula, column separator or terminal control. HTML is escaped by the templates themselves.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from rich.markup import escape as escape_rich_markup

MAX_FIGURE_CHARACTERS = 48
BIDI_CONTROLS = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
CONTROL_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")  # controls, lone surrogates, line separators
LATEX_CHARACTERS = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{character: "\\" + character for character in "&%$#_{}"},
        "×": r"$\times$",
        "|": r"\textbar{}",
        "<": "$<$",
        ">": "$>$",
        "–": r"\textendash{}",
        "∞": r"$\infty$",
        "^": r"\^{}",
        "~": r"\~{}",
    }
)
MARKDOWN_SPECIAL = re.compile(r"[\\`*\[\]<>&|~$]|(?<![^\W_])_|_(?![^\W_])|^[#+\-=](?=[\s#+\-=]|$)")
MARKDOWN_LIST_NUMBER = re.compile(r"^(\d+)([.)])(?=\s|$)")


def visible(text: str) -> str:
    r"""Return the text with its control characters written out, such as ``\x1b`` and ``\n``.

    The result is one line that can be encoded as UTF-8 and that no terminal acts upon. Controls of
    the writing direction are written out too: they would reorder the text around them.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if _is_control(character) else character
        for character in text
    )


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in CONTROL_CATEGORIES or character in BIDI_CONTROLS


def terminal(text: str) -> str:
    """Return the text for a rich console or table that reads markup."""
    return escape_rich_markup(visible(text))


def markdown(text: str) -> str:
    """Return the text for a paragraph, list item or table cell in Markdown."""
    escaped = MARKDOWN_SPECIAL.sub(r"\\\g<0>", visible(text))
    return MARKDOWN_LIST_NUMBER.sub(r"\1\\\2", escaped)


def markdown_code(text: str) -> str:
    """Return the text as a code span for Markdown, also within a table."""
    shown = visible(text).replace("|", "\\|")
    fence = "`" * (1 + _longest_run_of_backticks(shown))
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def markdown_block(text: str, language: str) -> str:
    """Return the lines of text as a fenced code block for Markdown."""
    fence = "`" * max(3, 1 + _longest_run_of_backticks(text))
    lines = "\n".join(visible(line) for line in text.split("\n"))
    return f"{fence}{language}\n{lines}\n{fence}"


def _longest_run_of_backticks(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def latex(text: str) -> str:
    """Return the text for a cell or comment in LaTeX."""
    literal = visible(text).translate(LATEX_CHARACTERS)
    return re.sub("-(?=-)", "-{}", literal)  # LaTeX would turn two hyphens into a dash


@cache
def figure(text: str) -> str:
    """Return the text for a figure: matplotlib reads no formula in it, and it fits a page.

    A long text loses its middle. A leading underscore, by which matplotlib would leave the entry
    out of a legend, stands behind a space of no width.
    """
    shown = visible(text)
    if len(shown) > MAX_FIGURE_CHARACTERS:
        tail = MAX_FIGURE_CHARACTERS // 3
        shown = f"{shown[: MAX_FIGURE_CHARACTERS - tail - 1]}…{shown[-tail:]}"
    literal = shown.replace("$", r"\$")
    return f"\u200b{literal}" if literal.startswith("_") else literal
