"""A config as the text of a Python file, with the reasons beside what was chosen.

Promise: what is written runs, and a person can read and change it; nothing in it is made up at run time.
"""

import dataclasses
import keyword
from collections.abc import Iterator, Sequence

from mlprod.config import Column
from mlprod.init.choose import Choice
from mlprod.init.literal import is_default, literal

WIDTH = 130


def column_text(c: Column) -> str:
    """Returns a column as the call that makes it: features by their kind."""
    if c.role != "feature":
        return literal(c)
    usual = {"numeric": "float64", "categorical": "string", "list": "string"}[c.kind]
    more = {f.name: getattr(c, f.name) for f in dataclasses.fields(c) if f.name not in ("name", "role", "kind", "type")}
    changed = {f.name for f in dataclasses.fields(c) if not is_default(f, getattr(c, f.name))}
    named = ([f"type={literal(c.type)}"] if c.type != usual else []) + [
        f"{name}={literal(value)}" for name, value in more.items() if name in changed
    ]
    return f"{call_of(c)}({', '.join([literal(c.name), *named])})"


def call_of(c: Column) -> str:
    """Returns the name of the function that makes a feature."""
    return "multivalued" if c.kind == "list" else c.kind


def column_lines(choices: Sequence[Choice]) -> Iterator[str]:
    """Yields the lines of `columns`, the reason beside each; what is left out is a comment."""
    for choice in choices:
        if not choice.columns:
            yield f"# left out: {literal(choice.name)} {choice.why}"
            continue
        first, *made = choice.columns
        yield f"{column_text(first)},  # {choice.why}"
        yield from (f"{column_text(c)}," for c in made)


def hook(choices: Sequence[Choice]) -> str:
    """Returns the text of `transform`; "" where nothing is made."""
    made = {name: expression for choice in choices for name, expression in choice.made.items()}
    if not made:
        return ""
    lines = "\n".join(f'        {literal(name)}: ({expression}).astype("float64"),' for name, expression in made.items())
    return f'''

def transform(rows: pd.DataFrame) -> pd.DataFrame:
    """Adds the parts of a row's times, and which numbers are missing."""
    return pd.DataFrame({{
{lines}
    }})  # fmt: skip
'''


def wrapped(words: str, indent: str) -> str:
    """Returns a comment's text over as many lines as it takes."""
    lines, line = [], indent + "#"
    for word in words.split():
        if len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line = indent + "#"
        line += " " + word
    return "\n".join([*lines, line])


def is_name(text: str) -> bool:
    """Returns whether a text can name a config: as a file and as a module."""
    return text.isidentifier() and not keyword.iskeyword(text)
