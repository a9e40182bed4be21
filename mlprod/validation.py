"""The rules of a config: every field's type, choices and range, and the rules between fields.

Promise: what passes here needs no second look inside; every mistake names field, value, rule and way out. No file and no
device is touched.
"""

import dataclasses
import math
import re
import types
from collections.abc import Mapping
from typing import Any

from mlprod.config import (
    AUTO,
    HERE,
    LABEL_TYPES,
    METRICS,
    STORAGE_TYPES,
    AsOf,
    Bucket,
    ByColumn,
    ByGroup,
    ByHash,
    ByTime,
    Column,
    ColumnRule,
    Config,
    Cross,
    CsvSource,
    Equals,
    EtlConfig,
    Given,
    Histories,
    IsMissing,
    Matches,
    NextToken,
    OneOf,
    SqlSource,
    TextSource,
    TimeCycle,
    TimePart,
    TokenizerFile,
    UniqueKey,
    Within,
    of_columns,
    walk,
)
from mlprod.errors import ConfigError, nearest
from mlprod.hints import mismatch

TEXT_COLUMNS = ("text", "file")  # of text files
RESERVED = ("numeric", "label", "weight", "row_id")  # keys of a batch that are not columns
SECRETS = r"\w*(password|passwd|pwd|passphrase|passcode|token|secret|credentials_base64)|odbc_connect"  # options of a URL
_PASSWORD = re.compile(rf"://[^:@?]*:(?!\$(\w+|\{{\w+\}})@)[^@]+@|[?&]({SECRETS})=(?!\$)", re.IGNORECASE)
_WORD = re.compile(rf"(?<=://)([^:@?/\s]*):(?!\$(?:\w+|\{{\w+\}})@)\S+@|([?&](?:{SECRETS})=)(?!\$)[^&\s'\"]+", re.IGNORECASE)
_CLUSTER = re.compile(r"dask(\+tls)?://(\[[0-9a-fA-F:.]+\]|[^/:@?#\[\]\s]+):(?P<port>\d{1,5})")


def _check_field(path: str, field: dataclasses.Field[Any], hint: Any, value: Any) -> None:
    """Raises ConfigError when the field's value has another type than declared, or lies outside its choices or range."""
    wrong = mismatch(value, hint)
    if wrong:
        raise ConfigError(f"config.{path}={wrong}")
    meta = field.metadata
    choices, low, high = meta.get("choices", ()), meta.get("low", -math.inf), meta.get("high", math.inf)
    if choices and value not in choices:
        raise ConfigError(f"config.{path}={value!r} must be one of {', '.join(map(repr, choices))}")
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, int | float) and not (low <= item <= high):  # NaN is outside every range
            limit = f">= {low}" if high == math.inf else f"from {low} to {high}"
            raise ConfigError(f"config.{path}={value!r} must be {limit}")


def validate(cfg: Config) -> None:
    """Checks every field's type and range, and the rules between fields. Touches no file and no device.

    Raises:
        ConfigError: naming the field, its value, the rule and the way out.
    """
    for path, field, hint, value in walk(cfg):
        _check_field(path, field, hint, value)
    if cfg.mesh.fsdp != (-1,) and not all(size > 0 for size in cfg.mesh.fsdp):
        raise ConfigError(f"config.mesh.fsdp={cfg.mesh.fsdp} must be >= 1 each, or (-1,) for the devices left")
    if isinstance(cfg.model, type):
        raise ConfigError(f"config.model={cfg.model.__name__} is a class; call it: {cfg.model.__name__}()")
    for path, folder in (("workdir", cfg.workdir), ("dataset", cfg.dataset)):
        if not folder:
            raise ConfigError(f"config.{path}='' must name a folder")
    if not dataclasses.is_dataclass(cfg.model) or not callable(getattr(cfg.model, "build", None)):
        raise ConfigError(f"config.model={type(cfg.model).__name__} must be a dataclass with build(features, rngs)")
    for i, other in enumerate(cfg.tracking.others):
        if not dataclasses.is_dataclass(other) or isinstance(other, type) or not callable(getattr(other, "open", None)):
            raise ConfigError(f"config.tracking.others[{i}]={other!r} must be an instance of a dataclass with open(run)")
    if (cfg.steps > 0) == (cfg.epochs > 0):
        raise ConfigError(
            f"config.steps={cfg.steps} and config.epochs={cfg.epochs}: set exactly one of them above 0 and the other to 0"
        )
    if cfg.loader.num_lanes and cfg.loader.global_batch % cfg.loader.num_lanes:
        raise ConfigError(
            f"config.loader.num_lanes={cfg.loader.num_lanes} does not divide config.loader.global_batch={cfg.loader.global_batch}"
        )
    _validate_evaluation(cfg)
    if cfg.loss.class_weight != "none" and isinstance(cfg.etl.label, NextToken):
        raise ConfigError(
            f"config.loss.class_weight={cfg.loss.class_weight!r} is for labels of classes, and config.etl.label=NextToken() has "
            f"none; set it to 'none'"
        )
    _validate_skip(cfg.loader.skip, cfg.loader.global_batch)
    validate_etl(cfg.etl)
    if cfg.tracking.checkpoints and cfg.tracking.wandb != "off":
        _validate_sent(cfg.etl)


def _validate_evaluation(cfg: Config) -> None:
    """A metric that the task has, and evaluations to stop by or to choose among."""
    metric, known = cfg.checkpoint.keep_best, METRICS[cfg.etl.label.task]
    if metric not in ("", "auto", *known):
        raise ConfigError(
            f"config.checkpoint.keep_best={metric!r} is no metric of {cfg.etl.label.task}; give one of {', '.join(known)}"
        )
    if not metric and (cfg.eval.patience or cfg.eval.use == "best"):
        raise ConfigError("config.checkpoint.keep_best='' names no metric, by which config.eval.patience and use='best' go")
    if cfg.eval.patience and not cfg.eval.every:
        raise ConfigError(f"config.eval.patience={cfg.eval.patience} needs config.eval.every, the steps between evaluations")


def _validate_skip(skip: tuple[tuple[int, int], ...], global_batch: int) -> None:
    """Ranges in ascending order, of whole batches."""
    end = 0
    for a, b in skip:
        if not end <= a < b or a % global_batch or b % global_batch:
            raise ConfigError(
                f"config.loader.skip: ({a}, {b}) must be a range of example positions in whole batches of {global_batch}, "
                f"behind the one before it"
            )
        end = b


def refuse_password(field: str, url: str) -> None:
    """Raises ConfigError when a database URL holds a password as it is: it would be kept beside the run."""
    if _PASSWORD.search(url):
        raise ConfigError(f"{field} holds a password; write $NAME in its place and set NAME in the environment")


def without_passwords(text: str) -> str:
    """Returns text with `***` for the passwords of URLs in it; names of variables stay."""
    return _WORD.sub(lambda found: f"{found[2]}***" if found[2] else f"{found[1]}:***@", text)


def validate_etl(etl: EtlConfig) -> None:
    """The rules between the fields of `config.etl`."""
    if etl.group_rows & (etl.group_rows - 1):
        raise ConfigError(f"config.etl.group_rows={etl.group_rows} must be a power of two")
    _validate_source("config.etl.source", etl.source)
    if isinstance(etl.source, TextSource):
        _validate_text(etl.source, etl)
    if not isinstance(etl.transform, types.FunctionType):
        raise ConfigError(f"config.etl.transform={etl.transform!r} must be a function made by def: its source is kept")
    _validate_executor(etl.executor)
    if etl.executor != "threads" and not etl.transform.__qualname__.isidentifier():
        others = "processes" if etl.executor in HERE else "a cluster"
        raise ConfigError(
            f"config.etl.transform={etl.transform.__qualname__} cannot be sent to {others}; make it a function at the top of "
            f"its file, or set config.etl.executor='threads'"
        )
    for column in etl.columns:
        _validate_column(column)
    _validate_auto(etl)
    _validate_roles(etl)
    names = [column.name for column in etl.columns]
    _validate_names("key", etl.key, names)
    _validate_split(etl)
    _validate_dedup(etl)


def _validate_executor(executor: str) -> None:
    """One of this machine, or the address of a Dask scheduler."""
    if executor in HERE:
        return
    found = _CLUSTER.fullmatch(executor)
    if not found or not 0 < int(found["port"]) < 1 << 16:
        near = nearest(executor, HERE) if "/" not in executor and ":" not in executor else ", such as dask://10.0.0.5:8786"
        raise ConfigError(
            f"config.etl.executor={executor!r} must be 'threads', 'processes', dask://HOST:PORT or dask+tls://HOST:PORT{near}"
        )


def _validate_source(where: str, source: Any) -> None:
    """Files that are named and can be read, or a database."""
    if isinstance(source, SqlSource):
        _validate_sql(where, source)
        return
    if not source.path:
        raise ConfigError(f"{where}.path='' must name a file, a folder, a pattern such as rows-*.csv, or an address")
    if isinstance(source, CsvSource):
        if len(source.delimiter) != 1:
            raise ConfigError(f"{where}.delimiter={source.delimiter!r} must be one character")
        _validate_encoding(where, source.encoding)


def _validate_sql(where: str, source: SqlSource) -> None:
    """A URL without a password, and either a table or a query."""
    refuse_password(f"{where}.url", source.url)
    if bool(source.table) == bool(source.query.strip()):
        raise ConfigError(f"{where}: table={source.table!r} and query={source.query!r}; give a table's name or a query")
    if source.query and source.joins:
        raise ConfigError(f"{where}.joins are for {where}.table; write the joins into the query")


def _validate_text(source: TextSource, etl: EtlConfig) -> None:
    """A label that text files can give, of columns that they have."""
    if not isinstance(etl.label, NextToken):
        raise ConfigError(
            f"config.etl.label={type(etl.label).__name__} is for rows with features; text files are learned by NextToken()"
        )
    if etl.label.column != "text":
        raise ConfigError(f"config.etl.label.column={etl.label.column!r} must be 'text', the column of text files; leave it out")
    try:
        source.separator.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"config.etl.source.separator={source.separator!r} is no text that UTF-8 can hold") from error
    looked_up = {name for lookup in etl.lookups for name in lookup.columns}
    for column in etl.columns:
        name = column.source or column.name
        if name not in TEXT_COLUMNS and column.extracted and column.name not in looked_up:
            raise ConfigError(f"config.etl.columns: {name!r} is no column of text files; they have {' and '.join(TEXT_COLUMNS)}")
        if name == "file" and column.type not in ("string", AUTO):
            raise ConfigError(f"config.etl.columns: {column.name!r} is {column.type}; the name of a text file is 'string'")


def _validate_split(etl: EtlConfig) -> None:
    """Shares that leave something to train on, and columns that can split."""
    split, types_of = etl.split, {column.name: column.type for column in etl.columns}
    if isinstance(split, ByHash | ByGroup):
        if split.eval + split.test >= 1:
            raise ConfigError(f"config.etl.split: eval={split.eval} + test={split.test} leave nothing to train on")
        if isinstance(split, ByGroup):
            _validate_names("split.columns", split.columns, list(types_of))
            if not split.columns:
                raise ConfigError("config.etl.split.columns=() must name a column; ByHash() splits row by row")
        return
    _validate_names("split.column", (split.column,), list(types_of))
    allowed = ("timestamp", "int64", "float64") if isinstance(split, ByTime) else ("string", "int64", "bool")
    if types_of[split.column] not in (*allowed, AUTO):
        raise ConfigError(f"config.etl.split.column={split.column!r} is {types_of[split.column]}; it must be one of {allowed}")
    both = set(split.eval) & set(split.test) if isinstance(split, ByColumn) else set()
    if both:
        raise ConfigError(f"config.etl.split: {sorted(both)[0]!r} is named for eval and for test")


def _validate_dedup(etl: EtlConfig) -> None:
    """A key to keep one row of, and a column that can say which."""
    if etl.dedup == "key" and not etl.key:
        raise ConfigError("config.etl.dedup='key' needs config.etl.key, the columns that identify a row")
    if etl.keep and etl.dedup != "key":
        raise ConfigError(f"config.etl.keep={etl.keep!r} is for config.etl.dedup='key', not {etl.dedup!r}")
    if etl.keep:
        _validate_names("keep", (etl.keep,), [column.name for column in etl.columns])
        kind = next(column.type for column in etl.columns if column.name == etl.keep)
        if kind == "string":
            raise ConfigError(f"config.etl.keep={etl.keep!r} is string; it must be a number or a timestamp")


def _validate_encoding(where: str, name: str) -> None:
    """An encoding of text that Python knows."""
    try:
        "".encode(name)
    except LookupError as error:
        raise ConfigError(f"{where}.encoding={name!r} is unknown; give one such as utf-8, latin-1 or utf-16") from error


def _validate_column(column: Column) -> None:
    """The rules of one column: a name that is not ours, and a type that its role can use."""
    where = f"config.etl.columns: {column.name!r}"
    if not column.extracted and (column.source or (column.derived and not isinstance(column.made, Given))):
        raise ConfigError(f"{where} is made by the hook or of others, and has a source or another way too; only one can be")
    if column.buckets and not (column.role == "feature" and column.kind != "numeric"):
        raise ConfigError(f"{where} has buckets={column.buckets}, which are for categorical features and lists; leave it at 0")
    _validate_list(column, where)
    if column.name.startswith(("_", "packed_")):
        raise ConfigError(f"{where} must not begin with '_' or 'packed_', which are names of ours")
    if column.name in RESERVED or "/" in column.name or "." in column.name:
        raise ConfigError(f"{where} must not hold '/' or '.', nor be one of {', '.join(RESERVED)}")
    if column.role == "feature" and column.kind == "numeric" and column.type in ("string", "timestamp"):
        raise ConfigError(f"{where} is {column.type}; a numeric feature must be int64, float64 or bool")
    shaped = column.log or column.clip_low > -math.inf or column.clip_high < math.inf or column.scale != "model"
    if shaped and not (column.role == "feature" and column.kind == "numeric"):
        raise ConfigError(f"{where} has clip_low, clip_high, log or scale, which are for numeric features; leave them out")
    if not column.clip_low < column.clip_high:
        raise ConfigError(f"{where} has clip_low={column.clip_low:g}, which must be below clip_high={column.clip_high:g}")
    if column.missing in ("mean", "constant") and not (column.role == "feature" and column.kind == "numeric"):
        raise ConfigError(f"{where} has missing={column.missing!r}, which is for numeric features; leave it at 'fill'")
    if column.constant and column.missing != "constant":
        raise ConfigError(f"{where} has constant={column.constant:g} and missing={column.missing!r}; set missing='constant'")
    if column.role == "feature" and column.kind == "categorical" and column.type in ("float64", "timestamp"):
        raise ConfigError(f"{where} is {column.type}; a categorical must be string, int64 or bool")


def _validate_list(column: Column, where: str) -> None:
    """A list's type, length and separator."""
    if column.kind != "list":
        if column.max_len:
            raise ConfigError(f"{where} has max_len={column.max_len}, which is for kind='list'; leave it at 0")
        return
    if column.role != "feature" or column.type != "string" or not isinstance(column.made, Given):
        raise ConfigError(f"{where} has kind='list', which is for features of type 'string' that are not made of others")
    if not column.max_len or not column.separator:
        raise ConfigError(
            f"{where} has max_len={column.max_len} and separator={column.separator!r}; of a list, say how many values of a row a "
            f"model sees, and what is between them in a text"
        )


TIMES = ("timestamp", "int64", "float64")


def _validate_auto(etl: EtlConfig) -> None:
    """Types are found in the source: what comes otherwise must have one before."""
    for column in etl.columns:
        whence = _whence(etl, column)
        if column.type == AUTO and whence:
            raise ConfigError(
                f"config.etl.columns: {column.name!r} is {whence}; declare its type, one of {', '.join(STORAGE_TYPES)}"
            )


def _whence(etl: EtlConfig, column: Column) -> str:
    """Returns where a column comes from in words, "" of one of the source that no lookup is read by."""
    if not column.extracted:
        return "made by the hook" if column.derived else "made of others"
    if any(column.name in (lookup.key, *lookup.columns) for lookup in etl.lookups):
        return "of a lookup"
    return "made of other rows" if any(column.name in step.columns for step in etl.gathered) else ""


def _validate_roles(etl: EtlConfig) -> None:
    """The rules between columns: names once, one weight at most, features but never the label among them."""
    names = [column.name for column in etl.columns]
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise ConfigError(f"config.etl.columns names {doubles[0]!r} twice")
    weights = [column for column in etl.columns if column.role == "weight"]
    if len(weights) > 1 or any(column.type not in ("int64", "float64", "bool", AUTO) for column in weights):
        raise ConfigError(f"config.etl.columns: weight {[c.name for c in weights]} must be one column of int64, float64 or bool")
    clash = next((name for name in names if name.startswith("key_") and name.removeprefix("key_") in etl.key), None)
    if clash:
        key = clash.removeprefix("key_")
        raise ConfigError(f"config.etl.columns: {clash!r} is the stored name of the key column {key!r}; rename it")
    from_source = [c.source or c.name for c in etl.columns if c.extracted]
    twice = sorted({name for name in from_source if from_source.count(name) > 1})
    if twice:
        raise ConfigError(f"config.etl.columns takes {twice[0]!r} of the source twice; derive the second by config.etl.transform")
    label = etl.label.column
    _validate_label(etl)
    _validate_tokens(etl)
    _validate_growth(etl)
    _validate_gathered(etl)
    _validate_made(etl)
    _validate_sensitive(etl)
    _validate_rules(etl)
    if label in (*from_source, *names):
        raise ConfigError(f"config.etl.label.column={label!r} is also in config.etl.columns; the label must not be a feature")
    if not isinstance(etl.label, NextToken) and not any(column.role == "feature" for column in etl.columns):
        raise ConfigError("config.etl.columns has no column with role 'feature'")


def _validate_growth(etl: EtlConfig) -> None:
    """What is read again must be told from what is new, and who is forgotten from others."""
    if etl.exclude_keys and not etl.key:
        raise ConfigError(f"config.etl.exclude_keys={etl.exclude_keys!r} needs config.etl.key, the columns that it names")
    if etl.grow == "append" and isinstance(etl.label, NextToken):
        raise ConfigError("config.etl.grow='append' is not for texts, which are packed one behind the other; leave it at 'refit'")
    if etl.grow == "append" and etl.dedup == "none" and isinstance(etl.source, SqlSource):
        raise ConfigError(
            "config.etl.grow='append' of a table needs dedup='exact' or 'key': rows that are read again could not be told from "
            "new ones"
        )


def _validate_gathered(etl: EtlConfig) -> None:
    """Steps over columns that are there before them."""
    if etl.gathered and etl.grow == "append":
        raise ConfigError("config.etl.grow='append' is not for config.etl.gathered: new rows need old ones; leave it at 'refit'")
    if etl.gathered and isinstance(etl.label, NextToken):
        raise ConfigError("config.etl.gathered is not for texts; leave it out")
    made = {name for step in etl.gathered for name in step.columns}
    for where, name in [("key", name) for name in etl.key] + [("lookups", lookup.key) for lookup in etl.lookups]:
        if name in made:
            raise ConfigError(
                f"config.etl.{where}: {name!r} is made of other rows (config.etl.gathered); take a column of the source"
            )
    declared = {c.name: c for c in etl.columns if c.extracted}
    before = {name: c for name, c in declared.items() if name not in made}
    for i, step in enumerate(etl.gathered):
        where = f"config.etl.gathered[{i}]"
        _validate_used(where, step, before)
        for name in step.columns:
            if name not in declared or declared[name].source:
                raise ConfigError(f"{where} makes {name!r}; declare it in config.etl.columns, without a source, made or derived")
            if isinstance(step, Histories) and declared[name].type != "string":
                raise ConfigError(f"{where} makes {name!r}, a list; declare it as multivalued({name!r}, max_len={step.max_len})")
            if name in before:
                raise ConfigError(f"{where} makes {name!r}, which a step before it makes too")
            before[name] = declared[name]
        if isinstance(step, AsOf):
            _validate_source(f"{where}.source", step.source)


def _validate_used(where: str, step: Histories | AsOf, before: Mapping[str, Column]) -> None:
    """Columns that a step can use; `before`: those that there are."""
    time, values = (step.order, step.columns.values()) if isinstance(step, Histories) else (step.time, ())
    for name in (*step.by, time, *values):
        if name not in before:
            raise ConfigError(f"{where}: {name!r} is no column of the rows before it{nearest(name, list(before))}")
    if not step.by or not step.columns:
        raise ConfigError(f"{where}: by={step.by} and columns={step.columns} must name some")
    if before[time].type not in (*TIMES, AUTO):
        raise ConfigError(f"{where}: {time!r} is {before[time].type}; it must be one of {', '.join(TIMES)}")
    for name in values:
        if before[name].type not in (*LABEL_TYPES, AUTO):
            raise ConfigError(f"{where}: {name!r} is {before[name].type}; a history is of {', '.join(LABEL_TYPES)}")


def _validate_made(etl: EtlConfig) -> None:
    """Columns made of others that stand before them, of types that they can be made of."""
    allowed = {TimePart: ("timestamp",), TimeCycle: ("timestamp",), Bucket: ("int64", "float64")} | {
        Cross: ("string", "int64", "bool")
    }
    makes = {TimePart: "int64", TimeCycle: "float64", Bucket: "int64", Cross: "string", IsMissing: "bool"}
    types: dict[str, str] = {}
    for column in etl.columns:
        where, made = f"config.etl.columns: {column.name!r}", column.made
        for name in of_columns(made):
            if name not in types:
                raise ConfigError(f"{where} is made of {name!r}, which is no column before it{nearest(name, list(types))}")
            kinds = allowed.get(type(made), STORAGE_TYPES)
            if types[name] not in (*kinds, AUTO):
                told = f"{type(made).__name__} is made of columns of {', '.join(kinds)}"
                raise ConfigError(f"{where}: {name!r} is {types[name]}; {told}")
        if column.type != makes.get(type(made), column.type):
            raise ConfigError(f"{where} is {column.type}; {type(made).__name__} makes {makes[type(made)]}")
        if isinstance(made, Bucket) and list(made.edges) != sorted(set(made.edges)):
            raise ConfigError(f"{where}: edges={made.edges} must ascend")
        if isinstance(made, Cross) and len(made.of) < 2:
            raise ConfigError(f"{where} crosses {made.of}; a cross is of two columns or more")
        types[column.name] = column.type


def _validate_sensitive(etl: EtlConfig) -> None:
    """What holds the values of sensitive columns is sensitive: crosses and histories."""
    sensitive = {c.name for c in etl.columns if c.sensitive}
    held = {c.name: c.made.of for c in etl.columns if isinstance(c.made, Cross)}
    held |= {name: (of,) for step in etl.gathered if isinstance(step, Histories) for name, of in step.columns.items()}
    for name, of in held.items():
        found = sorted(sensitive.intersection(of))
        if found and name not in sensitive:
            raise ConfigError(
                f"config.etl.columns: {name!r} holds values of {found[0]!r}, which is sensitive; set sensitive=True for it too"
            )


def _validate_sent(etl: EtlConfig) -> None:
    """Saved steps that W&B gets hold no value of a sensitive column: neither in their config nor as quantiles of a number."""
    sensitive = [c for c in etl.columns if c.sensitive]
    held = [(c.name, f"scale={c.scale!r}") for c in sensitive if c.scale in ("quantile", "piecewise")]
    if isinstance(etl.split, ByTime | ByColumn) and (etl.split.eval or etl.split.test):
        held.append((etl.split.column, "config.etl.split"))
    if isinstance(etl.source, SqlSource) and (etl.source.start or etl.source.stop):
        held.append((etl.source.watermark, "config.etl.source.start or .stop"))
    held += [(rule.column, f"config.etl.rules[{i}]") for i, rule in enumerate(etl.rules) if isinstance(rule, OneOf)]
    for name, by in held:
        if name in {c.name for c in sensitive}:
            raise ConfigError(
                f"config.tracking.checkpoints=True would send values of {name!r}, which is sensitive, to W&B: a saved step holds "
                f"those of {by}; set it to False, or do without"
            )


def _validate_rules(etl: EtlConfig) -> None:
    """Rules about columns that are there, of types that they can be about."""
    types = {c.name: c.type for c in etl.columns} | {etl.label.column: AUTO}
    allowed = {Matches: ("string",), OneOf: ("string", "int64", "bool"), Within: ("int64", "float64", "timestamp")}
    for i, rule in enumerate(etl.rules):
        where = f"config.etl.rules[{i}]"
        if isinstance(rule, ColumnRule):
            name, kinds = rule.column, allowed.get(type(rule), STORAGE_TYPES)
            if name not in types:
                raise ConfigError(f"{where}.column={name!r} is not in config.etl.columns{nearest(name, list(types))}")
            if types[name] not in (*kinds, AUTO):
                told = f"{type(rule).__name__} is for columns of {', '.join(kinds)}"
                raise ConfigError(f"{where}: {name!r} is {types[name]}; {told}")
        if isinstance(rule, Within) and not (rule.low or rule.high):
            raise ConfigError(f"{where}: Within(column={rule.column!r}) has neither low nor high; set one, or leave the rule out")
        if isinstance(rule, UniqueKey) and (not etl.key or etl.dedup != "exact"):
            raise ConfigError(f"{where}: UniqueKey() needs config.etl.key and dedup='exact': 'key' keeps one of each")
        if isinstance(rule, Matches):
            try:
                re.compile(rule.pattern)
            except re.error as error:
                raise ConfigError(f"{where}.pattern={rule.pattern!r} is no regular expression: {error}") from error


def _validate_label(etl: EtlConfig) -> None:
    """A value that its column can have."""
    label = etl.label
    if not isinstance(label, Equals) or label.type == "string":
        return
    if not re.fullmatch(r"-?\d+" if label.type == "int64" else "[01]", label.value):
        of = "a whole number" if label.type == "int64" else "0 or 1"
        raise ConfigError(f"config.etl.label.value={label.value!r} must be {of}, for config.etl.label.type={label.type!r}")


def _validate_tokens(etl: EtlConfig) -> None:
    """Columns beside texts, of which nothing is learned, and a tokenizer that can be read."""
    label = etl.label
    if not isinstance(label, NextToken):
        return
    for column in etl.columns:
        if column.role in ("feature", "weight"):
            raise ConfigError(
                f"config.etl.columns: {column.name!r} has the role {column.role!r}, but config.etl.label=NextToken() learns from "
                f"the texts alone; give it the role 'input', 'group' or 'time', or leave it out"
            )
    if not label.column:
        raise ConfigError("config.etl.label.column='' must name the column of the texts")
    if isinstance(label.tokenizer, TokenizerFile):
        for name, value in (("path", label.tokenizer.path), ("end", label.tokenizer.end)):
            if not value:
                what = "a tokenizer.json" if name == "path" else "the token for the end of a document"
                raise ConfigError(f"config.etl.label.tokenizer.{name}='' must name {what}")


def _validate_names(field: str, named: tuple[str, ...], known: list[str]) -> None:
    """Every column that a field names exists, and is named once."""
    for name in named:
        if name not in known:
            raise ConfigError(f"config.etl.{field}: {name!r} is not in config.etl.columns{nearest(name, known)}")
        if named.count(name) > 1:
            raise ConfigError(f"config.etl.{field} names {name!r} twice")
