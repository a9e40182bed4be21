"""README and docs point at real files, fields, verbs and targets; no tracked file knows this machine or a registry."""

import dataclasses
import re
import subprocess
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlprod import cli, reference
from mlprod.config import Config
from mlprod.models.mlp import MLPConfig
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])

FOLDERS = "mlprod|configs|launch|tests|benchmarks|docs"
PATH = re.compile(rf"(?<![\w/.$-])((?:{FOLDERS})/[\w./-]*\w)")
WRITTEN = {"configs/rows.py", "configs/planes.py"}  # by a command of the page
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
OVERRIDE = re.compile(r"--(?:no)?config\.([a-z_][\w.]*\w)")
FIELD = re.compile(r"(?<![\w/.-])config\.([a-z_][\w.]*\w)")


def field_paths(hint: Any = Config, path: str = "") -> Iterator[str]:
    """Yields the dotted path of every field and section below a type: those of each kind of source, split and element."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is tuple:
        for arg in args:
            yield from field_paths(arg, path)
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        for field in dataclasses.fields(hint):
            here = f"{path}.{field.name}".lstrip(".")
            yield here
            yield from field_paths(MLPConfig if here == "model" else hints[field.name], here)


KNOWN_FIELDS = set(field_paths())


def tracked() -> list[Path]:
    """Every file that git has, or would take."""
    words = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def texts() -> Iterator[tuple[Path, str]]:
    """Yields the tracked files that are text."""
    for path in tracked():
        body = path.read_bytes()
        if b"\0" not in body:
            yield path, body.decode("utf-8")


def test_the_config_reference_is_what_the_code_says() -> None:
    """`python -m mlprod.reference > docs/config.md` writes it."""
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == reference.text()


def test_there_is_a_readme() -> None:
    """With more than a title."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) > 20


@each_page
def test_a_page_names_real_files(page: Path) -> None:
    """Whatever stands in a text as a path of the project is there."""
    named = set(PATH.findall(page.read_text(encoding="utf-8"))) - WRITTEN
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


@each_page
def test_a_page_links_to_real_files(page: Path) -> None:
    """Relative to the page, as a browser takes it."""
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@each_page
def test_a_page_names_real_fields(page: Path) -> None:
    """`--config.x.y` on a command line, `config.x.y` in a sentence."""
    text = page.read_text(encoding="utf-8")
    assert [name for name in OVERRIDE.findall(text) if name not in KNOWN_FIELDS] == []
    assert [name for name in FIELD.findall(text) if name not in KNOWN_FIELDS and name not in ("py", "json")] == []


@each_page
def test_a_page_names_real_verbs_and_targets(page: Path) -> None:
    """`mlprod VERB ...` in a block or in backticks, `make TARGET` likewise."""
    text = page.read_text(encoding="utf-8")
    verbs = re.findall(r"(?:^|`)mlprod ([a-z]+)", text, re.MULTILINE)
    assert [verb for verb in verbs if verb not in cli.VERBS] == []
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert [name for name in re.findall(r"(?:^|`)make ([a-z0-9-]+)", text, re.MULTILINE) if name not in targets] == []


@each_page
def test_nothing_is_left_to_fill_in(page: Path) -> None:
    """No placeholder in capitals, no TODO."""
    assert re.findall(r"\b(?:TODO|FIXME|TBD|XXX|[A-Z]+_TABLE)\b", page.read_text(encoding="utf-8")) == []


def test_the_readme_says_where_every_module_is() -> None:
    """The file table names each module of the package, or the folder's story file that leads to its neighbours."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    modules = {p for p in (ROOT / "mlprod").glob("*.py") if p.name not in ("__init__.py", "errors.py")}
    assert sorted(p.name for p in modules if f"mlprod/{p.name}" not in text) == []
    assert [p.name for p in (ROOT / "mlprod").iterdir() if (p / "__init__.py").exists() and f"mlprod/{p.name}/" not in text] == []


def test_the_readme_has_every_exit_code() -> None:
    """The table that launchers act on."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (\d+) \|", text, re.MULTILINE) == ["0", "2", "1", "75"]


MACHINE = re.compile("/" + r"(?:work|root|home/\w+|Users)/\w")
WEB = re.compile(r"\bhttps?:" + r"//[\w.-]+|--(?:extra-)?index-" + "url")


def test_no_file_knows_this_machine() -> None:
    """No path of a home or of the checkout: what is written holds on every machine."""
    here = {str(ROOT), str(Path.home())} - {"/", "/root"}
    found = [(path.name, match[0]) for path, text in texts() for match in MACHINE.finditer(text)]
    assert found + [(path.name, name) for path, text in texts() for name in here if name in text] == []


def test_no_file_knows_a_registry() -> None:
    """Where packages come from is the machine's own setting: no web address stands anywhere but in the licence."""
    assert [(path.name, match[0]) for path, text in texts() if path.name != "LICENSE" for match in WEB.finditer(text)] == []


def test_the_patterns_see_what_they_should() -> None:
    """Each of them finds what is wrong in a text made for it."""
    text = "`mlprod/gone.py`, [x](gone.md), --config.optim.peek_lr=1, `config.mesh.fdsp` and /ho" + "me/ann/x"
    assert PATH.findall(text) == ["mlprod/gone.py"]
    assert LINK.findall(text) == ["gone.md"]
    assert OVERRIDE.findall(text) == ["optim.peek_lr"]
    assert "mesh.fdsp" in FIELD.findall(text)
    assert MACHINE.search(text)
    assert WEB.search("htt" + "ps://registry.example/simple")
    assert {
        "optim.peak_lr",
        "etl.source.url",
        "etl.source.path",
        "etl.split.columns",
        "model.hidden",
        "etl.columns.name",
    } <= KNOWN_FIELDS
