"""A text read with the lenses of a pack, as `lenstrain read` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lenstrain.live.monitor import WINDOW, Monitor
from lenstrain.live.naming_rule import Rule
from lenstrain.live.reading import Reading, check_model, make_reading
from lenstrain.pack.pack import LensPack

if TYPE_CHECKING:
    from lenscache.model.loading import LoadedModel


def read(
    pack: LensPack,
    model: LoadedModel,
    text: str,
    *,
    concepts: Sequence[str] | None = None,
    rule: Rule | None = None,
    window: int = WINDOW,
    top: int = 3,
) -> Reading:
    """What the lenses of a pack find in a text, in one forward pass of the model.

    Parameters
    ----------
    concepts, rule, window : as for `lenstrain.live.monitor.Monitor`.
    top : lenses to name at a token, and of the whole text, at most.

    Raises
    ------
    SettingsError
        As `Monitor`.
    """
    from lenscache.live.listening import read_text

    monitor = Monitor(pack, concepts=concepts, window=window, keep=None, rule=rule)
    tokenized = read_text(model, text, monitor)
    scores, pooled = (
        logits[0].cpu().numpy() for logits in (monitor.scores, monitor.pooled("prompt"))
    )
    return make_reading(
        monitor.presence,
        tokenized.tokens,
        scores,
        pooled,
        window=monitor.window,
        top=top,
        n_cut=tokenized.n_cut,
    )


def read_whole(
    pack: LensPack, model: LoadedModel, texts: Sequence[str], concepts: Sequence[str] | None = None
) -> tuple[NDArray[np.float32], int]:
    """(n, lenses) logits of whole texts, and how many texts were longer than the model reads.

    One text at a time, as `read`: its figures do not depend on the texts beside it. NaN where a
    text has no position that is pooled.

    Raises
    ------
    SettingsError
        As `Monitor`.
    """
    from lenscache.live.listening import read_text

    monitor, n_cut = Monitor(pack, concepts=concepts), 0
    logits = np.empty((len(texts), len(monitor.concepts)), np.float32)
    for number, text in enumerate(texts):
        n_cut += read_text(model, text, monitor).n_cut > 0
        logits[number] = monitor.pooled("prompt")[0].cpu().numpy()
    return logits, n_cut


def check_loaded(pack: LensPack, model: LoadedModel, *, allow_other: bool = False) -> str | None:
    """`lenstrain.live.reading.check_model` of a loaded model.

    Raises
    ------
    SettingsError
        If it is another model than the pack was made for, and that is not allowed or cannot work.
    """
    facts = ("id", "fingerprint", "dtype", "n_layers", "hidden")
    found = {name: getattr(model, name) for name in facts}
    return check_model(pack, found, model.tokenizer_fingerprint, allow_other=allow_other)
