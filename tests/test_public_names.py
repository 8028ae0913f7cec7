"""The public names of both libraries: listed, loadable, documented, and nothing beside them."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import lenscache
import lenstrain

ROOT = Path(__file__).parents[1]
LIBRARIES = pytest.mark.parametrize(
    "library", [lenscache, lenstrain], ids=lambda library: str(library.__name__)
)


def in_a_fresh_interpreter(code: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@LIBRARIES
def test_all_is_sorted_and_what_dir_shows(library: ModuleType) -> None:
    assert library.__all__ == sorted(set(library.__all__))
    assert dir(library) == library.__all__


@LIBRARIES
def test_all_is_what_is_there(library: ModuleType) -> None:
    """Each name loads from the module that `_MODULES` says, which defines it."""
    assert {*library._HOMES, "__version__"} == set(library.__all__)
    for module, names in library._MODULES.items():
        home = importlib.import_module(f"{library.__name__}.{module}")
        for name in names.split():
            assert getattr(library, name) is getattr(home, name)
            assert getattr(library, name).__module__ == home.__name__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = library.nothing


@LIBRARIES
def test_type_checkers_see_the_same_names(library: ModuleType) -> None:
    """The imports under TYPE_CHECKING are those of `_MODULES`."""
    source = inspect.getsource(library)
    lines = re.findall(rf"^    from {library.__name__}\.(\S+) import (.+)$", source, re.MULTILINE)
    assert dict(lines) == {
        module: ", ".join(names.split()) for module, names in library._MODULES.items()
    }


@LIBRARIES
def test_every_name_has_a_docstring_of_its_own(library: ModuleType) -> None:
    assert inspect.getdoc(library)
    for name in set(library.__all__) - {"__version__"}:
        text = getattr(library, name).__doc__
        assert text, name
        assert text.strip(), name
        assert not text.startswith(f"{name}("), name  # what a dataclass writes without one


@LIBRARIES
def test_every_name_is_in_the_list_of_public_names(library: ModuleType) -> None:
    document = (ROOT / "docs/api.md").read_text("utf-8")
    section = document.split(f"\n### {library.__name__}\n")[1].split("\n### ")[0]
    table = section.split("And these modules")[0]
    listed = re.findall(r"^\| `(\w+)` \| \S.* \|$", table, re.MULTILINE)
    assert sorted(listed) == library.__all__


@pytest.mark.parametrize(
    "statement",
    [
        "from lenscache.extract import extract",
        "import lenscache.bfloat16",
        "import lenscache.inspection",
        "import lenscache.plots",
        "import lenscache.preflight",
        "import lenstrain.inspection",
        "import lenstrain.plots",
        "from lenscache import *",
        "from lenstrain import *",
    ],
)
def test_documented_imports_work_in_a_fresh_interpreter(statement: str) -> None:
    assert in_a_fresh_interpreter(statement) == ""


@LIBRARIES
def test_tab_completion_shows_public_names_alone(library: ModuleType) -> None:
    found = in_a_fresh_interpreter(f"""
import json, rlcompleter, {library.__name__}
complete = rlcompleter.Completer({{"lib": {library.__name__}}}).complete
found = []
while (text := complete("lib.", len(found))) is not None:
    found.append(text)
underscored = []
while (text := complete("lib._", len(underscored))) is not None:
    underscored.append(text)
print(json.dumps([found, underscored]))
""")
    shown, underscored = (
        {text.removeprefix("lib.").rstrip("()") for text in texts} for texts in json.loads(found)
    )
    assert shown == set(library.__all__) - {"__version__"}
    assert "__version__" in underscored
    assert all(name.startswith("__") and name.endswith("__") for name in underscored)
