"""README and the other documents name what is there: folders, modules and files."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("lenscache", "lenstrain", "cli")
BESIDE = {"benchmarks/", "data/", "demo/", "docs/", "notebooks/", "tests/"}
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "data/README.md", "benchmarks/RESULTS.md", "docs/*.md")


def listed(readme: str) -> list[str]:
    """The folders in README's list, each with a description."""
    section = readme.split("\n## Where things are\n")[1].split("\n## ")[0]
    lines = section.split("```\n")[1].splitlines()
    found = [re.fullmatch(r"((?:\w+/)+) +\S.*", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return [match[1] for match in found if match]


def differences(names: list[str], folders: set[str]) -> dict[str, list[str]]:
    return {
        "twice": sorted({name for name in names if names.count(name) > 1}),
        "missing": sorted(folders - set(names)),
        "gone": sorted(set(names) - folders),
    }


def folders_with_modules() -> set[str]:
    inits = [init for package in PACKAGES for init in (ROOT / package).rglob("__init__.py")]
    return {f"{init.parent.relative_to(ROOT)}/" for init in inits}


def references(document: str) -> tuple[set[str], set[str]]:
    """Dotted names of the two libraries, and paths of the repository."""
    return (
        set(re.findall(r"(?<![\w/.-])(?:lenscache|lenstrain)(?:\.[a-zA-Z_]\w*)+", document)),
        set(
            re.findall(
                r"(?<![\w/.-])(?:lenscache|lenstrain|cli|tests|benchmarks|docs|notebooks)/[\w/.-]*\w",
                document,
            )
        ),
    )


def exists(dotted: str) -> bool:
    """Whether a dotted name can be imported, or reached from a module that can."""
    module, *attributes = dotted.split(".")
    found = importlib.import_module(module)
    for name in attributes:
        if not hasattr(found, name):
            try:
                importlib.import_module(f"{found.__name__}.{name}")
            except (ImportError, AttributeError):
                return False
        found = getattr(found, name)
    return True


def test_readme_lists_every_folder_once_and_none_that_is_gone() -> None:
    there = folders_with_modules() | BESIDE
    assert len(there) > 30
    assert all((ROOT / folder).is_dir() for folder in there)
    found = differences(listed((ROOT / "README.md").read_text("utf-8")), there)
    assert found == {"twice": [], "missing": [], "gone": []}


def test_a_folder_that_is_missing_gone_or_listed_twice_is_found() -> None:
    head, readme = (
        "# A\n\n## Where things are\n\n```\n",
        "a/    one\na/b/  two\nc/    three\nc/    four",
    )
    names = listed(f"{head}{readme}\n```\n\n## Install\n")
    assert differences(names, {"a/", "a/b/", "d/"}) == {
        "twice": ["c/"],
        "missing": ["d/"],
        "gone": ["c/"],
    }
    with pytest.raises(AssertionError, match="no-description"):
        listed(f"{head}no-description/\n```\n")


def test_modules_and_files_that_documents_mention_are_there() -> None:
    documents = [path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))]
    assert len(documents) >= 7
    lost = []
    for document in documents:
        names, paths = references(document.read_text("utf-8"))
        lost += [(document.name, name) for name in sorted(names) if not exists(name)]
        lost += [(document.name, path) for path in sorted(paths) if not (ROOT / path).exists()]
    assert lost == []


def test_a_module_or_file_that_is_gone_is_found() -> None:
    names, paths = references("see `lenscache.packs.kif`, lenstrain.LensPack.load, `cli/gone.py`.")
    assert {name: exists(name) for name in names} == {
        "lenscache.packs.kif": False,
        "lenstrain.LensPack.load": True,
    }
    assert paths == {"cli/gone.py"}


def test_documents_link_to_files_that_are_in_the_repository() -> None:
    for pattern in (*DOCUMENTS, "CHANGELOG.md"):
        for document in ROOT.glob(pattern):
            for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text("utf-8")):
                assert (document.parent / target).exists(), (document.name, target)
