"""No text becomes code: the package's syntax trees hold nothing that unpickles, evaluates, or hands a string to a shell."""

import ast
from collections.abc import Iterator

import pytest

from tests.test_layers import TREES

BANNED_MODULES = {
    "pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "imp", "yaml", "code", "codeop",
    "pty", "commands", "xml", "ctypes", "cffi",
}  # fmt: skip
BANNED_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.startfile", "subprocess.getoutput",
    "subprocess.getstatusoutput", "np.load", "numpy.load", "np.fromfile", "torch.load", "pd.read_pickle", "pandas.read_pickle",
    "pa.deserialize", "tempfile.mktemp",
}  # fmt: skip
BANNED_METHODS = (
    "eval", "exec", "query", "read_pickle", "to_pickle", "execl", "execv", "execvp", "spawnl", "spawnv", "extractall",
)  # fmt: skip
BANNED_WORDS = {"shell", "allow_pickle", "autoescape"}  # keyword arguments, but for autoescape=True

# Each line is one place, and why it is none of what is meant.
ALLOWED = {
    ("mlprod.recipe", "runpy.run_path"),  # a config is a Python file of the user's own, named on the command line
    ("mlprod.etl.rules", "as_frame(pa.table(naive)).eval"),  # an expression of that file, about columns, in pandas' own language
    ("mlprod.processes.supervise", "pty"),  # a terminal's two ends, so that a child's progress looks as it does without us
    ("mlprod.processes.supervise", "ctypes"),  # prctl: a child ends with its parent
    ("mlprod.etl.pack", "np.fromfile"),  # numbers of the build's own work folder: bytes, no objects
}


def found(tree: ast.AST) -> Iterator[str]:
    """Yields what a tree imports or calls that could make code of text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in BANNED_MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in BANNED_MODULES:
            yield node.module
        elif isinstance(node, ast.Call):
            yield from _of_call(node)


def _of_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    last = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    if name in BANNED_CALLS or last in BANNED_METHODS or name.startswith("runpy."):
        yield name
    for word in node.keywords:
        if word.arg in BANNED_WORDS and not (word.arg == "autoescape" and ast.unparse(word.value) == "True"):
            yield f"{name}({word.arg}=...)"
    if name.endswith("jinja2.Environment") and "autoescape" not in {word.arg for word in node.keywords}:
        yield f"{name}() without autoescape"
    if name.startswith("subprocess.") and node.args and isinstance(node.args[0], ast.Constant | ast.JoinedStr):
        yield f"{name} of one text"


def test_nothing_becomes_code() -> None:
    """But for the places in ALLOWED, all of which there are."""
    there = {(module, what) for module, tree in TREES.items() for what in found(tree)}
    assert there == ALLOWED


PLANTED = (
    "import pickle", "from pickle import loads", "import yaml", "from ctypes import CDLL", "eval(text)", "exec(text)",
    "compile(text, '', 'exec')", "__import__(name)", "os.system(text)", "os.popen(text)", "np.load(path)",
    "np.load(path, allow_pickle=True)", "frame.eval(text)", "frame.query(text)", "pd.read_pickle(path)", "runpy.run_path(path)",
    "runpy.run_module(name)", "subprocess.run(words, shell=True)", "subprocess.run('ls -l')", "subprocess.Popen(f'ls {path}')",
    "subprocess.getoutput(text)", "os.execvp(name, words)", "archive.extractall(path)", "tempfile.mktemp()",
    "jinja2.Environment(loader=loader)", "jinja2.Environment(autoescape=False)",
)  # fmt: skip


@pytest.mark.parametrize("line", PLANTED)
def test_a_planted_line_is_seen(line: str) -> None:
    """In a function, where it would be hidden."""
    assert list(found(ast.parse(f"def hidden():\n    {line}\n")))


def test_children_are_started_by_words_alone() -> None:
    """The first of which is this interpreter, a program named in the code, or the command behind `mlprod run --`."""
    starts = {
        (module, ast.unparse(node.args[0]))
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("subprocess.run", "subprocess.Popen")
    }
    assert starts == {
        ("mlprod.cli", "[sys.executable, '-m', 'mlprod.etl', '--config', config_file, *overrides]"), ("mlprod.cli", "child"),
        ("mlprod.doctor.programs", "command"), ("mlprod.runtime", "words"), ("mlprod.processes.supervise", "self._command"),
    }  # fmt: skip
