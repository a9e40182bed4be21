"""The installed packages against what mlprod and jax ask for.

Promise: every package that mlprod needs is there and no older than its lower bound; jax's plugins are those of its jaxlib, which
jax itself would say late and leave the devices out.
Price: reads the packages' metadata; imports none of them.
"""

import importlib.metadata
import platform
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import Requirement

from mlprod.doctor.finding import Finding, first

PLUGIN = re.compile(r"jax-(cuda|rocm)[\w]*-(plugin|pjrt)|libtpu")
INSTALL = "pip install -c constraints.txt -e ."


def installed(name: str) -> str:
    """Returns the version of an installed package, or ''."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def look(root: Path) -> Iterator[Finding]:
    """Yields what is wrong with the packages, then those that matter most. `root`: the folder that holds the package mlprod."""
    wrong = list(dict.fromkeys([*_below_bounds(root), *_plugins()]))  # two extras may name the same package
    yield from wrong
    pins = _off_pins(root)
    if pins:
        told = f"{len(pins)} not as pinned in constraints.txt: {first(pins)}"
        yield Finding("packages", told, f"results were tested with the pinned ones: {INSTALL}")
    if not wrong:
        main = ", ".join(f"{name} {installed(name)}" for name in ("mlprod", "jax", "jaxlib", "flax", "numpy", "pyarrow"))
        yield Finding("versions", f"Python {platform.python_version()}, {main}")


def required(root: Path) -> Iterator[tuple[Requirement, bool]]:
    """Yields (requirement, whether it is needed) of mlprod: of a checkout as it is now, else of what was installed."""
    project = root / "pyproject.toml"
    if project.is_file():
        said = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        yield from ((Requirement(text), True) for text in said["dependencies"])
        for texts in said["optional-dependencies"].values():
            yield from ((Requirement(text), False) for text in texts)
    else:
        for requirement in _requirements("mlprod"):
            yield requirement, not _of_extra(requirement)


def _requirements(name: str) -> list[Requirement]:
    try:
        return [Requirement(text) for text in importlib.metadata.requires(name) or ()]
    except importlib.metadata.PackageNotFoundError:
        return []


def _of_extra(requirement: Requirement) -> bool:
    return "extra" in str(requirement.marker or "")


def _applies(requirement: Requirement) -> bool:
    """Whether a requirement's marker holds here, extras apart."""
    try:
        return requirement.marker is None or _of_extra(requirement) or requirement.marker.evaluate()
    except UndefinedEnvironmentName:
        return True


def _below_bounds(root: Path) -> Iterator[Finding]:
    """Yields the packages that are missing or older than mlprod's bounds; of an extra, those that are there and too old."""
    for requirement, needed in required(root):
        version = installed(requirement.name)
        if not version and needed:
            yield Finding(requirement.name, f"is not installed, mlprod needs {requirement}", INSTALL, stops=True)
        if version and not requirement.specifier.contains(version, prereleases=True):
            yield Finding(requirement.name, f"{version} is installed, mlprod needs {requirement}", INSTALL, stops=True)


def _plugins() -> Iterator[Finding]:
    """Yields what jax and its installed plugins ask for and do not find; of jax's extras, the plugins alone."""
    owners = ["jax", *(name for name in _plugin_names() if installed(name))]
    told = set()
    for owner in owners:
        for requirement in _requirements(owner):
            version, is_plugin = installed(requirement.name), bool(PLUGIN.fullmatch(requirement.name))
            if not _applies(requirement) or (_of_extra(requirement) and not is_plugin) or requirement.name in told:
                continue
            if version and not requirement.specifier.contains(version, prereleases=True):
                told.add(requirement.name)
                mend = f"pip install '{requirement.name}{requirement.specifier}'"
                yield Finding(
                    requirement.name, f"{version} is installed, {owner} {installed(owner)} needs {requirement.specifier}",
                    mend, stops=True,
                )  # fmt: skip


def _plugin_names() -> list[str]:
    """Returns the plugins that jax's extras name."""
    return sorted({r.name for r in _requirements("jax") if PLUGIN.fullmatch(r.name)})


def has_plugin(word: str) -> bool:
    """Whether a plugin of jax whose name holds `word` ("cuda", "tpu") is installed."""
    return any(word in name and installed(name) for name in _plugin_names())


def _off_pins(root: Path) -> list[str]:
    """Returns "name 1.2 (pinned 1.3)" of each installed package that a checkout's constraints.txt pins otherwise."""
    pins = root / "constraints.txt"
    if not pins.is_file():
        return []
    lines = (line.partition("#")[0].strip() for line in pins.read_text(encoding="utf-8").splitlines())
    wanted = [Requirement(line) for line in lines if line]
    off = [(r, installed(r.name)) for r in wanted if _applies(r)]
    return [
        f"{r.name} {version} (pinned {str(r.specifier).removeprefix('==')})"
        for r, version in off
        if version and not r.specifier.contains(version, prereleases=True)
    ]
