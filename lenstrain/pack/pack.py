"""Lens packs in memory: all lenses trained from one store, and their scores.

The weights of linear lenses are one matrix, so scoring an activation with the whole pack is one
matrix product a model layer. What a folder of them holds is in `lenstrain.pack.folder`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenstrain.errors import SettingsError, UnknownNameError
from lenstrain.families.checks import activation_rows
from lenstrain.families.linear import LinearWeights
from lenstrain.families.standardizer import Standardizer
from lenstrain.families.weights import n_inputs
from lenstrain.metrics.grade import Grade
from lenstrain.pack.folder import PackContent, read_folder, write_beside, write_folder
from lenstrain.pack.lens import Lens, shared_norm

if TYPE_CHECKING:
    import pandas as pd

    from lenscache.model.loading import LoadedModel
    from lenstrain.families.checks import Activations

_NATURAL = ("natural_score", "natural_false_positive_rate")  # of a store with a background


class _Readers(NamedTuple):
    """The lenses that read one model layer, by number."""

    linear: list[int]
    weight: NDArray[np.float32]
    """(linear, hidden) their weights of this model layer."""
    norm: Standardizer | None
    """What they share where they divide by the length of an activation."""
    others: list[int]
    alone: list[int]
    """Those that read no other model layer."""


@dataclass(eq=False, repr=False)
class LensPack(PackContent):
    """A lens pack in memory: a sequence of lenses that can score activations all at once.

    Parameters
    ----------
    skipped : why a concept has no lens, by concept.
    short : of the skipped, the concepts that ask for more samples.
    vocabulary : of lenses that read text.
    text : the pack of text lenses that was trained beside this one.
    run : when and how long the fit ran.

    Examples
    --------
    >>> pack = LensPack.load("lenses")  # doctest: +SKIP
    >>> pack["bird"].predict_proba(X)  # doctest: +SKIP
    >>> pack.score(X, model_layer=15)  # (n, lenses of model layer 15)  # doctest: +SKIP
    """

    text: LensPack | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.lenses = tuple(self.lenses)
        self._by_concept = {lens.concept: lens for lens in self.lenses}
        self._by_model_layer: dict[int, _Readers] = {}

    def __len__(self) -> int:
        return len(self.lenses)

    def __iter__(self) -> Iterator[Lens]:
        return iter(self.lenses)

    def __getitem__(self, concept: str) -> Lens:
        if concept not in self._by_concept:
            raise UnknownNameError("lens of the concept", concept, self._by_concept)
        return self._by_concept[concept]

    def __repr__(self) -> str:
        grades = ", ".join(f"{n} {grade}" for grade, n in self.grades().items())
        model = self.provenance.model.get("id", "an unknown model")
        return f"LensPack({len(self)} {self.family} lenses of {model}: {grades})"

    def _repr_html_(self) -> str:
        from lenstrain.quick import pack_html

        return pack_html(self)

    def __contains__(self, concept: object) -> bool:
        return concept in self._by_concept

    @property
    def family(self) -> str:
        """What its lenses are."""
        return self.provenance.family

    @property
    def model_layers(self) -> tuple[int, ...]:
        """Transformer blocks that any lens reads, ascending."""
        return tuple(sorted({i for lens in self.lenses for i in lens.model_layers}))

    @property
    def hungry(self) -> list[str]:
        """Concepts that used every cached sample and did not graduate."""
        return [lens.concept for lens in self.lenses if lens.metrics.hungry]

    def at(self, model_layer: int) -> list[Lens]:
        """The lenses that read one model layer alone, in the order of `score`'s columns."""
        return [lens for lens in self.lenses if lens.model_layers == (model_layer,)]

    def score(self, X: Activations, model_layer: int) -> NDArray[np.float32]:
        """(n, lenses at this model layer) logits of raw activations X (n, hidden).

        Raises
        ------
        SettingsError
            If no lens reads this model layer alone, or X has another shape.
        """
        if not self._readers(model_layer).alone:
            read = ", ".join(map(str, self.model_layers)) or "none"
            several = any(model_layer in lens.model_layers for lens in self)
            hint = ": use score_all, with the activations of all of them" if several else ""
            raise SettingsError(
                f"no lens of this pack reads model layer {model_layer} alone, its lenses read "
                f"{read}{hint}"
            )
        rows = activation_rows(X, n_inputs(self.at(model_layer)[0].weights))
        scores = self.no_scores(len(rows))
        self.add_scores(scores, rows, model_layer)
        here = self._readers(model_layer).alone
        return scores if len(here) == len(self) else scores[:, here]

    def score_all(self, activations: Mapping[int, Activations]) -> NDArray[np.float32]:
        """(n, lenses) logits of raw activations (n, hidden) of every model layer that lenses read.

        Raises
        ------
        UnknownNameError
            If a model layer is missing.
        SettingsError
            If the lenses read text, or activations do not have the shape that they read.
        """
        if self.vocabulary is not None:
            raise SettingsError("the lenses of this pack read text: use `score_texts`")
        if missing := [i for i in self.model_layers if i not in activations]:
            known = map(str, sorted(activations))
            raise UnknownNameError("activation of model layer", missing[0], known)
        hidden = [n_inputs(x.weights) // len(x.model_layers) for x in self.lenses[:1]]
        rows = {i: activation_rows(activations[i], *hidden) for i in self.model_layers}
        counts = {len(X) for X in rows.values()}
        if len(counts) > 1:
            raise SettingsError(f"model layers have {sorted(counts)} rows, expected as many each")
        scores = self.no_scores(max(counts, default=0))
        for model_layer, its in rows.items():
            self.add_scores(scores, its, model_layer)
        return scores

    def no_scores(self, n: int) -> NDArray[np.float32]:
        """(n, lenses) to add the scores of each model layer to."""
        return np.tile(self._biases, (n, 1))

    def add_scores(self, scores: NDArray[np.float32], X: NDArray[Any], model_layer: int) -> None:
        """Add to `scores` (n, lenses) what raw activations X (n, hidden) of one model layer say.

        For whoever cannot hold the activations of all model layers at once.
        """
        readers = self._readers(model_layer)
        if len(readers.linear):
            # For one row, a product with a vector is several times faster, with the same numbers.
            X = X.astype(np.float32, copy=False)
            X = X if readers.norm is None else readers.norm.over_length(X)
            product = (readers.weight @ X[0])[None] if len(X) == 1 else X @ readers.weight.T
            if len(readers.linear) == len(self):
                scores += product
            else:
                scores[:, readers.linear] += product
        for number in readers.others:
            scores[:, number] += self.lenses[number].decision_function(X)

    def score_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, lenses) logits of texts, for a pack of text lenses.

        Raises
        ------
        ValueError
            If the lenses read activations.
        """
        if self.vocabulary is None:
            raise ValueError(
                "the lenses of this pack read activations: `LensPack.text` has those that read text"
            )
        rows = self.vocabulary.transform(texts)
        own = [lens.weights for lens in self.lenses]
        weight = np.array([w.weight for w in own if isinstance(w, LinearWeights)])
        return np.asarray(rows @ weight.T + self._biases, np.float32)

    @cached_property
    def _biases(self) -> NDArray[np.float32]:
        own = (lens.weights for lens in self.lenses)
        biases = [w.bias if isinstance(w, LinearWeights) else 0.0 for w in own]
        return np.array(biases, np.float32)

    def _readers(self, model_layer: int) -> _Readers:
        if model_layer not in self._by_model_layer:
            linear, rows, others, alone = [], [], [], []
            for number, lens in enumerate(self.lenses):
                if lens.model_layers == (model_layer,):
                    alone.append(number)
                if model_layer in lens.model_layers:
                    if isinstance(lens.weights, LinearWeights):
                        parts = np.split(lens.weights.weight, len(lens.model_layers))
                        linear.append(number)
                        rows.append(parts[lens.model_layers.index(model_layer)])
                    else:
                        others.append(number)
            hidden = len(rows[0]) if rows else 0
            weight = np.array(rows, np.float32).reshape(len(rows), hidden)
            norm = shared_norm(self.lenses, model_layer)
            self._by_model_layer[model_layer] = _Readers(linear, weight, norm, others, alone)
        return self._by_model_layer[model_layer]

    def predict(
        self,
        model: str | LoadedModel,
        texts: Any,
        *,
        text: str = "text",
        concepts: Sequence[str] | None = None,
        prevalence: float = 0.5,
        allow_other_model: bool = False,
    ) -> pd.DataFrame:
        """Calibrated probabilities that texts express the concepts; see `lenstrain.quick.predict`.

        Parameters
        ----------
        model : the model that the pack was made for.
        texts : a list of texts, or a table whose column `text` is read.
        concepts : whose lenses to use; None for all.
        prevalence : share of texts that express a concept where the lenses are used.
        allow_other_model : go on with another model whose activations mean the same.
        """
        from lenstrain.quick import predict  # not above: it needs pandas, and packs do not

        asked: dict[str, Any] = {"text": text, "concepts": concepts, "prevalence": prevalence}
        return predict(self, model, texts, **asked, allow_other_model=allow_other_model)

    def to_frame(self) -> pd.DataFrame:
        """The lenses as a table, one a row: grade, scores and sample counts, by concept."""
        from lenstrain.quick import pack_frame

        return pack_frame(self)

    def grades(self) -> dict[str, int]:
        """How many lenses have each grade, and how many have none."""
        counts = Counter("ungraded" if lens.grade is None else lens.grade.value for lens in self)
        return {grade: counts[grade] for grade in (*(g.value for g in Grade), "ungraded")}

    @property
    def grading_rule(self) -> int:
        """Number of the rule that its grades come from: see `lenstrain.metrics.grade.RULE`."""
        return self.provenance.grading_rule or 1

    def summary(self) -> dict[str, Any]:
        """The pack in a few numbers."""

        def mean(metric: str) -> float:
            # What packs of an older rule did not measure is left out.
            found = (lens.metrics.get(metric) for lens in self)
            values = [value for value in found if value is not None and not math.isnan(value)]
            return float(np.mean(values)) if values else math.nan

        of = ["test_f1", "test_f1_unnamed", "test_f1_named", "score", "score_named", "n_samples"]
        of += ["iterations", *[name for name in _NATURAL if any(name in x.metrics for x in self)]]
        return {
            "n_lenses": len(self),
            "grades": self.grades(),
            "grading_rule": self.grading_rule,
            "capped": sum(lens.is_capped for lens in self),
            "graduated": sum(lens.metrics.graduated for lens in self.lenses),
            "hungry": self.hungry,
            "skipped": self.skipped,
            **{f"mean_{metric.removeprefix('n_')}": mean(metric) for metric in of},
        }

    @classmethod
    def load(cls, folder: str | Path) -> LensPack:
        """Read a lens pack from its folder.

        Raises
        ------
        LensPackNotFoundError
            If there is none.
        LensPackFormatError
            If the folder holds something else, or a pack of a newer format.
        """
        folder = Path(folder)
        own = read_folder(folder)
        text = cls.load(folder / "text") if (folder / "text").exists() else None
        return cls(**vars(own), text=text)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the pack to a folder that does not exist yet.

        Parameters
        ----------
        overwrite : replace a lens pack that is there; it stays until the new one is complete.

        Raises
        ------
        LensPackExistsError
            If the folder exists, and is not a lens pack or `overwrite` is off.
        """
        write_beside(Path(folder), self._write, overwrite=overwrite)

    def _write(self, folder: Path) -> None:
        write_folder(folder, self)
        if self.text is not None:
            (folder / "text").mkdir()
            self.text._write(folder / "text")
