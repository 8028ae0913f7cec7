"""A store in a folder, whose writers end when the folder is moved away or removed.

zarr's own folder store makes whatever folders are missing, the root included: a run whose store was
renamed would go on in a new folder that has no header.
"""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from zarr.abc.store import Store
from zarr.storage import LocalStore

from lenscache.errors import StoreAccessError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from zarr.core.buffer import Buffer


class FolderStore(LocalStore):
    """A folder that must stay where it was when it was opened.

    Parameters
    ----------
    root : the folder, which must exist by the time it is opened.
    identity : device and inode of the folder; by default, those it has when it is opened.

    Raises
    ------
    StoreAccessError
        By every method, if another folder or none is there now.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        read_only: bool = False,
        identity: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(root, read_only=read_only)
        self._identity = identity

    def check_there(self) -> None:
        """Raise StoreAccessError if the folder, or the header in it, was moved or removed."""
        self.check_root()
        if not self._is_file("zarr.json"):
            raise StoreAccessError(
                f"{self.root}/zarr.json was removed while this ran: put it back and run the same "
                "command again"
            )

    def check_root(self) -> None:
        """Raise StoreAccessError if another folder or none is there now."""
        if self._identity is not None and _identity(self.root) != self._identity:
            raise StoreAccessError(
                f"{self.root} was moved away or removed while this ran: put it back, or give its "
                "new path, and run the same command again; nothing was written in its place"
            )

    def _is_file(self, key: str) -> bool:
        try:
            return stat.S_ISREG((self.root / key).stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    # What zarr calls. Each method is documented by the class above.

    def with_read_only(self, read_only: bool = False) -> Self:  # noqa: D102
        return type(self)(self.root, read_only=read_only, identity=self._identity)

    async def _open(self, **_: Any) -> None:
        self._identity = self._identity or _identity(self.root)
        if self._identity is None:
            raise FileNotFoundError(f"{self.root} does not exist")
        await Store._open(self)

    async def get(self, key: str, *arguments: Any, **options: Any) -> Buffer | None:  # noqa: D102
        found = await super().get(key, *arguments, **options)
        self.check_root()  # after: what was read may be of another store that took its place
        return found

    async def exists(self, key: str) -> bool:  # noqa: D102
        found = await asyncio.to_thread(self._is_file, key)
        self.check_root()
        return found

    async def getsize(self, key: str) -> int:  # noqa: D102
        try:
            return await super().getsize(key)
        except FileNotFoundError:
            self.check_root()
            raise

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:  # noqa: D102
        async for name in super().list_dir(prefix):
            yield name
        self.check_root()

    async def _set(self, key: str, value: Buffer, exclusive: bool = False) -> None:
        if not self._is_open:
            await self._open()
        self._check_writable()
        await asyncio.to_thread(self._put, key, value.as_buffer_like(), exclusive=exclusive)

    def _put(self, key: str, data: Any, *, exclusive: bool) -> None:
        """Write a file beside its place and rename it, so that a reader sees all of it or none."""
        self.check_root()
        path = self.root / key
        if exclusive and self._is_file(key):  # most often: zarr asks for every group above an array
            raise FileExistsError(path)
        scratch = path.with_suffix(f".{uuid4().hex}.partial")
        try:
            try:
                scratch.write_bytes(data)
            except FileNotFoundError:
                self._make_folder(path.parent)
                scratch.write_bytes(data)
            if exclusive:
                _create(scratch, path)
            else:
                scratch.replace(path)
        except Exception:
            scratch.unlink(missing_ok=True)
            raise

    def _make_folder(self, folder: Path) -> None:
        """A folder below the root, and those between the two; never the root."""
        if folder == self.root:
            self.check_root()
            raise FileNotFoundError(f"{self.root} does not exist")
        try:
            folder.mkdir(exist_ok=True)
        except FileNotFoundError:
            self._make_folder(folder.parent)
            folder.mkdir(exist_ok=True)


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None


def _create(scratch: Path, path: Path) -> None:
    """Give a file its name unless the name is taken, which raises FileExistsError."""
    try:
        os.link(scratch, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: exclusive all the same, though not in one step
        with path.open("xb") as file:
            file.write(scratch.read_bytes())
    scratch.unlink()
