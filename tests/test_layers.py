"""Imports go down only, each dependency has one door, and nothing runs what it should not: read from the syntax trees."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "mlprod"
TREES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
}

# A module may import lower rows, those named before it in its row, and its own package. A new module needs a place here.
ROWS = (
    ("cores", "documents", "errors", "interrupt", "locks", "own_code", "pieces"),
    (
        "hashing",
        "hints",
        "config",
        "validation",
        "discreet",
        "compare",
        "recipe",
        "manifest",
        "made",
        "features",
        "order",
        "ledger",
        "bad_numbers",
    ),
    ("store", "console", "collectives", "etl", "data", "objective", "models", "metrics", "optim", "parallel"),
    ("processes", "digest", "state", "step"),
    ("plan", "checkpoint", "tracking", "trackers", "attempts", "early_stop", "runtime", "resume", "compilations", "tracing"),
    ("scores", "segments", "evaluate", "predict", "memory", "compiled", "check", "topology", "checkpoints"),
    ("audit", "changes", "datasets", "reference", "init", "doctor"),
    ("report",),
    ("train",),
    ("cli",),
)
PLACES = {name: (rank, i) for rank, row in enumerate(ROWS) for i, name in enumerate(row)}

DOORS = {  # dependency -> the only modules (or packages of ours) that import it
    "orbax": {"checkpoint"}, "tensorstore": {"checkpoint"},
    "wandb": {"trackers"}, "tensorboardX": {"trackers"}, "grain": {"data"}, "pandas": {"etl"}, "sqlalchemy": {"etl"},
    "tokenizers": {"etl"}, "distributed": {"etl"}, "adbc_driver_manager": {"etl"}, "adbc_driver_postgresql": {"etl"},
    "duckdb": set(), "pymysql": set(),
    "ml_collections": {"recipe"}, "absl": {"recipe"}, "importlib": {"cli", "runtime", "etl", "doctor"}, "runpy": {"recipe"},
    "subprocess": {"cli", "runtime", "doctor", "processes"}, "psutil": {"doctor", "runtime"},
    "packaging": {"doctor"}, "matplotlib": {"report"},
}  # fmt: skip
BANNED = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "imp", "yaml", "random"}


def unit(module: str) -> str:
    """`mlprod.etl.run` is `etl`, `mlprod.plan` is `plan`, `mlprod` itself is ''."""
    return (module.split(".") + [""])[1]


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yields (module, line) of what a tree imports, ours told apart from names in them: `from mlprod import plan` is a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in TREES else str(node.module)), node.lineno


EDGES = sorted({(here, there) for here, tree in TREES.items() for there, _ in imports(tree) if there.split(".")[0] == "mlprod"})
OUTSIDE = sorted({(here, there.split(".")[0]) for here, tree in TREES.items() for there, _ in imports(tree)})
TO_CLI = {("mlprod.train", "mlprod.cli"), ("mlprod.etl.__main__", "mlprod.cli")}


def goes_down(here: str, there: str) -> bool:
    """Whether the rule allows one module to import another."""
    a, b = unit(here), unit(there)
    if not b or a == b:  # `mlprod` itself holds the version; a package may import its own
        return True
    return PLACES[b] < PLACES[a]


def test_every_module_has_a_place() -> None:
    """One row of ROWS; a row of ROWS that names no module is out of date."""
    assert {unit(module) for module in TREES} - {""} == set(PLACES)


def test_imports_go_down() -> None:
    """Lower rows, earlier in the row, or the own package; the package itself imports nothing."""
    assert [
        f"{here} imports {there}" for here, there in EDGES if (here, there) not in TO_CLI and not goes_down(here, there)
    ] == []
    assert [there for here, there in EDGES if here == "mlprod"] == []


def test_only_the_two_starting_points_import_the_command_line() -> None:
    """`python -m mlprod.etl`, and `train.py` below its `__main__` guard, at the end of the file."""
    assert {(here, there) for here, there in EDGES if there == "mlprod.cli"} == TO_CLI
    *body, guard = TREES["mlprod.train"].body
    assert isinstance(guard, ast.If)
    assert ast.unparse(guard.test) == "__name__ == '__main__'"
    assert "mlprod.cli" in [name for name, _ in imports(guard)]
    assert "mlprod.cli" not in [name for node in body for name, _ in imports(node)]


def test_there_is_no_cycle() -> None:
    """Not even inside a package."""
    graph: dict[str, set[str]] = {}
    for here, there in EDGES:
        if (here, there) not in TO_CLI:
            graph.setdefault(here, set()).add(there)
    TopologicalSorter(graph).prepare()


def test_etl_and_data_meet_on_disk_only() -> None:
    """Neither imports the other: the manifest is what they share."""
    assert [(here, there) for here, there in EDGES if {unit(here), unit(there)} == {"etl", "data"}] == []


def test_models_know_no_mesh_and_parallel_no_model() -> None:
    """What a model is does not depend on how it is split."""
    assert [(here, there) for here, there in EDGES if {unit(here), unit(there)} == {"models", "parallel"}] == []


@pytest.mark.parametrize("name", DOORS)
def test_one_door_to(name: str) -> None:
    """So that a change of the dependency is a change of one place."""
    assert {unit(here) for here, there in OUTSIDE if there == name} <= DOORS[name]


def test_light_modules_import_the_standard_library_and_numpy_only() -> None:
    """What says which rows are a batch, and how rows are encoded, can be read and run anywhere."""
    heavy = {"jax", "flax", "optax", "grain", "orbax", "pandas", "pyarrow", "sqlalchemy", "wandb", "rich"}
    light = {*ROWS[0], *ROWS[1], "cli"}
    assert [(here, there) for here, there in OUTSIDE if unit(here) in light and there in heavy] == []
    assert [
        here for here, there in OUTSIDE if there == "numpy" and unit(here) in ("errors", "config", "compare", "recipe", "cli")
    ] == []


def test_imports_stand_at_the_top() -> None:
    """But for the trackers', seconds that a run without them does not pay, and the verbs, which `cli` imports when called."""
    inside = {
        (here, name)
        for here, tree in TREES.items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for name, _ in imports(function)
    }
    events = {("mlprod.trackers.tensorboard", name) for name in ("tensorboardX.proto", "tensorboardX.record_writer")}
    assert inside == {("mlprod.trackers.wandb_run", "wandb"), *events}


def test_there_is_no_drawer() -> None:
    """A helper lives with its one caller or gets a file named by its job."""
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "base"}
    assert [module for module in TREES if module.split(".")[-1] in drawers] == []


def nodes(kind: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    """Yields (module:line, node) of every node of a kind in the package."""
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, kind):
                yield f"{module}:{getattr(node, 'lineno', 0)}", node


def test_there_are_no_globals() -> None:
    """No function rebinds a module's name."""
    assert [where for where, _ in nodes(ast.Global)] == []


CONFIGS = {"cfg", "config", "etl", "options"}


def reads_softly(call: ast.Call) -> bool:
    """Whether a call reads a config's field by a name that need not be there: cfg.get("x"), getattr(cfg.optim, "x", 1)."""
    if isinstance(call.func, ast.Attribute) and call.func.attr == "get":
        return ast.unparse(call.func.value).split(".")[0] in CONFIGS
    soft = isinstance(call.func, ast.Name) and call.func.id in ("getattr", "hasattr")
    return soft and ast.unparse(call.args[0]).split(".")[0] in CONFIGS and ast.unparse(call.args[1]) != "'build'"


def test_no_field_is_read_softly() -> None:
    """A field is declared once, with its default: no `config.get`, no `getattr(config, ...)` (but for a model's `build`)."""
    calls = ((where, node) for where, node in nodes(ast.Call) if isinstance(node, ast.Call))
    assert [f"{where} {ast.unparse(call)}" for where, call in calls if reads_softly(call)] == []


def test_nothing_is_unpickled_evaluated_or_given_to_a_shell() -> None:
    """What is on disk or in a config is data; only the user's own config file is run, by `recipe`."""
    assert [(here, there) for here, there in OUTSIDE if there in BANNED] == []
    calls = [(where, node) for where, node in nodes(ast.Call) if isinstance(node, ast.Call)]
    names = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "np.load", "numpy.load", "torch.load"}
    assert [f"{where} {ast.unparse(call)}" for where, call in calls if ast.unparse(call.func) in names] == []
    shells = [where for where, call in calls for word in call.keywords if word.arg in ("shell", "allow_pickle")]
    assert shells == []


def test_queries_are_never_made_of_text() -> None:
    """Values are bound and names quoted by SQLAlchemy; the demo's fixed statement and the user's own query are the only text."""
    texts = [
        (where, node)
        for where, node in nodes(ast.Call)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("sa.text")
    ]
    assert [
        where for where, node in texts if not where.startswith("mlprod.etl.demo:") or not isinstance(node.args[0], ast.Constant)
    ] == [where for where, _ in texts if where.startswith("mlprod.etl.query:")]
    assert len([where for where, _ in texts if where.startswith("mlprod.etl.query:")]) == 1


def test_the_rule_can_fail() -> None:
    """An import that goes up, and a soft read, are seen."""
    assert not goes_down("mlprod.config", "mlprod.plan")
    assert not goes_down("mlprod.data.loader", "mlprod.objective")
    assert goes_down("mlprod.etl.run", "mlprod.etl.fit")
    call = ast.parse("cfg.optim.get('x', 1)").body[0]
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    assert reads_softly(call.value)
    assert Path(__file__).stem not in PLACES
