"""Stores that are no folder: whatever fsspec has a file system for, such as `s3://bucket/prefix`.

    path --open_place--> FolderStore, see lenscache.store.folder
                     --> RemoteStore: zarr's FsspecStore over s3fs, gcsfs, memory ...

Options of a file system, credentials first of all, come from where its users keep them: the
environment and the configuration files of the service. They are never part of the URL, because a
URL ends up in logs and shell histories.

Nothing is cached: not the listing of a folder, since a reader must see the blocks that another
machine writes, and not the file system, since credentials may be set after a first attempt that
lacked them.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import re
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.request import url2pathname

from zarr.core.sync import loop as zarr_loop
from zarr.core.sync import sync
from zarr.storage import FsspecStore, StorePath

from lenscache.errors import LenscacheError, MissingPackageError, StoreAccessError, StoreFormatError
from lenscache.store.folder import FolderStore

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

# Else the traceback of what gcsfs raises is printed.
logging.getLogger("gcsfs").addHandler(logging.NullHandler())

_FOLDERS = frozenset({"file", "local"})
_BUCKETS = frozenset({"s3", "s3a", "gs", "gcs"})
"""Protocols whose URLs begin with the name of a bucket, and with nothing else."""
_S3, _GCS = ("s3fs", "s3"), ("gcsfs", "gs")
_PACKAGES = {"s3": _S3, "s3a": _S3, "gs": _GCS, "gcs": _GCS}
"""By protocol: the package that fsspec needs, and our extra that brings it."""
_NO_CACHES: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
# Above one, s3fs asks for the size before it reads any whole object, which doubles the requests,
# and reads a large one in parts that may be of two versions of it.
_WHOLE_READS: dict[str, Any] = {"max_concurrency": 1}
_PASSWORD = re.compile(r"[^/:@]*:(?!\d+(/|$))[^@]*@")  # not the port in hdfs://host:8020/a@b
_LOST_CONNECTION = {
    *("ConnectionError", "TimeoutError", "HTTPClientError"),
    *("FSTimeoutError", "ClientConnectionError", "ClientPayloadError"),
}
"""Names of errors of Python, botocore, fsspec and aiohttp, none of which need be installed."""
_SECRET_NAMES = re.compile("(?i)SECRET|TOKEN|PASSWORD|ACCESS_KEY|CREDENTIAL|CONNECTION_STRING")
_SHORTEST_SECRET = 6  # letters; replacing shorter ones would garble any message


def local_folder(path: str | Path) -> Path | None:
    """The folder that a store's path names; None for the URL of anything else."""
    if isinstance(path, Path) or ("://" not in path and "::" not in path):
        return Path(path)
    protocol, _, rest = path.partition("://")
    # Not left to fsspec, which writes files in place: a reader would see half of them.
    return Path(url2pathname(rest)) if protocol in _FOLDERS else None


def open_place(path: str | Path, *, read_only: bool) -> FolderStore | RemoteStore:
    """What zarr opens or creates a group in: a folder, or a store of objects.

    Raises
    ------
    StoreFormatError
        If the URL holds credentials, names no bucket, or is of a kind that fsspec does not know.
    MissingPackageError
        If the package for this kind of URL is not installed.
    StoreAccessError
        If the configuration of the service cannot be used.
    """
    if (folder := local_folder(path)) is not None:
        return FolderStore(folder, read_only=read_only)
    return RemoteStore.open_url(str(path), read_only=read_only)


def create_place(path: str | Path) -> StorePath:
    """The root of a store that is to be created, writable; a folder is made with those above it."""
    place = open_place(path, read_only=False)
    if isinstance(place, FolderStore):
        place.root.mkdir(parents=True, exist_ok=True)
    return StorePath(place)


def check_place(path: str | Path) -> None:
    """Look at an object store once, so that a run that cannot use it ends before a model is loaded.

    Raises
    ------
    StoreAccessError
        If there is no such bucket, no permission or no connection.
    StoreFormatError, MissingPackageError
        As `open_place`.
    """
    place = open_place(path, read_only=True)
    if isinstance(place, RemoteStore) and place.is_unused():
        place.check_bucket()


class RemoteStore(FsspecStore):
    """A store of objects that raises StoreAccessError if the service refuses or cannot be reached.

    This is not damage: what cannot be read for want of a network must not be extracted again.

    Parameters
    ----------
    url : what messages call the store.
    """

    def __init__(
        self, fs: Any, read_only: bool = False, path: str = "/", *, url: str = "", **options: Any
    ) -> None:
        super().__init__(fs, read_only, path, **options)
        self.url = url or path

    @classmethod
    def open_url(cls, url: str, *, read_only: bool) -> Self:
        """The store at `url`; nothing is asked of it yet. See `open_place` for what is raised."""
        protocol = _check_url(url)
        options = _NO_CACHES | (_WHOLE_READS if protocol in ("s3", "s3a") else {})
        with _explaining(url):
            try:
                opened = FsspecStore.from_url(url, storage_options=options, read_only=read_only)
            except ImportError as error:
                package, extra = _PACKAGES.get(protocol, (f"a package for {protocol}://", ""))
                cure = f"`pip install` as fsspec says: {error}"
                if extra:
                    cure = f"`pip install '.[{extra}]'` in a clone of lenscache"
                raise MissingPackageError(f"{url} needs {package}: run {cure}") from None
            except ValueError as error:
                raise StoreFormatError(
                    f"{url} cannot be a store ({_scrub(error)}): give a folder, or a URL such as "
                    "s3://bucket/prefix"
                ) from None
            _close_with(opened.fs)
        return cls(opened.fs, read_only, opened.path.rstrip("/"), url=url)

    def is_unused(self) -> bool:
        """Whether there is not a single object."""

        async def names() -> list[str]:
            return [name async for name in self.list_dir("")]

        return not sync(names())

    def check_there(self) -> None:
        """Raise StoreAccessError if the header was moved or removed."""
        if not sync(self.exists("zarr.json")):
            raise StoreAccessError(
                f"{self.url}/zarr.json was moved or removed while this ran: put it back, or give "
                "the store's new URL, and run the same command again"
            )

    def check_bucket(self) -> None:
        """Raise StoreAccessError if there is no bucket: a listing then looks like an empty one."""
        if self.url.partition("://")[0] not in _BUCKETS:
            return

        async def ask() -> None:
            try:
                await self.fs._info(self.path.split("/")[0])
            except FileNotFoundError:
                raise _no_bucket(self.url) from None

        with _explaining(self.url):
            sync(ask())

    # What zarr calls. Each method is documented by the class above.

    def with_read_only(self, read_only: bool = False) -> Self:  # noqa: D102
        return type(self)(
            self.fs, read_only, self.path, url=self.url, allowed_exceptions=self.allowed_exceptions
        )

    async def get(  # noqa: D102
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        with _explaining(self.url):
            return await super().get(key, prototype, byte_range)

    async def get_partial_values(  # noqa: D102
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        with _explaining(self.url):
            return await super().get_partial_values(prototype, key_ranges)

    async def set(self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None) -> None:  # noqa: D102
        with _explaining(self.url):
            try:
                await super().set(key, value, byte_range)
            except FileNotFoundError:  # there are no folders that could be missing
                raise _no_bucket(self.url) from None

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:  # noqa: D102
        place = f"{self.path}/{key}"
        if await self.exists(key):  # most often: zarr asks for every group above an array
            return
        with _explaining(self.url):
            try:
                await self.fs._pipe_file(place, value.to_bytes(), mode="create")
            except FileNotFoundError:
                raise _no_bucket(self.url) from None
            except OSError:
                # The condition failed: services and versions of their packages differ in how.
                if not await super().exists(key):
                    raise

    async def delete(self, key: str) -> None:  # noqa: D102
        with _explaining(self.url):
            await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:  # noqa: D102
        with _explaining(self.url):
            await super().delete_dir(prefix)

    async def exists(self, key: str) -> bool:  # noqa: D102
        with _explaining(self.url):
            return await super().exists(key)

    async def getsize(self, key: str) -> int:  # noqa: D102
        with _explaining(self.url):
            return await super().getsize(key)

    async def list(self) -> AsyncIterator[str]:  # noqa: D102
        with _explaining(self.url):
            async for key in super().list():
                yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:  # noqa: D102
        with _explaining(self.url):
            async for key in super().list_prefix(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:  # noqa: D102
        with _explaining(self.url):
            async for name in super().list_dir(prefix):
                # Web servers list folders with a slash; consoles of object stores create an empty
                # object that stands for the folder itself.
                if name := name.strip("/"):
                    yield name


def _check_url(url: str) -> str:
    """The protocol of a URL that may name a store."""
    protocol, _, rest = url.rpartition("::")[2].partition("://")
    bucket = rest.partition("/")[0]
    is_bucket = protocol in _BUCKETS and not bucket.startswith("arn:")
    if (is_bucket and (":" in bucket or "@" in bucket)) or _PASSWORD.match(rest) or "?" in rest:
        raise StoreFormatError(
            f"the URL {protocol}://... holds credentials or a query, which would end up in logs: "
            f"give {protocol}://bucket/prefix, and credentials in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_PROFILE ...) or in the configuration files of the service"
        )
    if protocol in _BUCKETS and not bucket:
        raise StoreFormatError(f"{url} names no bucket: give {protocol}://bucket/prefix")
    return protocol


@contextmanager
def _explaining(url: str) -> Iterator[None]:
    """Turn what a file system raises into one line; what zarr takes for a missing object passes.

    Raises
    ------
    StoreAccessError
        Without the cause, whose text may hold what is taken out of ours.
    """
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, LenscacheError):
        raise
    except Exception as error:  # noqa: BLE001 - every service has its own tree of errors
        raise _explain(url, error) from None


def _explain(url: str, error: Exception) -> StoreAccessError:
    names = {kind.__name__ for kind in type(error).__mro__}
    why, is_s3 = f"{type(error).__name__}: {_scrub(error)}", url.startswith("s3")
    if "PermissionError" in names:
        return StoreAccessError(
            f"{url}: access is denied ({why}): check the credentials, and that they may list the "
            "bucket and read and write its objects"
        )
    if any(part in type(error).__name__ for part in ("Credential", "Profile", "Token", "SSO")):
        s3_advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        return StoreAccessError(
            f"{url}: there are no credentials that can be used ({why}): "
            f"{s3_advice if is_s3 else 'log in to the service'}"
        )
    what, advice = "the service refuses", "see to that and"
    if names & _LOST_CONNECTION:
        place = "the network and AWS_ENDPOINT_URL" if is_s3 else "the network"
        what, advice = "the service cannot be reached", f"check {place}, and"
    return StoreAccessError(
        f"{url}: {what} ({why}): {advice} run the same command again; what is complete is kept"
    )


def _no_bucket(url: str) -> StoreAccessError:
    protocol, _, rest = url.partition("://")
    endpoint = "the endpoint (AWS_ENDPOINT_URL)" if protocol.startswith("s3") else "the endpoint"
    return StoreAccessError(
        f"{url}: there is no bucket {rest.partition('/')[0]!r} at this service: "
        f"create it first, or check its name and {endpoint}"
    )


def _scrub(error: Exception) -> str:
    """The text of an error on one line, without anything that may be secret."""
    text = " ".join(str(error).split())
    secrets = {value for name, value in os.environ.items() if _SECRET_NAMES.search(name)}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return re.sub(r"\?[^\s\"']*", "", re.sub(r"://[^\s\"']*@", "://***@", text))


_CLIENTS: weakref.WeakSet[Any] = weakref.WeakSet()


def _close_with(fs: Any) -> None:
    """Close connections with their file system: s3fs only does so on an event loop of its own."""
    if hasattr(fs, "set_session"):
        client = sync(fs.set_session())
        _CLIENTS.add(client)
        weakref.finalize(fs, _close_soon, client, os.getpid()).atexit = False


def _close_soon(client: Any, pid: int) -> None:
    loop = zarr_loop[0]
    if pid == os.getpid() and loop is not None and loop.is_running():
        asyncio.run_coroutine_threadsafe(client.close(), loop)


# Runs before zarr's, which ends the event loop: the last to be registered is the first to run.
@atexit.register
def _close_all(pid: int = os.getpid()) -> None:
    if pid == os.getpid():
        for client in list(_CLIENTS):
            with suppress(Exception):  # nothing depends on it any more
                sync(client.close(), timeout=1)
