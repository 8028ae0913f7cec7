"""A text read with the lenses of a pack, as `lenstrain read` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lenstrain.live.monitor import WINDOW, Monitor
from lenstrain.live.naming_rule import Rule
from lenstrain.live.reading import Reading, make_reading
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
