"""What a lens pack finds in a text: the strongest lenses of each token, and of the whole text.

Lenses are trained on activations pooled over a whole prompt or completion, and so are their noise
floors. A single token scatters more, so a token's score is pooled over a trailing window. Measured
on SmolLM2 with the starter pack (51 lenses of grade A and B, 400 held-out prompts of about 12
tokens), scores of lenses that have nothing to do with a text:

    window                           1      2      4      8      16     32
    their deviation, noise floor 1   1.46   1.27   1.13   1.00   0.91   0.90
    tokens naming one, bar 3         63 %   46 %   32 %   21 %   14 %   14 %
    tokens naming one, bar 4         26 %   15 %   9 %    5 %    3 %    3 %
    own lens named, 0.5 % unrelated  25 %   29 %   32 %   32 %   29 %   29 %  of tokens

With 8 positions tokens scatter as much as the noise floor of a pack says, and at the same rate of
false alarms a lens finds its own concept as often as with any window. A bar of 4 deviations still
names something unrelated at one token in twenty: a concept that is named at a single token is a
hint, one that is named over a stretch is a finding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lenscache.errors import argument
from lenstrain.errors import SettingsError
from lenstrain.live.naming_rule import Finding, Presence, Rule
from lenstrain.pack.pack import LensPack


@dataclass(frozen=True)
class TokenReading:
    """One token of a text and the lenses that are named there."""

    text: str
    """Its piece of the text; empty if it completes a character that began in the token before."""
    findings: tuple[Finding, ...]
    """The strongest signal first; none where no lens is sure enough."""


@dataclass(frozen=True)
class Reading:
    """A text as the lenses of a pack read it."""

    tokens: tuple[TokenReading, ...]
    whole: tuple[Finding, ...]
    """Of the text pooled over all its positions, as the prompts that lenses are trained on."""
    window: int
    """Positions that a token's score is pooled over."""
    rule: Rule
    n_lenses: int
    n_judged: int
    """Lenses whose grade is good enough to be named."""
    n_cut: int = 0
    """Tokens at the end that were not read: the model has no positions for them."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "window": self.window,
            "min_grade": self.rule.min_grade.value,
            "untrusted": self.rule.untrusted,
            "min_signal": self.rule.min_signal,
            "n_lenses": self.n_lenses,
            "n_judged": self.n_judged,
            "tokens": [
                {"text": token.text, "lenses": [_finding_json(each) for each in token.findings]}
                for token in self.tokens
            ],
            "whole": [_finding_json(each) for each in self.whole],
        }


def make_reading(
    presence: Presence,
    tokens: Sequence[str],
    scores: NDArray[np.float32],
    pooled: NDArray[np.float32],
    *,
    window: int,
    top: int = 3,
    n_cut: int = 0,
) -> Reading:
    """What the lenses say of a text.

    Parameters
    ----------
    presence : the lenses, and when one is named.
    tokens : (n,) pieces of the text.
    scores : (n, lenses) logits at each token; NaN where none is counted.
    pooled : (lenses,) logits of the whole text.
    window : positions that each of `scores` is pooled over.
    top : lenses to name at a token, and of the whole text, at most.
    n_cut : tokens at the end that were not read.

    Raises
    ------
    ValueError
        If there are not as many scores as tokens.
    """
    if len(tokens) != len(scores):
        raise ValueError(f"{len(scores)} rows of scores for {len(tokens)} tokens")
    found = tuple(
        TokenReading(text, presence.strongest(row, top))
        for text, row in zip(tokens, scores, strict=True)
    )
    whole = presence.strongest(pooled, top, whole=True)
    counts = len(presence.lenses), presence.n_judged, n_cut
    return Reading(found, whole, window, presence.rule, *counts)


def check_model(
    pack: LensPack, model: Mapping[str, Any], tokenizer: str, *, allow_other: bool = False
) -> str | None:
    """Check that a pack may read with a model; a remark on the difference, None if there is none.

    The same model in another floating point type is allowed: its activations differ by rounding.

    Parameters
    ----------
    model : id, fingerprint, dtype, n_layers and hidden of the model, as in the header of a store.
    tokenizer : fingerprint of its tokenizer.
    allow_other : go on with another model of the same hidden size that has the pack's model layers.

    Raises
    ------
    SettingsError
        If it is another model, and that is not allowed or cannot work.
    """
    store, made = pack.provenance.store, pack.provenance.model
    same_weights = made.get("fingerprint") == model["fingerprint"]
    same_tokenizer = store.get("tokenizer", {}).get("fingerprint") in (None, tokenizer)
    if same_weights and same_tokenizer:
        return None
    ours, theirs = (
        f"{m.get('id')} (weights {m.get('fingerprint')}, {m.get('dtype')})" for m in (made, model)
    )
    same_model = all(made.get(name) == model[name] for name in ("id", "hidden", "n_layers"))
    if same_model and made.get("dtype") != model["dtype"] and same_tokenizer:
        return (
            f"computed in {model['dtype']}, the pack's activations in {made.get('dtype')}: scores "
            "differ by rounding"
        )
    what = "tokenizer" if same_weights else "model"
    if not allow_other:
        raise SettingsError(
            f"the pack was made with another {what}: {ours}, not {theirs}: read with the one it "
            f"was made for, or pass {argument('allow_other_model')} if you know that the "
            "activations mean the same"
        )
    last = max(pack.model_layers, default=0)
    if made.get("hidden") != model["hidden"] or last >= int(model["n_layers"]):
        raise SettingsError(
            f"the lenses cannot read this model: they were made for {made.get('n_layers')} "
            f"transformer blocks of size {made.get('hidden')}, it has {model['n_layers']} of size "
            f"{model['hidden']}"
        )
    return (
        f"the pack was made with another {what}, {ours}: no grade or probability of it is known to "
        "hold here"
    )


def _finding_json(found: Finding) -> dict[str, Any]:
    return {**found._asdict(), "grade": found.grade and found.grade.value}
