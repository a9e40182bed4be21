"""Rows for tests, from our own mixing: the same on every Python, numpy and machine."""

from pathlib import Path

from mlprod.hashing import key

HEADER = "id,day,x,n,color,size,y"
COLORS = ("red", "green", "blue", "", "grün", "a,b")


def number(*words: int) -> float:
    """Returns a float in [0, 1) that is a pure function of the words."""
    return key(*words) / 2.0**64


def row(i: int) -> str:
    """Returns row `i` as a CSV line: a tenth of x is missing, a fiftieth of y; the label follows x, color and size."""
    x = "" if number(i, 1) < 0.1 else f"{number(i, 2) * 4 - 2:.6f}"
    color, size = key(i, 3) % len(COLORS), key(i, 4) % 7
    logit = 1.5 * float(x or 0.0) + (color - 2.5) * 0.6 - (size == 3) * 2.0
    y = "" if number(i, 5) < 0.02 else str(int(number(i, 6) < 1 / (1 + 2.718281828**-logit)))
    name = f'"{COLORS[color]}"' if "," in COLORS[color] else COLORS[color]
    return f"{i},{i % 60},{x},{key(i, 7) % 100},{name},{size},{y}"


def write(path: Path, num_rows: int = 3000) -> Path:
    """Writes `num_rows` rows, and returns the path."""
    path.write_text("\n".join([HEADER, *(row(i) for i in range(num_rows))]) + "\n", encoding="utf-8")
    return path
