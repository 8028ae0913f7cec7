"""Everything lenscache raises on purpose.

    LenscacheError
      PackError (ValueError)                   the concept pack cannot be used
      PlanError (ValueError)                   the request does not fit the pack
      ModelError
        ModelNotFoundError (FileNotFoundError) no such model, or nothing installed provides it
        UnsupportedModelError                  the model loads but its blocks cannot be found
        WeightsError (ValueError)              weights are missing, left over or of another shape
        ModelLayerError (IndexError)           the model or store does not have this model layer
        TokenError (ValueError)                a prompt has tokens that it cannot be run with
        PromptTooLongError (ValueError)        a prompt does not fit the model's positions
      NonFiniteError (ArithmeticError)         an activation is NaN or infinite
      BatchMismatchError (ArithmeticError)     the same rows at batch 1 gave other activations
      SteeringError (ValueError)               a direction or strength cannot steer a model
      StoreError
        StoreNotFoundError (FileNotFoundError) there is no store
        StoreFormatError                       not a lenscache store, or one of a newer format
        StoreMismatchError (ValueError)        the store was written with something else
        StoreIncompleteError                   extraction has not finished
        StoreDamagedError (OSError)            a complete block no longer reads back
        StoreWriteError (OSError)              the file system refuses a write
        StoreAccessError (OSError)             the store cannot be reached or read now
        LabelSetError (ValueError)             no such label set, or it cannot be added
        DiskSpaceError (OSError)               the disk cannot hold the run
      ExportError (OSError)                    the folder of an export cannot be used
      WorkerError (RuntimeError)               workers die again and again
      MissingPackageError (ImportError)        an optional package is not installed

Each class also inherits the builtin a caller would expect, so both styles of ``except`` work.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

_commands: list[None] = []  # that run in this process


@contextmanager
def in_a_command() -> Iterator[None]:
    """While it is open, `argument` says how a command is called, and not how a function is."""
    _commands.append(None)
    try:
        yield
    finally:
        _commands.pop()


def argument(name: str, value: object = True, option: str | None = None) -> str:
    """How the caller passes an argument: `overwrite=True` in Python, `--overwrite` to a command.

    Parameters
    ----------
    value : what to pass, True for a switch; None to name the argument alone.
    option : what the command calls it, if it is not the name with hyphens.
    """
    if not _commands:
        return name if value is None else f"{name}={value!r}"
    flag = f"--{option or name.replace('_', '-')}"
    if value is None or value is True:
        return flag
    given = shlex.quote(str(value[0] if isinstance(value, tuple) else value))
    return f"{flag}={given}" if given.startswith("-") else f"{flag} {given}"


class LenscacheError(Exception):
    """Base class: `except LenscacheError` catches whatever the package refuses to do."""


class PackError(LenscacheError, ValueError):
    """The concept pack is malformed or contradicts itself."""


class PlanError(LenscacheError, ValueError):
    """The request names levels, concepts or settings that do not fit the pack."""


class ModelError(LenscacheError):
    """The model cannot be used for extraction."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """No model under this path, id or alias."""


class UnsupportedModelError(ModelError):
    """The model loads but has no recognisable list of transformer blocks."""


class WeightsError(ModelError, ValueError):
    """The weights of a checkpoint are not those of the model it describes."""


class ModelLayerError(ModelError, IndexError):
    """A model layer was asked for that does not exist; there is no fallback to another one."""


class PromptTooLongError(ModelError, ValueError):
    """A prompt and its completion do not fit the positions the model was built for."""


class TokenError(ModelError, ValueError):
    """A prompt has a token unknown to the model, begins twice, or ends before it is continued."""


class NonFiniteError(LenscacheError, ArithmeticError):
    """The model produced a NaN or an infinity."""


class BatchMismatchError(LenscacheError, ArithmeticError):
    """Rows extracted again one by one differ from the batched ones by more than the tolerance."""


class SteeringError(LenscacheError, ValueError):
    """A direction or a strength cannot be used to steer a model."""


class StoreError(LenscacheError):
    """The store on disk cannot serve the request."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no store at this path."""


class StoreFormatError(StoreError):
    """The path holds something else, or a store of a format this version does not know."""


class StoreMismatchError(StoreError, ValueError):
    """The store was written with another model, pack or setting.

    Parameters
    ----------
    field : what differs, in the words of the command line.
    found, wanted : the value in the store and the value asked for.
    advice : what to do next; by default, extract into another store or ask for the same.
    """

    def __init__(self, field: str, found: object, wanted: object, advice: str = "") -> None:
        super().__init__(
            f"the store was written with {field} {found!s}, this run asks for {wanted!s}: "
            f"{advice or f'extract into another store, or ask for the same {field}'}"
        )
        self.field = field
        self._parts = field, found, wanted, advice

    def __reduce__(self) -> tuple[type[StoreMismatchError], tuple[str, object, object, str]]:
        # By default an exception is pickled with its message alone.
        return type(self), self._parts


class StoreIncompleteError(StoreError):
    """Extraction has not finished; what is there is kept."""


class StoreDamagedError(StoreError, OSError):
    """A block that was marked complete cannot be read back."""


class StoreWriteError(StoreError, OSError):
    """A write fails: disk full, read-only or broken. What was complete before is untouched."""


class StoreAccessError(StoreError, OSError):
    """A store cannot be reached or read: no such bucket, no permission, no memory, no file handle.

    This says nothing about what it holds.
    """


class LabelSetError(StoreError, ValueError):
    """The store has no such label set, or labels that cannot be added to it."""


class DiskSpaceError(StoreError, OSError):
    """The file system has less room than the run needs."""


class ExportError(LenscacheError, OSError):
    """An export cannot be written where it was asked for; what is there is untouched."""


class WorkerError(LenscacheError, RuntimeError):
    """The processes of an engine die again and again."""


class MissingPackageError(LenscacheError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


def first_line(error: BaseException | str) -> str:
    """The first line of what an error says; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
