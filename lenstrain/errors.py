"""Everything lenstrain raises on purpose.

    LenstrainError
      SettingsError (ValueError)         settings that contradict each other or the store
      TooFewSamplesError (ValueError)    a concept or store with too few samples for a lens
        ShortConceptError                a concept that needs more samples of its own
      LeakageError (ValueError)          a row held out for calibration or test would be trained on
      StalledError (TimeoutError)        a store that is followed does not grow any more
      WorkerError (RuntimeError)         a worker process died each time, or could not begin
      NotFittedError (ValueError)        a lens was used before `fit`
      UnknownNameError (KeyError)        a pack has no such lens, or a lens no such metric
      LensPackError
        LensPackNotFoundError (FileNotFoundError)
        LensPackExistsError (FileExistsError)
        LensPackFormatError              not a lens pack, or one of a newer format
      ForeignFormatError (ValueError)    a file of another program, damaged or of another kind
      MissingPackageError (ImportError)  an optional package is not installed

What lenscache raises while a store is read (`lenscache.errors`) passes through unchanged.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_NAMED = 8  # names that a message lists


class LenstrainError(Exception):
    """Base class: `except LenstrainError` catches whatever the package refuses to do."""


class SettingsError(LenstrainError, ValueError):
    """The settings contradict each other or what the store holds."""


class TooFewSamplesError(LenstrainError, ValueError):
    """There are not enough samples to fit and judge a lens."""


class ShortConceptError(TooFewSamplesError):
    """More samples of the concept itself are needed, as `lenscache extract --top-up` adds."""


class LeakageError(LenstrainError, ValueError):
    """Held-out rows are about to be trained on: every figure of the lens would be worthless."""


class StalledError(LenstrainError, TimeoutError):
    """The extraction that is followed does not go on."""


class WorkerError(LenstrainError, RuntimeError):
    """The processes that were to fit died, each time one was started again, or could not begin."""


class NotFittedError(LenstrainError, ValueError):
    """A lens was asked for scores before it was fitted."""


class UnknownNameError(LenstrainError, KeyError):
    """Nothing has this name; the message says which names are near.

    Parameters
    ----------
    what : the kind of thing, such as "lens".
    name : what was asked for.
    known : the names that there are.
    """

    def __init__(self, what: str, name: object, known: Iterable[str]) -> None:
        super().__init__(what, name, tuple(known))

    def __str__(self) -> str:
        """The message; composed when it is shown, since `get` of a mapping swallows the error."""
        what, name, known = self.args
        return f"there is no {what} {name!r}: {near_names(name, known)}"


def near_names(name: object, known: Iterable[str]) -> str:
    """Which of the known names may be meant, or how many there are."""
    names = list(known)
    if near := difflib.get_close_matches(str(name), names, n=3):
        return f"did you mean {', '.join(near)}?"
    few = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" * (len(names) > _NAMED))
    return f"expected one of {few}" if names else "there is none at all"


class LensPackError(LenstrainError):
    """The lens pack cannot be read or written."""


class LensPackNotFoundError(LensPackError, FileNotFoundError):
    """There is no lens pack in this folder."""


class LensPackExistsError(LensPackError, FileExistsError):
    """The output folder is there already; nothing in it was touched."""


class LensPackFormatError(LensPackError):
    """The folder holds something else, or a lens pack of a format this version does not know."""


class ForeignFormatError(LenstrainError, ValueError):
    """A file of another program cannot be read; the message says what was found and expected."""


class MissingPackageError(LenstrainError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""
