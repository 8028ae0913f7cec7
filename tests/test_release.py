"""`make release` says whether version, changelog and tag agree."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A commit that is ready to release as 1.2.0, but for its tag."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "release", tmp_path / ".ci")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0 - 2026-11-30\n\n- One\n")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "x")


def release(folder: Path) -> tuple[int, str]:
    ran = subprocess.run(
        ["bash", ".ci/release"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_a_commit_whose_version_changelog_and_tag_agree_is_ready(repository: Path) -> None:
    git(repository, "tag", "v1.2.0")
    assert release(repository) == (0, "version, changelog and tag agree: 1.2.0\n")


@pytest.mark.parametrize("tag", [None, "v1.1.0"])
def test_a_commit_without_its_tag_is_not(repository: Path, tag: str | None) -> None:
    if tag:
        git(repository, "tag", tag)
    code, said = release(repository)
    assert code == 1
    assert (
        "run 'git tag v1.2.0'" if tag is None else "has the tag v1.1.0, expected v1.2.0"
    ) in said


@pytest.mark.parametrize("heading", ["Unreleased", "1.1.0 - 2026-11-30", "1.2.0", "1.2.0 - soon"])
def test_a_changelog_without_a_dated_section_of_the_version_is_not(
    repository: Path, heading: str
) -> None:
    (repository / "CHANGELOG.md").write_text(f"# Changelog\n\n## {heading}\n")
    commit(repository)
    git(repository, "tag", "v1.2.0")
    code, said = release(repository)
    assert code == 1
    assert f"CHANGELOG.md begins with '## {heading}': expected '## 1.2.0 - YYYY-MM-DD'" in said


def test_changes_that_are_not_committed_are_not_released(repository: Path) -> None:
    git(repository, "tag", "v1.2.0")
    (repository / "new").touch()
    code, said = release(repository)
    assert (code, "not committed" in said) == (1, True)


def test_version_and_changelog_of_this_repository_agree() -> None:
    version = f'version = "{_heading().split()[1]}"'
    assert version in (ROOT / "pyproject.toml").read_text().splitlines()


def _heading() -> str:
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    return next(line for line in lines if line.startswith("## ") and line != "## Unreleased")
