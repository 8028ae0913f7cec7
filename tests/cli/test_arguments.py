"""An error says how to pass an argument: as Python does to Python, as an option to a command."""

from __future__ import annotations

from pathlib import Path

import pytest

from lenscache.concepts.importers.frames import import_texts
from lenscache.errors import PackError, argument, in_a_command
from lenstrain.errors import LensPackExistsError
from lenstrain.pack.folder import check_output
from tests.cli.conftest import Run
from tests.cli.test_lenscache import assert_one_line_error


def test_each_is_told_in_its_own_words(lenscache: Run, tmp_path: Path) -> None:
    scores = [0.1, 0.7] * 6
    texts = [f"Text {number}." for number in range(12)]
    with pytest.raises(PackError, match=r"pass threshold=0\.5 to take .* pass as_classes=True"):
        import_texts(texts, scores)
    rows = "\n".join(f"{text},{score}" for text, score in zip(texts, scores, strict=True))
    (tmp_path / "t.csv").write_text(f"text,label\n{rows}\n")
    ran = lenscache("pack", "import", tmp_path / "t.csv", "--out", tmp_path / "p.json")
    assert_one_line_error(ran, "pass --threshold 0.5 to take", "pass --as-classes")
    with pytest.raises(PackError, match="threshold=0"):  # the command left nothing behind
        import_texts(texts, scores)


def test_a_pack_that_is_there_asks_python_for_overwrite(tmp_path: Path) -> None:
    (tmp_path / "lenses.json").write_text("{}")
    with pytest.raises(LensPackExistsError, match=r"another folder, or pass overwrite=True$"):
        check_output(tmp_path, overwrite=False)
    with in_a_command(), pytest.raises(LensPackExistsError, match=r"or pass --overwrite$"):
        check_output(tmp_path, overwrite=False)


@pytest.mark.parametrize(
    ("given", "python", "command"),
    [
        (("overwrite",), "overwrite=True", "--overwrite"),
        (("mode", "prompt"), "mode='prompt'", "--mode prompt"),
        (("separator", "|"), "separator='|'", "--separator '|'"),
        (("separator", ""), "separator=''", "--separator ''"),
        (("missing", ("-1",)), "missing=('-1',)", "--missing=-1"),
        (("levels", None, "level"), "levels", "--level"),
    ],
)
def test_an_argument_is_written_as_it_is_passed(
    given: tuple[str, ...], python: str, command: str
) -> None:
    assert argument(*given) == python
    with in_a_command():
        assert argument(*given) == command
