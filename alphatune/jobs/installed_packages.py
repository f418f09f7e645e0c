"""Which versions are installed, whether they are those that alphatune needs, and what each extra lacks."""

from __future__ import annotations

import importlib
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

from alphatune.core.errors import one_line
from alphatune.core.extras import install_line
from alphatune.core.version import VERSION
from alphatune.core.versions import TORCH_FOR, torch_allows
from alphatune.results.diagnosis import Finding

PACKAGES, EXTRAS = "Packages", "Optional packages"
#: extras for those who work on alphatune itself
CONTRIBUTORS = ("dev", "docs")
OLDEST_PYTHON = (3, 10)

_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)\s*(?P<extras>\[[^]]*\])?\s*(?P<versions>[^;]*)(?:;.*extra\s*==\s*['\"](?P<extra>[^'\"]+)['\"].*)?"
)
_OLDER_PYTHON = re.compile(r"python_version\s*<\s*['\"](\d+)\.(\d+)['\"]")


@dataclass(frozen=True)
class Requirement:
    """One line of what a package requires: ``datasets>=4; extra == 'hfds'``."""

    name: str
    versions: str
    extra: str  # "" for what is always needed

    def __str__(self) -> str:
        return f"{self.name}{self.versions}"


def own_requirements() -> list[Requirement]:
    """What the installed alphatune says it requires; PackageNotFoundError where it is not installed."""
    return parse_requirements(metadata.requires("alphatune") or [])


def parse_requirements(lines: Sequence[str]) -> list[Requirement]:
    """Requirements from the lines of a package's metadata, without those of older Pythons than this one."""
    older = [_OLDER_PYTHON.search(line) for line in lines]
    found = [
        _REQUIREMENT.match(line)
        for line, below in zip(lines, older, strict=True)
        if below is None or sys.version_info < (int(below[1]), int(below[2]))
    ]
    return [Requirement(m["name"], m["versions"].strip(), m["extra"] or "") for m in found if m and m["name"]]


def find_packages() -> Iterator[Finding]:
    """Python, alphatune and everything it always needs: versions, and whether each can be imported."""
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        yield Finding(PACKAGES, "python", "broken", version, f"alphatune needs Python {oldest} or newer")
    else:
        detail = f"{version} on {platform.system()} {platform.machine()}"
        yield Finding(PACKAGES, "python", "ok", detail, facts={"version": version})
    facts = {"version": VERSION}
    try:
        requirements = own_requirements()
    except metadata.PackageNotFoundError:
        detail = f"{VERSION}, run from its source and not installed: what it needs is not known"
        yield Finding(PACKAGES, "alphatune", "note", detail, "pip install .", facts)
        return
    yield Finding(PACKAGES, "alphatune", "ok", VERSION, facts=facts)
    for requirement in requirements:
        if not requirement.extra:
            yield look_at(requirement)


def look_at(requirement: Requirement) -> Finding:
    """Whether a package that is always needed is there, new enough, and can be imported."""
    name, fix = requirement.name, f'pip install "{requirement}"'
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(PACKAGES, name, "broken", f"not installed; needs {requirement}", fix)
    facts = {"version": version}
    if not satisfies(version, requirement.versions):
        return Finding(PACKAGES, name, "broken", f"{version}; needs {requirement}", fix, facts)
    try:
        importlib.import_module(import_name(name))
    except Exception as error:  # an extension built for something else may raise anything
        detail = f"{version}, cannot be imported: {type(error).__name__}: {one_line(error)}"
        hint = "the packages may not fit each other: install them anew in a fresh environment"
        return Finding(PACKAGES, name, "broken", detail, hint, facts)
    if name == "torch" and (lacking := [what for what in TORCH_FOR if not torch_allows(what)]):
        forms = ", ".join(f"{what} needs {TORCH_FOR[what]}" for what in lacking)
        return Finding(PACKAGES, name, "note", f"{version}; {forms}", "", facts)
    return Finding(PACKAGES, name, "ok", version, facts=facts)


def find_extras(requirements: Sequence[Requirement] | None = None) -> Iterator[Finding]:
    """Each extra of alphatune: installed, or the line that adds it."""
    if requirements is None:
        try:
            requirements = own_requirements()
        except metadata.PackageNotFoundError:
            return
    for extra in sorted({r.extra for r in requirements} - {"", *CONTRIBUTORS}):
        versions, lacking = {}, []
        for requirement in (r for r in requirements if r.extra == extra):
            try:
                versions[requirement.name] = metadata.version(requirement.name)
            except metadata.PackageNotFoundError:
                lacking.append(f"{requirement.name} is not installed")
                continue
            if not satisfies(versions[requirement.name], requirement.versions):
                lacking.append(
                    f"{requirement.name} {versions[requirement.name]} is older than {requirement.versions}"
                )
        detail = ", ".join(lacking or [f"{name} {version}" for name, version in versions.items()])
        fix = install_line(extra) if lacking else ""
        yield Finding(
            EXTRAS, extra, "missing" if lacking else "ok", detail, fix, {"versions": versions, "install": fix}
        )


def satisfies(version: str, versions: str) -> bool:
    """Whether a version is within ``>=2.11`` and the like; True where nothing can tell."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:  # comes with huggingface_hub and matplotlib, which are looked at themselves
        return True
    return SpecifierSet(versions).contains(version, prereleases=True)


def import_name(package: str) -> str:
    """The module that a package is imported by."""
    return package.replace("-", "_")
