"""What a user installs: a wheel with every folder in it, and both commands."""

from __future__ import annotations

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
    ran = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=240
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
