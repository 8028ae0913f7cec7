"""A store as training data.

    store --open_dataset--> LensDataset --vectors(model_layer)--> X, one row a (sample, phase)
                                        --draw_task(concept)--> Task: which rows are what, by split

A vector is one phase of one sample; both phases of a sample carry its labels and stay in its split.
Samples are joined by key and labels by text, over all rounds: a text that one round labels for a
concept can never become that concept's negative because another round does not know of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from copy import copy
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from lenscache.concepts.hierarchy import Hierarchy
from lenscache.concepts.pack import naming
from lenscache.concepts.plan import SPLITS
from lenscache.concepts.prompts import EXAMPLE, POSITIVE, stable_hash
from lenscache.errors import StoreIncompleteError, argument
from lenscache.store.labelsets import LabelSet, read_label_set
from lenscache.store.layout import BACKGROUND
from lenscache.store.round import Round
from lenscache.store.store import Store, open_store
from lenscache.terms import Phase
from lenstrain.data.background import Background
from lenstrain.data.sampling import spread_sample
from lenstrain.errors import SettingsError
from lenstrain.settings import PhaseChoice

TRAIN, CALIBRATION, TEST = range(len(SPLITS))

SAMPLED_ROWS = 8192
"""Rows of a split that lenses are judged among as they train; see `LensDataset.sampled_rows`."""
_SPAN_BYTES = 64 * 2**20
_COLUMNS = ("key", "text", "kind", "split", "n_prompt_tokens", "n_completion_tokens", "temperature")

Rows = NDArray[np.intp]


class ExtractedPart(NamedTuple):
    """How much of what a store is to hold was complete."""

    blocks: int
    of_blocks: int
    concepts: int
    """With every sample."""
    of_concepts: int


class LensDataset:
    """The complete rounds of a store, joined.

    Parameters
    ----------
    store : an open store.
    levels : levels of abstraction to read; None for all that the store holds.
    phase : "both", "prompt" or "completion": what a vector is.
    seed : keys the choice of negatives.
    labels : name of a label set to use instead of the labels of the extraction; samples that carry
        none of its labels are left out.
    partial : read the complete blocks of rounds that are still being extracted, too. The dataset is
        what was complete when it was opened, and has the concepts of which every sample was.

    Raises
    ------
    StoreIncompleteError
        If a round of these levels is not finished; the message says how far it is.
    SettingsError
        If the store has no such level or phase.
    LabelSetError
        If the store has no such label set.
    """

    def __init__(
        self,
        store: Store,
        *,
        levels: Sequence[int] | None = None,
        phase: PhaseChoice = "both",
        seed: int = 0,
        labels: str | None = None,
        partial: bool = False,
    ) -> None:
        self.store, self.seed = store, seed
        self._options: dict[str, Any] = {"levels": levels, "seed": seed, "labels": labels}
        self._options["partial"] = partial
        self.phases = _phases(store, phase)
        self.label_set = None if labels is None else read_label_set(store, labels)
        self._rounds = _rounds_of(store, levels) if partial else _complete_rounds(store, levels)
        # Which blocks are complete is read first: others may be written while the rest is read.
        is_complete = all(entry.is_complete for entry in self._rounds)
        self._done = [entry.complete_blocks() for entry in self._rounds]
        keys, texts = self._join()
        self._label(texts)
        if self.label_set is not None:
            self._use_label_set(self.label_set, keys)
        self.extracted = None if is_complete else self._extracted()
        """How much there was when it was opened; None if everything was."""

    def _extracted(self) -> ExtractedPart:
        done = np.concatenate(self._done)
        return ExtractedPart(int(done.sum()), len(done), len(self.concepts), self.n_concepts)

    def _join(self) -> tuple[NDArray[np.uint8], list[list[str]]]:
        """Keep the first complete row of each sample.

        Returns
        -------
        The keys (samples, 16), and the texts of each round with the rows that are not kept.
        """
        wanted = None if self.label_set is None else set(map(bytes, self.label_set.key))
        seen: set[bytes] = set()
        self._kept: list[Rows] = []
        texts: list[list[str]] = []
        columns: dict[str, list[NDArray[Any]]] = {name: [] for name in _COLUMNS}
        for entry, done in zip(self._rounds, self._done, strict=True):
            samples, is_done, fresh = entry.samples(), _by_row(entry, done), []
            for row, key in enumerate(map(bytes, samples.key)):
                if is_done[row] and key not in seen and (wanted is None or key in wanted):
                    seen.add(key)
                    fresh.append(row)
            self._kept.append(np.array(fresh, np.intp))
            texts.append([str(text) for text in samples.text])
            for name, column in columns.items():
                column.append(getattr(samples, name)[self._kept[-1]])
        joined = {name: np.concatenate(column) for name, column in columns.items()}
        self.texts: list[str] = [str(text) for text in joined["text"]]
        self.kind: NDArray[np.uint8] = joined["kind"]
        self.split: NDArray[np.uint8] = joined["split"]
        self.n_prompt_tokens: NDArray[np.int32] = joined["n_prompt_tokens"]
        self.n_completion_tokens: NDArray[np.int32] = joined["n_completion_tokens"]
        """(samples,) generated tokens that were fed back."""
        self.temperature: NDArray[np.float32] = joined["temperature"]
        return joined["key"], texts

    def _label(self, texts: Sequence[Sequence[str]]) -> None:
        """Take up the labels of all rounds by concept and text, given the texts of each round."""
        marks = [entry.labels() for entry in self._rounds]
        self._labels = defaultdict[str, dict[str, int]](dict)
        # A concept's order is that of the rounds planned for it. Rounds of other concepts know some
        # of its texts, too, and must not bring those to the front.
        for planned in (True, False):
            for entry, own, of in zip(self._rounds, texts, marks, strict=True):
                for sample, concept, role in zip(*of, strict=True):
                    if (concept < len(entry.targets)) == planned:
                        labels = self._labels[entry.concepts[concept]]
                        labels.setdefault(own[sample], int(role))
        targets: dict[str, None] = {}
        unfinished: set[str] = set()
        for entry, done, of in zip(self._rounds, self._done, marks, strict=True):
            waiting = set(of.concept[~_by_row(entry, done)[of.sample]].tolist())
            targets.update(dict.fromkeys(entry.targets))
            unfinished.update(c for i, c in enumerate(entry.targets) if i in waiting)
        self.n_concepts = len(targets)
        """Concepts that the store is to hold, extracted or not yet."""
        self.concepts = tuple(concept for concept in targets if concept not in unfinished)

    def _use_label_set(self, label_set: LabelSet, keys: NDArray[np.uint8]) -> None:
        """Label the samples anew, each as the sample of the set that has its key."""
        number = {bytes(key): i for i, key in enumerate(label_set.key)}
        numbers = [number[bytes(key)] for key in keys]
        text_of = dict(zip(numbers, self.texts, strict=True))
        self._labels = defaultdict(dict)
        for sample, concept, role in zip(*label_set.labels, strict=True):
            if sample in text_of:
                labels = self._labels[label_set.concepts[concept]]
                labels.setdefault(text_of[sample], int(role))
        self.split = label_set.split[np.array(numbers, np.intp)]
        self.kind = np.full(len(numbers), EXAMPLE, np.uint8)
        self.concepts = tuple(concept for concept in label_set.concepts if concept in self._labels)
        self.n_concepts = len(self.concepts)

    def with_phase(self, phase: PhaseChoice) -> LensDataset:
        """The same samples and labels with other vectors.

        Raises
        ------
        SettingsError
            If the store does not hold the phase.
        """
        if _phases(self.store, phase) == self.phases:
            return self
        return LensDataset(self.store, phase=phase, **self._options)

    def with_splits(self, split: NDArray[np.uint8]) -> LensDataset:
        """The same samples and labels in other splits (samples,)."""
        other = copy(self)
        for name, value in vars(LensDataset).items():
            if isinstance(value, cached_property):
                vars(other).pop(name, None)
        other.split = split
        return other

    @property
    def rounds(self) -> tuple[str, ...]:
        """The rounds that are read."""
        return tuple(entry.name for entry in self._rounds)

    @property
    def rounds_left_out(self) -> tuple[str, ...]:
        """Later rounds of the same levels that are not finished, such as those of a top-up."""
        levels = sorted({entry.level for entry in self._rounds})
        names = [r.name for level in levels for r in self.store.rounds(level)]
        return tuple(name for name in names if name not in self.rounds)

    @property
    def n_samples(self) -> int:
        """Samples over all rounds."""
        return len(self.texts)

    @cached_property
    def completions(self) -> list[str]:
        """What the model wrote after each sample; read when first asked for."""
        rounds = zip(self._rounds, self._kept, strict=True)
        read = np.concatenate([entry.samples().completion[kept] for entry, kept in rounds])
        return [str(completion) for completion in read]

    @cached_property
    def hierarchy(self) -> Hierarchy:
        """Who is above, below and beside whom; the concepts of a label set are all siblings."""
        if self.label_set is not None:
            return Hierarchy(dict.fromkeys(self.label_set.concepts, 0), {})
        return self.store.hierarchy

    @property
    def concept_names(self) -> dict[str, str]:
        """What people call each concept, by id."""
        if self.label_set is not None:
            return dict(zip(self.label_set.concepts, self.label_set.names, strict=True))
        return self.store.concept_names

    @property
    def concept_attributes(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """What the pack says of a concept beside its texts, by id; none for a label set."""
        return {} if self.label_set is not None else self.store.concept_attributes

    @property
    def model_layers(self) -> tuple[int, ...]:
        """Transformer blocks whose activations the store holds."""
        return self.store.header.model_layers

    @cached_property
    def vector_sample(self) -> Rows:
        """(vectors,) the sample of each vector; without a position in a phase it has none there."""
        return np.concatenate([self._samples_with(phase) for phase in self.phases])

    @cached_property
    def vector_phase(self) -> NDArray[np.uint8]:
        """(vectors,) index into `phases`."""
        counts = [len(self._samples_with(phase)) for phase in self.phases]
        return np.repeat(np.arange(len(self.phases), dtype=np.uint8), counts)

    @cached_property
    def text_number(self) -> Rows:
        """(samples,) the text of each: completions of one text are one sample wherever samples are
        counted."""
        number = np.empty(self.n_samples, np.intp)
        for i, rows in enumerate(self._rows_of_text.values()):
            number[rows] = i
        return number

    def unnamed(self, concept: str, rows: Rows) -> NDArray[np.bool_]:
        """(rows,) which of some samples of a concept do not name it.

        These are natural examples without the name of the concept. In a store of examples alone,
        such as labelled texts, the name is a label that nobody wrote the texts around: there, all
        samples count as unnamed.
        """
        if self._has_examples_alone:
            return np.ones(len(rows), np.bool_)
        pattern = naming([self.concept_names[concept]])
        named = [pattern.search(self.texts[row]) is not None for row in rows]
        return np.asarray(self.kind[rows] == EXAMPLE) & ~np.array(named, np.bool_)

    @cached_property
    def _has_examples_alone(self) -> bool:
        return bool((self.kind == EXAMPLE).all())

    @property
    def has_two_classes(self) -> bool:
        """Whether its texts are labelled in two classes, as those of a binary labelled set."""
        return self._has_examples_alone and self.n_concepts <= 2

    @cached_property
    def background(self) -> Background | None:
        """Vectors of texts that express no concept; None if the store has none that is complete."""
        source = self.store.background
        if source is None or not source.is_complete:
            return None
        return Background(source, self.store.header, self.phases)

    @cached_property
    def split_order(self) -> Rows:
        """(vectors,) the vectors sorted by split, so that a split is a slice."""
        return np.argsort(self.split[self.vector_sample], kind="stable")

    @cached_property
    def split_place(self) -> Rows:
        """(vectors,) the place of each vector in `split_order`."""
        place = np.empty_like(self.split_order)
        place[self.split_order] = np.arange(len(place))
        return place

    @cached_property
    def samples_by_split(self) -> Rows:
        """(vectors,) the sample of each vector, in `split_order`."""
        return self.vector_sample[self.split_order]

    @cached_property
    def phases_by_split(self) -> NDArray[np.uint8]:
        """(vectors,) the phase of each vector, in `split_order`."""
        return self.vector_phase[self.split_order]

    @cached_property
    def split_slices(self) -> tuple[slice, ...]:
        """The places of each split in `split_order`."""
        ends = np.cumsum(np.bincount(self.split[self.vector_sample], minlength=len(SPLITS)))
        return tuple(slice(int(start), int(end)) for start, end in pairwise([0, *ends]))

    @cached_property
    def sampled_rows(self) -> tuple[Rows, ...]:
        """For each split, rows counted from its first that lenses are judged among as they train.

        All of them, or `SAMPLED_ROWS` that are spread evenly over the concepts, so that to judge a
        lens costs as much in a store of 5,000 concepts as in one of 500.
        """
        concept = np.full(self.n_samples, -1)
        for number, rows in enumerate(self.positive_rows.values()):
            concept[rows] = number
        return tuple(
            spread_sample(
                concept[self.samples_by_split[rows]],
                SAMPLED_ROWS,
                np.random.default_rng(stable_seed("sampled rows", self.seed, split)),
            )
            for split, rows in enumerate(self.split_slices)
        )

    def vectors(self, model_layer: int, place: Rows | None = None) -> NDArray[np.float32]:
        """(vectors, hidden) raw activations of one model layer.

        Parameters
        ----------
        place : (vectors,) the row of each vector in the result; None for that of `vector_sample`.
        """
        X = np.empty((len(self.vector_sample), self.store.header.hidden), np.float32)
        for number, phase in enumerate(self.phases):
            first = 0
            for entry, kept, done in zip(self._rounds, self._kept, self._done, strict=True):
                vector = self._vector_number[first : first + len(kept), number]
                first += len(kept)
                for rows in _spans(entry, done, X.shape[1]):
                    here = (vector >= 0) & (kept >= rows.start) & (kept < rows.stop)
                    read = entry.read(phase, model_layer, rows)
                    target = vector[here] if place is None else place[vector[here]]
                    X[target] = read[kept[here] - rows.start]
        return X

    def vectors_of(self, samples: Rows) -> Rows:
        """Vectors of some samples, all phases of the first sample first."""
        found = self._vector_number[samples].ravel()
        return found[found >= 0]

    def positives(self, concept: str) -> Rows:
        """Samples that express a concept and have a vector, in its nested order."""
        rows = self.rows_with_role(concept, POSITIVE)
        return rows[self.has_vector[rows]]

    def labelled(self, concept: str) -> Rows:
        """Samples with any label of a concept: its ancestors and descendants are judged without."""
        return self._labelled_rows.get(concept, NO_ROWS)

    def rows_with_role(self, concept: str, role: int) -> Rows:
        """Rows that carry a label in this role, in the concept's nested order."""
        texts = (text for text, found in self._labels.get(concept, {}).items() if found == role)
        # Repeated texts come after all others: the first samples must not be copies of each other.
        places = [
            (time, i, row)
            for i, text in enumerate(texts)
            for time, row in enumerate(self._rows_of_text[text])
        ]
        return np.array([row for _, _, row in sorted(places)], np.intp)

    @cached_property
    def _rows_of_text(self) -> defaultdict[str, list[int]]:
        rows: defaultdict[str, list[int]] = defaultdict(list)
        for row, text in enumerate(self.texts):
            rows[text].append(row)
        return rows

    @cached_property
    def positive_rows(self) -> dict[str, Rows]:
        """For each concept, the rows that express it, with and without a vector."""
        return {concept: self.rows_with_role(concept, POSITIVE) for concept in self._labels}

    @cached_property
    def _labelled_rows(self) -> dict[str, Rows]:
        """Rows with any label of a concept, contrasts included."""
        rows = self._rows_of_text
        return {
            concept: np.array([row for text in texts for row in rows.get(text, ())], np.intp)
            for concept, texts in self._labels.items()
        }

    @cached_property
    def branch_rows(self) -> list[dict[str, Rows]]:
        """For each split, the rows that express anything on a branch, by the root concept."""
        found: dict[str, list[Rows]] = {}
        for concept, rows in self.positive_rows.items():
            for branch in self.hierarchy.branches(concept):
                found.setdefault(branch, []).append(rows)
        merged = {branch: np.unique(np.concatenate(found[branch])) for branch in sorted(found)}
        return [
            {b: rows[self.split[rows] == split] for b, rows in merged.items()}
            for split in range(len(SPLITS))
        ]

    @cached_property
    def _vector_number(self) -> NDArray[np.intp]:
        """(samples, phases) index of each vector, -1 where there is none."""
        number = np.full((self.n_samples, len(self.phases)), -1, np.intp)
        number[self.vector_sample, self.vector_phase] = np.arange(len(self.vector_sample))
        return number

    @cached_property
    def has_vector(self) -> NDArray[np.bool_]:
        """(samples,) whether a sample has a pooled position in any phase that is read."""
        return np.asarray((self._vector_number >= 0).any(axis=1))

    def _samples_with(self, phase: Phase) -> Rows:
        if phase == "completion":
            return np.flatnonzero(self.n_completion_tokens > 0)
        return np.flatnonzero(self._has_prompt_position & self._is_first_of_text)

    @cached_property
    def _is_first_of_text(self) -> NDArray[np.bool_]:
        """(samples,) False for a text sampled again: its prompt is the same and has its vector."""
        first = np.zeros(self.n_samples, np.bool_)
        first[[rows[0] for rows in self._rows_of_text.values() if rows]] = True
        return first

    @cached_property
    def _has_prompt_position(self) -> NDArray[np.bool_]:
        if self.store.header.pool_first_position:
            return np.ones(self.n_samples, np.bool_)
        return np.asarray(self.n_prompt_tokens > 1)


class ExtractionState(NamedTuple):
    """How far the extraction of a store is."""

    blocks_done: int
    blocks_total: int
    complete: bool
    """Every round is written and verified."""


def extraction_state(path: str | Path, levels: Sequence[int] | None = None) -> ExtractionState:
    """How far the store at `path` is, over some levels or all; read anew at every call."""
    store = open_store(path)
    rounds = _rounds_of(store, levels) + store.rounds(BACKGROUND)
    done = sum(int(entry.complete_blocks().sum()) for entry in rounds)
    total = sum(entry.n_blocks for entry in rounds)
    return ExtractionState(done, total, all(entry.is_complete for entry in rounds))


def header_of(path: str | Path) -> dict[str, Any]:
    """The header of the store at `path`, as packs record it."""
    return open_store(path).header.to_attributes()


def stable_seed(*parts: object) -> int:
    """A number that depends on `parts` alone, on every machine: what is drawn is keyed by it."""
    return stable_hash(*parts)


def open_dataset(store: str | Path | Store, **options: Any) -> LensDataset:
    """Open a store, or the one at a path, as training data; `options` as for `LensDataset`."""
    return LensDataset(store if isinstance(store, Store) else open_store(store), **options)


NO_ROWS: Rows = np.zeros(0, np.intp)


def _phases(store: Store, phase: PhaseChoice) -> tuple[Phase, ...]:
    choices = get_args(PhaseChoice)
    if phase not in choices:
        raise SettingsError(f"phase is {phase!r}, expected one of {', '.join(choices)}")
    held = store.header.phases
    if phase == "both":
        return held
    if phase not in held:
        raise SettingsError(
            f"the store holds the phase {held[0]} only, {phase} was asked for: "
            f"extract with {argument('mode', 'combined')}"
        )
    return (phase,)


def _by_row(entry: Round, done: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(rows,) of a value for each block."""
    return np.repeat(done, entry.block_rows)[: entry.n_samples]


def _spans(entry: Round, done: NDArray[np.bool_], hidden: int) -> Iterator[slice]:
    """Runs of rows of complete blocks, each small beside what is read in all."""
    most = max(1, _SPAN_BYTES // (4 * hidden * entry.block_rows))
    blocks = np.flatnonzero(done)
    for run in np.split(blocks, np.flatnonzero(np.diff(blocks) > 1) + 1):
        for start in range(0, len(run), most):
            part = run[start : start + most]
            yield slice(entry.rows(int(part[0])).start, entry.rows(int(part[-1])).stop)


def _rounds_of(store: Store, levels: Sequence[int] | None) -> list[Round]:
    held = store.levels()
    if not held:
        raise StoreIncompleteError(
            f"{store.path} holds no samples yet: run `lenscache extract` again to continue"
        )
    for level in levels or ():
        if level not in held:
            raise SettingsError(
                f"level {level} is not in the store, which has the levels {held}; "
                f"{argument('levels', None, 'level')} selects levels of abstraction, transformer "
                f"blocks are selected with {argument('model_layers', None)}"
            )
    return [r for level in (levels or held) for r in store.rounds(level)]


def _complete_rounds(store: Store, levels: Sequence[int] | None) -> list[Round]:
    rounds = _rounds_of(store, levels)
    for r in (*rounds, *store.rounds(BACKGROUND)):
        if not r.is_complete and r.index == 0:
            done = r.complete_blocks()
            raise StoreIncompleteError(
                f"{store.path}: {r.name} is not finished, {int(done.sum())} of {done.size} blocks "
                f"are extracted{' but not verified' if done.all() else ''}: run the same "
                "`lenscache extract` again to continue, or fit other levels with "
                f"{argument('levels', None, 'level')}"
            )
    return [r for r in rounds if r.is_complete]
