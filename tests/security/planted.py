"""Rows, a config and an environment full of values that must not leave the machine."""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from mlprod.config import (
    ByHash,
    CheckpointConfig,
    Column,
    Config,
    CsvSource,
    EtlConfig,
    EvalConfig,
    Label,
    LoaderConfig,
    OptimConfig,
    RuntimeConfig,
    TrackingConfig,
    categorical,
    numeric,
)
from mlprod.models.mlp import MLPConfig
from tests.security.canaries import Value

# Of the rows: each text begins as this one does, the numbers are most of their column, its least and its greatest.
# A float32 holds them exactly, and with six digits they have an exponent: else times in a trace have the same now and then.
WHO, MAIL, TOWN, NOTE = "kanari-who", "kanari-mail", "kanari-town", "kanari-note"
LEAST, MOST, GREATEST, SERIAL, BORN = 1400407.625, 1470077.125, 1714077.375, 7707007077, "1907-07-17"
BORN_US = -1_971_129_600_000_000  # the same, in microseconds since 1970
ROWS: Mapping[str, Value] = {
    "key": WHO,
    "mail": MAIL,
    "town": TOWN,
    "note": NOTE,
    "least": LEAST,
    "most": MOST,
    "greatest": GREATEST,
    "serial": SERIAL,
    "time": BORN,
    "time, us": BORN_US,
}
# Of the environment. A password has what a URL must escape.
PASSWORD, OPTION, TOKEN, KEY, OTHER = (
    "kanari-password/7:ä@b",
    "kanari-option%7",
    "kanari-token-7",
    "kanari" + "7" * 34,
    "kanari-other-7",
)
SECRETS: Mapping[str, Value] = {
    "password": PASSWORD,
    "option": OPTION,
    "cloud": TOKEN,
    "W&B's key": KEY,
    "other": OTHER,
    "a part of the password": "kanari-password",
}
ENVIRONMENT = {
    "DB_PASSWORD": quote(PASSWORD, safe=""),
    "DB_OPTION": quote(OPTION),
    "AWS_SECRET_ACCESS_KEY": TOKEN,
    "WANDB_API_KEY": KEY,
    "SOME_SECRET": OTHER,
    "DB_URL": f"nodialect://bob:{quote(PASSWORD, safe='')}@127.0.0.1:9/x?password={quote(OPTION)}",
}
HEADER = "who,mail,town,note,age,serial,born,x,y"


def cells(i: int) -> list[str]:
    """Returns row `i` as texts, in the order of `HEADER`."""
    age = LEAST if i % 10 == 0 else GREATEST if i % 10 == 1 else MOST
    born = BORN if i % 3 else f"{1950 + i % 40}-01-01"
    noise = (i * 2654435761 >> 7) % 1000 / 1000
    town = (i * 40503 >> 5) % 4
    return [
        f"{WHO}-{i}",
        f"{MAIL}-{i % 9}@example.com",
        f"{TOWN}-{town}",
        f"{NOTE} {i % 5}",
        str(age),
        str(SERIAL if i % 4 else i),
        born,
        f"{noise:.3f}",
        str(int(noise + 0.2 * town > 0.8)),
    ]


def write(path: Path, num_rows: int = 60, changed: Mapping[tuple[int, str], str] | None = None, more: str = "") -> Path:
    """Writes rows as CSV; `changed`: {(row, column): text}; `more`: lines behind them."""
    names = HEADER.split(",")
    lines = [HEADER]
    for i in range(num_rows):
        row = dict(zip(names, cells(i), strict=True))
        lines.append(",".join((changed or {}).get((i, name), row[name]) for name in names))
    path.write_text("\n".join(lines) + "\n" + more, encoding="utf-8")
    return path


def columns() -> tuple[Column, ...]:
    """A sensitive column of every type and role, and one that is not."""
    return (
        Column(name="who", type="string", role="input", sensitive=True),
        Column(name="mail", type="string", role="input", sensitive=True),
        categorical("town", sensitive=True),
        Column(name="note", type="string", role="group", sensitive=True),
        numeric("age", sensitive=True),
        Column(name="serial", type="int64", role="input", sensitive=True),
        Column(name="born", type="timestamp", role="time", sensitive=True),
        numeric("x"),
    )


def config() -> Config:
    """Returns the config of these rows, small; paths are relative."""
    return Config(
        name="planted",
        workdir="run",
        dataset="dataset",
        steps=30,
        etl=EtlConfig(
            source=CsvSource(path="rows.csv"),
            label=Label(column="y", above=0.5),
            columns=columns(),
            key=("who",),
            split=ByHash(eval=0.2, test=0.2),
            group_rows=64,
            file_groups=8,
        ),
        model=MLPConfig(hidden=(16,), dropout=0.1),
        optim=OptimConfig(peak_lr=1e-2, warmup_steps=5),
        loader=LoaderConfig(global_batch=64, num_lanes=16, window_rows=256),
        eval=EvalConfig(batch=64, every=10),
        checkpoint=CheckpointConfig(every=10),
        tracking=TrackingConfig(wandb="off", progress=False),
        runtime=RuntimeConfig(compile_cache=os.environ.get("MLPROD_TEST_COMPILED", "auto")),
    )


def write_config(folder: Path, change: str = "", head: str = "") -> Path:
    """Writes a config file of the user's own: that of `config` with the statements `change` done to `cfg`."""
    lines = [
        "import dataclasses",
        "from dataclasses import replace",
        "from mlprod.config import *",
        f"import runpy; config = runpy.run_path({__file__!r})['config']",
        head,
        "def with_column(cfg, name, **more):",
        "    cfg.etl.columns = tuple(replace(c, **more) if c.name == name else c for c in cfg.etl.columns)",
        "def get_config():",
        "    cfg = config()",
        *(f"    {line}" for line in change.splitlines()),
        "    return cfg",
    ]
    path = folder / "mine.py"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
