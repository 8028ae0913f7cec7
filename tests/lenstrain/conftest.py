"""Stores written without a model: activations in which the direction of every concept is known."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.concepts.plan import SamplePlan, plan_samples
from lenscache.concepts.prompts import POSITIVE, stable_hash
from lenscache.store.header import StoreHeader
from lenscache.store.round import Block, Round
from lenscache.store.store import Store, create_store
from lenscache.terms import Phase
from lenstrain.data.dataset import LensDataset

HIDDEN = 48
SIGNAL_LAYER = 1
"""The model layer that holds the directions; model layer 0 is noise alone."""
BLOCK_ROWS = 64

BRANCHES = ("nature", "society", "craft")
LEAVES = (
    ("bird", "fish", "tree"),
    ("vote", "debt", "wedding"),
    ("boat", "oven", "loom"),
)


@dataclass(frozen=True)
class Planting:
    """What is put into the activations of a planted store."""

    strength: float = 8.0
    """Length of a concept's direction in a prompt; noise has deviation 1 in every feature."""
    completion_strength: float = 6.0
    without_completion: float = 0.0
    """Share of rows with no generated token: count 0 and NaN activations."""
    noise_seed: int = 0
    offset: float = 3.0
    """A constant that all rows share: features do not have mean 0."""
    flat: tuple[str, ...] = ()
    """Concepts that leave no trace: their lenses have nothing to find."""


def planted_pack(
    *, n_examples: int = 20, n_contrasts: int = 4, changes: Sequence[Concept] = ()
) -> ConceptPack:
    """Three branches on level 0 with three concepts each on level 1; `changes` replace or add
    concepts."""
    concepts = {branch: _concept(branch, 0, (), n_examples, n_contrasts) for branch in BRANCHES}
    for branch, leaves in zip(BRANCHES, LEAVES, strict=True):
        concepts |= {leaf: _concept(leaf, 1, (branch,), n_examples, n_contrasts) for leaf in leaves}
    concepts |= {concept.id: concept for concept in changes}
    return ConceptPack("planted", "1", tuple(concepts.values()))


def _concept(
    name: str, level: int, parents: tuple[str, ...], n_examples: int, n_contrasts: int
) -> Concept:
    return Concept(
        id=name,
        name=name,
        level=level,
        definition=f"What the {name} is.",
        parents=parents,
        examples=tuple(
            f"Sight {i} of it, as kept in book {stable_hash(name, i) % 9973}."
            for i in range(n_examples)
        ),
        contrasts=tuple(f"The word {name} on van {i}." for i in range(n_contrasts)),
    )


@cache
def _directions() -> NDArray[np.float64]:
    """(HIDDEN, HIDDEN) orthonormal rows: no concept is in another's way."""
    return np.asarray(np.linalg.qr(np.random.default_rng(7).normal(size=(HIDDEN, HIDDEN)))[0])


def direction_of(concept: str) -> NDArray[np.float64]:
    """The unit vector of a concept of `planted_pack`, at right angles to all others."""
    names = [*BRANCHES, *chain(*LEAVES)]
    number = (
        names.index(concept)
        if concept in names
        else len(names) + stable_hash(concept) % (HIDDEN - len(names))
    )
    return np.asarray(_directions()[number])


def planted_activations(
    plan: SamplePlan, planting: Planting, phase: Phase, model_layer: int
) -> NDArray[np.float64]:
    """(n, hidden): noise, and in `SIGNAL_LAYER` the direction of every concept that a row
    expresses.

    Everything about a row is keyed by its text, as with a real model.
    """
    rows = [
        np.random.default_rng(stable_hash(planting.noise_seed, phase, model_layer, text)).normal(
            size=HIDDEN
        )
        for text in plan.texts
    ]
    X = np.stack(rows) + planting.offset
    if model_layer != SIGNAL_LAYER:
        return X
    strength = planting.strength if phase == "prompt" else planting.completion_strength
    for sample, number, role in zip(
        plan.label_sample, plan.label_concept, plan.label_role, strict=True
    ):
        if role == POSITIVE and plan.concepts[number] not in planting.flat:
            X[sample] += strength * direction_of(plan.concepts[number])
    return X


def planted_header(pack: ConceptPack, **changes: Any) -> StoreHeader:
    header = StoreHeader(
        model_id="planted",
        model_fingerprint="0" * 16,
        model_dtype="float32",
        n_layers=2,
        hidden=HIDDEN,
        tokenizer_fingerprint="1" * 16,
        pack_name=pack.name,
        pack_version=pack.version,
        pack_digest=pack.digest,
        model_layers=(0, 1),
        mode="combined",
        max_new_tokens=8,
        max_prompt_tokens=0,
        pooling="mean",
        pool_first_position=True,
        special_tokens=True,
        store_dtype="float32",
        seed=0,
    )
    return dataclasses.replace(header, **changes)


def has_completion(plan: SamplePlan, planting: Planting) -> NDArray[np.bool_]:
    """(n,) which rows generated anything."""
    drawn = [stable_hash("completion", text) / 2**64 for text in plan.texts]
    return np.array(drawn) >= planting.without_completion


def plant_round(
    store: Store,
    level: int,
    index: int,
    plan: SamplePlan,
    planting: Planting | None = None,
    *,
    n_blocks: int | None = None,
    verified: bool = True,
    sampling: str = "",
) -> Round:
    """Write a round; only its first `n_blocks` blocks if given, and without the mark of
    verification if not.

    Another `sampling` gives the same texts other keys, as sampling them again does.
    """
    planting, header = planting or Planting(), store.header
    keys = [
        hashlib.blake2b((sampling + text).encode(), digest_size=16).digest() for text in plan.texts
    ]
    target = store.create_round(
        level,
        index,
        plan,
        keys=np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16),
        n_prompt_tokens=np.array([len(text.split()) for text in plan.texts], np.int32),
        block_rows=BLOCK_ROWS,
    )
    generated = has_completion(plan, planting) & (header.mode != "prompt")
    arrays = {
        (p, m): planted_activations(plan, planting, p, m)
        for p in header.phases
        for m in header.model_layers
    }
    for (phase, _), values in arrays.items():
        if phase == "completion":
            values[~generated] = np.nan
    for block in range(target.n_blocks if n_blocks is None else n_blocks):
        rows = target.rows(block)
        target.write_block(
            block,
            Block(
                {place: values[rows] for place, values in arrays.items()},
                ["and so on" if found else "" for found in generated[rows]],
                np.where(generated[rows], 8, 0).astype(np.int32),
            ),
        )
    if verified:
        errors = {str(model_layer): 0.0 for model_layer in header.model_layers}
        record = {"rows": 4, "tolerance": 1e-4, "max_relative_error": errors}
        target.update_attributes({"verification": record})
    return target


def make_planted_store(
    path: str | Path,
    *,
    pack: ConceptPack | None = None,
    planting: Planting | None = None,
    levels: Sequence[int] | None = None,
    change_plan: Callable[[SamplePlan], SamplePlan] = lambda plan: plan,
    **header: Any,
) -> Store:
    """Write a complete store of one round for each level of the pack.

    `change_plan` edits each plan before it is written; `header` changes the store's settings.
    """
    pack = pack or planted_pack()
    store = create_store(path, planted_header(pack, **header), pack)
    for level in pack.levels if levels is None else levels:
        plant_round(store, level, 0, change_plan(plan_samples(pack, [level])), planting)
    return store


@pytest.fixture(scope="session")
def planted_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two levels, twelve concepts, clear directions. Shared between tests: do not change it."""
    return make_planted_store(tmp_path_factory.mktemp("planted") / "store.zarr")


@pytest.fixture(scope="session")
def planted(planted_store: Store) -> LensDataset:
    """The planted store as training data. Shared between tests: do not change it."""
    return LensDataset(planted_store)


@pytest.fixture
def fresh(planted_store: Store) -> LensDataset:
    """The planted store as training data that a test may change."""
    return LensDataset(planted_store)
