"""Pages that a command writes: all of one, or nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from lens_cli import console


def test_page_that_cannot_be_written_leaves_the_old_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    console.write_file(page, b"old")

    def half(path: Path, data: bytes) -> Any:
        with path.open("wb") as file:
            file.write(data[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space"):
        console.write_file(page, b"new page")
    assert page.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    console.write_file(pipe, b"page")
    assert os.read(reader, 10) == b"page"
    assert pipe.is_fifo()
    os.close(reader)
