"""The typed config: every field is declared once with its meaning and is read; what a field must not hold is refused by name."""

import ast
import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import pytest

from mlprod import compare, config, validation
from mlprod.config import DATA, MAY, MUST, Config
from mlprod.errors import ConfigError
from mlprod.models.mlp import MLPConfig
from mlprod.recipe import run_file
from mlprod.validation import validate
from tests.conftest import RECIPE, ROOT
from tests.refused import argv, refused, write_recipe

SECTIONS = [c for c in vars(config).values() if isinstance(c, type) and dataclasses.is_dataclass(c)] + [MLPConfig]
FIELDS = [(section, field) for section in SECTIONS for field in dataclasses.fields(section)]
each_field = pytest.mark.parametrize("section, field", FIELDS, ids=[f"{s.__name__}.{f.name}" for s, f in FIELDS])


def reads() -> set[str]:
    """Names of the attributes that the package reads, config.py and recipe.py (which walk all fields alike) left out."""
    files = [p for p in (ROOT / "mlprod").rglob("*.py") if p.name not in ("config.py", "recipe.py")]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def test_every_field_is_read() -> None:
    """A field that no code reads is a setting that lies."""
    read = reads()
    assert [f"{section.__name__}.{field.name}" for section, field in FIELDS if field.name not in read] == []


def test_every_section_hangs_below_the_config() -> None:
    """A section that no other holds could be set by nobody, unless others are made of it. A model family's is `config.model`."""
    held = {name for _, field in FIELDS for name in [str(field.type)]} | {"MLPConfig", "Config"}
    assert [s.__name__ for s in SECTIONS if not s.__subclasses__() and not any(s.__name__ in name for name in held)] == []


@each_field
def test_every_field_is_declared_in_full(section: type, field: dataclasses.Field[Any]) -> None:
    """It says what it means, has a resume rule, and its default is of its type, inside its range and choices."""
    assert field.metadata["doc"], "has no doc"
    assert field.metadata["rule"] in (MUST, MAY, DATA)
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if default is not dataclasses.MISSING:
        validation._check_field(field.name, field, typing.get_type_hints(section)[field.name], default)


def test_fields_without_a_data_rule_do_not_change_the_dataset() -> None:
    """Where a file lies, how rows are read and what a model does is free to change; all else is part of a dataset's identity."""
    free = {
        f"{s.__name__}.{f.name}"
        for s, f in FIELDS
        if s in SECTIONS[: SECTIONS.index(config.LoaderConfig)] and f.metadata["rule"] != DATA
    }
    assert free == {
        "SqlSource.url", "SqlSource.cut_by", "SqlSource.timeout_s",
        "CsvSource.path", "ParquetSource.path", "JsonLinesSource.path", "TextSource.path", "Lookup.path",
        "TokenizerFile.path", "EtlConfig.chunk_rows", "EtlConfig.memory_bytes", "EtlConfig.workers", "EtlConfig.executor",
        "SqlSource.late", "EtlConfig.exclude_keys", "EtlConfig.grow", "EtlConfig.drift", "EtlConfig.keep_versions",
        "Column.clip_low", "Column.clip_high", "Column.log", "Column.scale",  # what the model makes of a number
    }  # fmt: skip
    cfg, told = run_file(str(RECIPE)), str(compare.data_json(run_file(str(RECIPE)).etl))
    cfg.etl.chunk_rows, cfg.etl.source.path = 7, "elsewhere.csv"
    assert str(compare.data_json(cfg.etl)) == told


def test_the_recipe_is_valid_and_has_only_declared_fields() -> None:
    """Slots: a misspelled field in a config file is an error where it is written."""
    cfg = run_file(str(RECIPE))
    validate(cfg)
    with pytest.raises(AttributeError, match="peek_lr"):
        cfg.optim.peek_lr = 1.0


# ---- what a config file may get wrong: (statements on cfg, fragments of the message) -----------------------------------

WRONG = {
    "int for a section": ("cfg.optim = 3", "config.optim=3 is int, not OptimConfig"),
    "dict for a section": ("cfg.optim = {'peak_lr': 3}", "config.optim={'peak_lr': 3} is dict, not OptimConfig"),
    "None": ("cfg.steps = None", "config.steps=None is NoneType, not int"),
    "bool for an int": ("cfg.steps = True", "config.steps=True is bool, not int"),
    "float for an int": ("cfg.steps = 2.0", "config.steps=2.0 is float, not int"),
    "int for a str": ("cfg.name = 3", "config.name=3 is int, not str"),
    "str for a bool": ("cfg.checkpoint.strict = 'no'", "config.checkpoint.strict='no' is str, not bool"),
    "list for a tuple": ("cfg.mesh.fsdp = [8]", "config.mesh.fsdp=[8] is list, not tuple[int, ...]"),
    "str for a tuple": ("cfg.etl.key = 'id'", "config.etl.key='id' is str, not tuple[str, ...]"),
    "tuple element": ("cfg.mesh.fsdp = (8, '2')", "config.mesh.fsdp=(8, '2')", "'2' is str, not int"),
    "dict element": (
        "cfg.etl.lookups = (Lookup(path='a', key='id', columns={1: 'x'}),)",
        "config.etl.lookups[0].columns={1: 'x'}", "dict[str, str]",
    ),
    "list of columns": ("cfg.etl.columns = list(cfg.etl.columns)", "config.etl.columns=", "is list, not tuple[Column, ...]"),
    "a source that is none": (
        "cfg.etl.source = 'rows.csv'",
        "config.etl.source='rows.csv' is str, not SqlSource | CsvSource | ParquetSource | JsonLinesSource",
    ),
    "a split that is none": ("cfg.etl.split = 'hash'", "config.etl.split='hash' is str, not ByGroup | ByHash | ByTime"),
    "no hook": ("cfg.etl.transform = None", "config.etl.transform=None is NoneType"),
    "a hook without source": ("cfg.etl.transform = __import__('functools').partial(cfg.etl.transform)", "config.etl.transform"),
    "a built-in as hook": ("cfg.etl.transform = max", "config.etl.transform"),
    "a choice": ("cfg.mesh.layout = 'fdsp'", "config.mesh.layout='fdsp' must be one of 'data', 'fsdp', 'fsdp_tensor'"),
    "a choice of a column": (
        "cfg.etl.columns = (*cfg.etl.columns, numeric('z', type='int'))",
        "config.etl.columns[7].type='int' must be one of 'int64', 'float64', 'string', 'bool', 'timestamp'",
    ),
    "below": ("cfg.optim.peak_lr = -1.0", "config.optim.peak_lr=-1.0 must be "),
    "above": ("cfg.etl.split = ByHash(eval=2.0)", "config.etl.split.eval=2.0 must be from 0.0 to 1.0"),
    "NaN": ("cfg.optim.peak_lr = float('nan')", "config.optim.peak_lr=nan must be "),
    "tuple element below": ("cfg.mesh.fsdp = (4, 0)", "config.mesh.fsdp=(4, 0) must be >= 1"),
    "infinite rate": ("cfg.optim.peak_lr = float('inf')", "config.optim.peak_lr=inf"),
    "a decay of one": ("cfg.optim.b1 = 1.0", "config.optim.b1=1.0"),
    "endless epochs": ("cfg.steps, cfg.epochs = 0, float('inf')", "config.epochs=inf"),
    "more steps than an int32": ("cfg.steps = 1 << 31", "config.steps=2147483648"),
    "more seed than an int64": ("cfg.seed = 1 << 63", "config.seed=9223372036854775808"),
    "no workdir": ("cfg.workdir = ''", "config.workdir=''"),
    "no dataset": ("cfg.dataset = ''", "config.dataset=''"),
    "steps and epochs": ("cfg.epochs = 2.0", "config.steps=60 and config.epochs=2.0: set exactly one of them above 0"),
    "neither steps nor epochs": ("cfg.steps = 0", "config.steps=0 and config.epochs=0.0: set exactly one of them above 0"),
    "lanes": ("cfg.loader.num_lanes = 7", "config.loader.num_lanes=7 does not divide config.loader.global_batch=64"),
    "a model that is no dataclass": ("cfg.model = object()", "config.model=object must be a dataclass with build("),
    "a model without build": ("cfg.model = cfg.optim", "config.model=OptimConfig must be a dataclass with build(features, rngs)"),
    "no model": ("cfg.model = None", "config.model=NoneType must be a dataclass with build(features, rngs)"),
    "a tracker without open": ("cfg.tracking.others = (cfg.optim,)", "config.tracking.others[0]=", "a dataclass with open(run)"),
    "a tracker's class": ("cfg.tracking.others = (type(cfg.model),)", "config.tracking.others[0]=", "an instance of a dataclass"),
    "a model's class": ("cfg.model = type(cfg.model)", "config.model=", "MLPConfig"),
    "a section's class": ("cfg.optim = OptimConfig", "config.optim=", "OptimConfig"),
    "group_rows": ("cfg.etl.group_rows = 100", "config.etl.group_rows=100 must be a power of two"),
    "no feature": ("cfg.etl.columns = cfg.etl.columns[:2]", "config.etl.columns has no column with role 'feature'"),
    "a column twice": ("cfg.etl.columns = (*cfg.etl.columns, numeric('x'))", "config.etl.columns names 'x' twice"),
    "the label as feature": (
        "cfg.etl.columns = (*cfg.etl.columns, numeric('y'))",
        "config.etl.label.column='y' is also in config.etl.columns; the label must not be a feature",
    ),
    "a reserved name": ("cfg.etl.columns = (*cfg.etl.columns, numeric('weight'))", "config.etl.columns: 'weight' must not hold"),
    "a path as name": ("cfg.etl.columns = (*cfg.etl.columns, numeric('a/b'))", "config.etl.columns: 'a/b' must not hold '/'"),
    "a numeric string": (
        "cfg.etl.columns = (*cfg.etl.columns, numeric('z', type='string'))",
        "config.etl.columns: 'z' is string; a numeric feature must be int64, float64 or bool",
    ),
    "a categorical float": (
        "cfg.etl.columns = (*cfg.etl.columns, categorical('z', type='float64'))",
        "config.etl.columns: 'z' is float64; a categorical must be string, int64 or bool",
    ),
    "one row of no key": ("cfg.etl.key, cfg.etl.dedup = (), 'key'", "config.etl.dedup='key' needs config.etl.key"),
    "keep without key": ("cfg.etl.keep = 'x'", "config.etl.keep='x' is for config.etl.dedup='key', not 'exact'"),
    "split by the time of a text": ("cfg.etl.split = ByTime(column='color', eval='2')", "column='color' is string; it must"),
    "split by a number's name": ("cfg.etl.split = ByColumn(column='x')", "column='x' is float64; it must be one of"),
    "split by no column": ("cfg.etl.split = ByColumn(column='colour')", "'colour' is not in config.etl.columns; did you mean"),
    "twice held out": ("cfg.etl.split = ByColumn(column='color', eval=('a',), test=('a',))", "'a' is named for eval and"),
    "shares": ("cfg.etl.split = ByHash(eval=0.6, test=0.5)", "config.etl.split: eval=0.6 + test=0.5 leave nothing to train on"),
    "an unknown key": ("cfg.etl.key = ('idd',)", "config.etl.key: 'idd' is not in config.etl.columns; did you mean 'id'?"),
    "a key twice": ("cfg.etl.key = ('id', 'id')", "config.etl.key", "'id'"),
    "an unknown group": ("cfg.etl.split.columns = ('dy',)", "config.etl.split.columns: 'dy' is not in", "did you mean 'day'?"),
    "no group": ("cfg.etl.split.columns = ()", "config.etl.split.columns"),
    "a long delimiter": ("cfg.etl.source.delimiter = 'ab'", "config.etl.source.delimiter='ab'"),
    "no path": ("cfg.etl.source.path = ''", "config.etl.source.path='' must name a file, a folder, a pattern"),
    "no delimiter": ("cfg.etl.source.delimiter = ''", "config.etl.source.delimiter=''"),
}  # fmt: skip


@pytest.mark.parametrize("change, fragments", [(c, f) for c, *f in WRONG.values()], ids=list(WRONG))
def test_refused_in_a_config_file(
    change: str, fragments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a file or a device is touched: field, value, rule; never a traceback."""
    monkeypatch.chdir(tmp_path)  # the recipe's paths are relative
    refused(capsys, argv("etl", recipe=write_recipe(tmp_path, change)), *fragments)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://bob:hunter2@db.example/x",
        "postgresql+psycopg://bob:hunter2@db.example:port/x",
        "postgresql+psycopg://bob:a/hunter2@db.example/x",
        "postgresql+psycopg://bob:a#hunter2@db.example/x",
        "postgresql+psycopg://bob:[hunter2@db.example/x",
        "postgresql+psycopg://bob:$hunter2!@db.example/x",
        "postgresql+psycopg://db.example/x?user=bob&password=hunter2",
        "mysql://bob:hunter2@db.example/x",
        "mysql+pymysql://bob@db.example/x?ssl_key_password=hunter2",
        "duckdb:///md:x?motherduck_token=hunter2",
        "snowflake://bob@account/x?token=hunter2",
        "bigquery://project/x?credentials_base64=hunter2",
    ],
)
def test_a_password_in_the_config_is_refused(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would be kept beside the run and sent to the tracker; it is not even told."""
    recipe = write_recipe(tmp_path, f"cfg.etl.source = SqlSource(url={url!r}, table='t')")
    told = refused(capsys, argv("check", recipe=recipe), "config.etl.source.url holds a password; write $NAME in its place")
    assert "hunter2" not in told


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///rows.db",
        "mysql://db/x?read_default_file=~/.my.cnf",
        "duckdb:///a.duckdb?threads=2",
        "$URL",
        "postgresql://bob:$PW@db/x",
        "postgresql://bob:${PW}@db/x",
        "postgresql://bob@db/x",
    ],
)
def test_a_url_without_a_password_is_taken(url: str, tmp_path: Path) -> None:
    """It may come from the environment, whole or in part."""
    validate(run_file(str(write_recipe(tmp_path, f"cfg.etl.source = SqlSource(url={url!r}, table='t')"))))


MODEL = """
import typing
from mlprod.models.mlp import MLPConfig
@dataclass(kw_only=True)
class Mine:
    kind: {hint} = {default}
    def build(self, features, rngs):
        return MLPConfig(hidden=(4,)).build(features, rngs)
"""
HINTS = {
    "int": "3", "int | None": "None", "typing.Optional[int]": "3", "typing.Literal['relu', 'gelu']": "'gelu'", "typing.Any": "3",
    "tuple[int, str]": "(1, 'a')", "tuple[int, ...]": "()", "typing.Callable[[int], int]": "abs", "'int | typing.Any'": "3",
}  # fmt: skip


@pytest.mark.parametrize("hint", HINTS)
def test_a_model_of_the_users_own_may_have_any_typed_fields(hint: str, tmp_path: Path) -> None:
    """A dataclass in the user's own config file is as good as ours, its fields hinted as Python allows, in quotes or not."""
    path = write_recipe(tmp_path, "cfg.model = Mine()", MODEL.format(hint=hint, default=HINTS[hint]))
    cfg: Config = run_file(str(path))
    validate(cfg)


@pytest.mark.parametrize(
    "hint, default, bad",
    [("int", "3", "'x'"), ("typing.Literal['relu']", "'relu'", "'tanh'"), ("tuple[int, str]", "(1, 'a')", "(1, 2)")],
)
def test_a_model_of_the_users_own_is_checked(hint: str, default: str, bad: str, tmp_path: Path) -> None:
    """Its fields are checked as ours are."""
    path = write_recipe(tmp_path, f"cfg.model = Mine(kind={bad})", MODEL.format(hint=hint, default=default))
    with pytest.raises(ConfigError, match=r"config\.model\.kind="):
        validate(run_file(str(path)))


def test_a_config_saved_before_a_field_was_there_is_the_same() -> None:
    """What was saved by a program without a field equals a config with its default, in sections and lists of them too."""
    cfg = run_file(str(RECIPE))
    whole = compare.as_json(cfg)
    older = json.loads(json.dumps(whole))
    del (
        older["seed"],
        older["etl"]["bad_rows"],
        older["etl"]["columns"][0]["missing"],
        older["mesh"]["fsdp"],
        older["mesh"]["data"],
    )
    del older["init"]
    assert compare.differences(compare.completed(older, cfg), whole) == {}
    changed = dataclasses.replace(cfg, seed=7)
    assert compare.differences(compare.completed(older, changed), compare.as_json(changed)) == {"seed": (cfg.seed, 7)}
    data = compare.data_json(cfg.etl)
    assert compare.completed({k: v for k, v in data.items() if k != "dedup"}, cfg.etl, DATA) == data
