"""What keeps a store from being read, told from damage: only the bytes of an object can be damaged.

A process that may open no more files, has no memory left or may not read a file learns nothing
about what the file holds. Taken for damage, that would throw sound blocks away.
"""

from __future__ import annotations

from lenscache.errors import StoreAccessError, StoreDamagedError

_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
"""The object is not there, which is damage where it must be."""


def type_and_text(error: BaseException) -> str:
    """An error as part of a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.120}"


def raise_unless_damage(error: Exception, what: str) -> None:
    """Raise StoreAccessError unless `error`, caught as `what` was read, tells of its bytes.

    Codecs raise almost anything on damaged bytes, so everything that is not known to come from the
    machine counts as damage; a RuntimeError only if it is one of a codec.
    """
    if isinstance(error, StoreAccessError):
        raise error
    if not _is_of_the_machine(error):
        return
    raise StoreAccessError(
        f"{what} cannot be read now ({type_and_text(error)}), which says nothing about what it "
        "holds: see to that and run the same command again; nothing was changed for it"
    ) from error


def _is_of_the_machine(error: Exception) -> bool:
    if isinstance(error, (StoreDamagedError, *_MISSING)):
        return False
    if isinstance(error, OSError):
        return error.errno is not None  # without a number it is a codec's, such as BadGzipFile
    if isinstance(error, RuntimeError):  # "can't start new thread", an event loop that is closed
        return "decompress" not in str(error).lower()
    return isinstance(error, MemoryError | ImportError)
