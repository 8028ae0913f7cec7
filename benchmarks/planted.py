"""Stores written without a model, in which every concept's direction is known: what
benchmarks/fit.py fits lenses on.

    python benchmarks/planted.py PATH [--concepts 1000] [--quick]

A store as `lenscache extract` would leave it: a concept pack of made-up words with a hierarchy like
SUMO's (5 branches, then 5 %, 20 %, 47 % and 28 % of the concepts, one in twenty with two parents),
its sample plan, one model layer of 2560 features in prompt mode, bfloat16, every block written and
marked. A row is

    offset + scale * (noise + strength of the concept * its own factor * direction of the concept)

noise      rank 256 with variances that fall as 1/k, 60 % of the variance, and 40 % white; deviation
           1 a feature in the mean, about 16 along the first component
direction  a unit vector: half of the way its (first) parent's, the rest its own, so that siblings
           are alike
strength   drawn for each concept, evenly between 4 and 14, in deviations of the noise along the
           direction; 3 % of the concepts that have nobody below them have 0: there is nothing for
           their lenses to find
factor     drawn for each row, evenly between 0.5 and 1.5
scale      of a feature, drawn log-normally; 4 features are 30 times as large and lie far from 0, as
           models have them
offset     of a feature, half as large as its scale

The rows of a concept are its examples, definitions and relations; a relation is its parent's, too,
and has both directions; contrasts have none. Everything about a row is keyed by its text. Rows are
made and written block by block.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lenscache.concepts.hierarchy import Hierarchy
from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.concepts.plan import SamplePlan, plan_samples
from lenscache.concepts.prompts import POSITIVE, stable_hash
from lenscache.store.header import StoreHeader
from lenscache.store.round import Block
from lenscache.store.store import Store, create_store
from lenscache.store.summary import stored_bytes

BRANCHES = 5
LEVEL_SHARES = (0.05, 0.20, 0.47)
TWO_PARENTS = 0.05
CONTRAST_SHARE = 0.125
DEFINITIONS = 3  # that every concept with a definition has
RANK = 256
LOW_RANK_SHARE = 0.6
INHERITED = 0.5
STRENGTHS = (4.0, 14.0)
FACTORS = (0.5, 1.5)
WITHOUT_SIGNAL = 0.03
OUTLIERS, OUTLIER_SCALE, OUTLIER_OFFSET = 4, 30.0, 10.0
N_WORDS = 6000


@dataclass(frozen=True)
class Planting:
    """What a planted store is to hold."""

    levels: tuple[int, ...]
    """Concepts of each level of abstraction."""
    prompts: tuple[int, int] = (40, 40)
    """Least and most prompts of a concept; drawn evenly."""
    hidden: int = 2560
    seed: int = 0

    @classmethod
    def of_size(cls, n_concepts: int, **options: int) -> Planting:
        """Levels like SUMO's."""
        sizes = [min(BRANCHES, n_concepts)]
        for share in LEVEL_SHARES:
            sizes.append(min(round(share * n_concepts), n_concepts - sum(sizes)))
        sizes.append(n_concepts - sum(sizes))
        return cls(tuple(size for size in sizes if size), **options)


class World:
    """Where each concept of a hierarchy lies in the activations, and what else is there.

    Parameters
    ----------
    hierarchy : of the pack, or of the store that was planted.
    """

    def __init__(self, planting: Planting, hierarchy: Hierarchy) -> None:
        self.hidden, self.hierarchy = planting.hidden, hierarchy
        self.number = {concept: i for i, concept in enumerate(hierarchy)}
        rng = np.random.default_rng([planting.seed, 1])
        variance = 1 / np.arange(1, RANK + 1)
        variance *= LOW_RANK_SHARE * self.hidden / variance.sum()
        basis = np.linalg.qr(rng.normal(size=(self.hidden, RANK)))[0].T
        self._mixing = (np.sqrt(variance)[:, None] * basis).astype(np.float32)
        self.scale = np.exp(0.3 * rng.normal(size=self.hidden)).astype(np.float32)
        self.offset = (0.5 * self.scale * rng.normal(size=self.hidden)).astype(np.float32)
        outliers = rng.choice(self.hidden, OUTLIERS, replace=False)
        self.scale[outliers] *= OUTLIER_SCALE
        self.offset[outliers] = OUTLIER_OFFSET * self.scale[outliers]

    @cached_property
    def directions(self) -> NDArray[np.float32]:
        """(concepts, hidden) unit vectors, before features are scaled."""
        found = np.empty((len(self.number), self.hidden), np.float32)
        for concept in sorted(self.number, key=lambda c: self.hierarchy.levels[c]):
            own = np.random.default_rng(stable_hash("direction", concept)).normal(size=self.hidden)
            own /= np.linalg.norm(own)
            if above := self.hierarchy.parents(concept):
                own = np.sqrt(1 - INHERITED**2) * own + INHERITED * found[self.number[above[0]]]
            found[self.number[concept]] = own / np.linalg.norm(own)
        return found

    @cached_property
    def strengths(self) -> NDArray[np.float64]:
        """(concepts,) in deviations of the noise along the direction; 0 where there is nothing to
        find."""
        drawn = np.array([stable_hash("strength", concept) / 2**64 for concept in self.number])
        flat = [
            not self.hierarchy.children(concept)
            and stable_hash("flat", concept) / 2**64 < WITHOUT_SIGNAL
            for concept in self.number
        ]
        return np.where(flat, 0.0, STRENGTHS[0] + (STRENGTHS[1] - STRENGTHS[0]) * drawn)

    @cached_property
    def deviations(self) -> NDArray[np.float32]:
        """(hidden,) of the noise, feature by feature."""
        return np.asarray(
            self.scale * np.sqrt((self._mixing**2).sum(axis=0) + 1 - LOW_RANK_SHARE), np.float32
        )

    @cached_property
    def _steps(self) -> NDArray[np.float32]:
        """(concepts, hidden) what expressing a concept adds."""
        along = (self.directions @ self._mixing.T) ** 2
        deviation = np.sqrt(along.sum(axis=1) + 1 - LOW_RANK_SHARE)
        return np.asarray((self.strengths * deviation)[:, None] * self.directions, np.float32)

    def rows(self, texts: list[str], expressed: list[list[str]]) -> NDArray[np.float32]:
        """(texts, hidden) activations of texts that express some concepts each."""
        noise = np.empty((len(texts), RANK + self.hidden), np.float32)
        factor = np.empty(len(texts))
        for row, text in enumerate(texts):
            rng = np.random.Generator(np.random.SFC64(stable_hash("row", text)))
            factor[row] = rng.uniform(*FACTORS)
            rng.standard_normal(out=noise[row], dtype=np.float32)
        X = (
            noise[:, :RANK] @ self._mixing
            + np.sqrt(np.float32(1 - LOW_RANK_SHARE)) * noise[:, RANK:]
        )
        for row, concepts in enumerate(expressed):
            for concept in concepts:
                X[row] += factor[row] * self._steps[self.number[concept]]
        return X * self.scale + self.offset


def make_pack(planting: Planting) -> ConceptPack:
    """Concepts with their texts: sentences of made-up words, common ones often."""
    rng = np.random.default_rng([planting.seed, 2])
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    pairs = rng.choice(len(syllables) ** 3, N_WORDS, replace=False)
    words = np.array(
        [syllables[p % 70] + syllables[p // 70 % 70] + syllables[p // 4900] for p in pairs],
        dtype=object,
    )
    frequency = np.cumsum(1 / (np.arange(N_WORDS) + 3.0))
    concepts: list[Concept] = []
    above: list[str] = []
    for level, size in enumerate(planting.levels):
        here = [f"concept-{level}-{i}" for i in range(size)]
        for number, concept in enumerate(here):
            n_parents = (
                0 if not above else 2 if len(above) > 1 and rng.random() < TWO_PARENTS else 1
            )
            parents = (
                tuple(above[i] for i in rng.choice(len(above), n_parents, replace=False))
                if above
                else ()
            )
            n_prompts = int(rng.integers(planting.prompts[0], planting.prompts[1] + 1))
            n_contrasts = round(CONTRAST_SHARE * n_prompts)
            n_examples = n_prompts - n_contrasts - DEFINITIONS - n_parents
            lengths = rng.integers(8, 21, n_examples + n_contrasts)
            drawn = words[np.searchsorted(frequency, rng.random(lengths.sum()) * frequency[-1])]
            texts = [" ".join(part) for part in np.split(drawn, np.cumsum(lengths)[:-1])]
            name = f"{words[rng.integers(N_WORDS)]} {level}{number:04}"
            concepts.append(
                Concept(
                    id=concept,
                    name=name,
                    level=level,
                    definition=f"{texts[0]} and more.",
                    parents=parents,
                    examples=tuple(texts[:n_examples]),
                    contrasts=tuple(f"{t} {name}." for t in texts[n_examples:]),
                )
            )
        above = here
    return ConceptPack("planted", "1", tuple(concepts))


def plant(path: Path, planting: Planting) -> Store:
    """Write a store, one round a level of abstraction."""
    pack = make_pack(planting)
    world = World(planting, pack.hierarchy)
    header = StoreHeader(
        model_id="planted",
        model_fingerprint="0" * 16,
        model_dtype="bfloat16",
        n_layers=1,
        hidden=planting.hidden,
        tokenizer_fingerprint="1" * 16,
        pack_name=pack.name,
        pack_version=pack.version,
        pack_digest=pack.digest,
        model_layers=(0,),
        mode="prompt",
        max_new_tokens=0,
        pooling="mean",
        pool_first_position=True,
        special_tokens=True,
        store_dtype="bfloat16",
        seed=0,
    )
    store = create_store(path, header, pack)
    for level in pack.levels:
        _write_round(store, level, plan_samples(pack, [level]), world)
    return store


def _write_round(store: Store, level: int, plan: SamplePlan, world: World) -> None:
    keys = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in plan.texts)
    round_ = store.create_round(
        level,
        0,
        plan,
        keys=np.frombuffer(keys, np.uint8).reshape(-1, 16),
        n_prompt_tokens=np.array([len(text.split()) for text in plan.texts], np.int32),
    )
    expressed: list[list[str]] = [[] for _ in plan.texts]
    for sample, concept, role in zip(
        plan.label_sample, plan.label_concept, plan.label_role, strict=True
    ):
        if role == POSITIVE:
            expressed[sample].append(plan.concepts[concept])
    for block in range(round_.n_blocks):
        rows = round_.rows(block)
        X = world.rows(list(plan.texts[rows]), expressed[rows])
        round_.write_block(
            block, Block({("prompt", 0): X}, [""] * len(X), np.zeros(len(X), np.int32))
        )
    record = {"rows": 0, "tolerance": 1e-4, "max_relative_error": {"0": 0.0}}
    round_.update_attributes({"verification": record})


def main() -> None:
    """Plant a store from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, nargs="?", help="folder of the store")
    parser.add_argument("--concepts", type=int, default=1000)
    parser.add_argument(
        "--quick", action="store_true", help="without a path: 50 concepts, and nothing is left"
    )
    arguments = parser.parse_args()
    if arguments.path is None and not arguments.quick:
        parser.error("name a folder, or pass --quick")
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.path or Path(folder) / "store.zarr"
        start = time.perf_counter()
        store = plant(path, Planting.of_size(50 if arguments.path is None else arguments.concepts))
        rows = sum(entry.n_samples for entry in store.rounds())
        stored = sum(stored_bytes(entry, "prompt", 0) for entry in store.rounds())
        seconds = time.perf_counter() - start
        print(
            f"{path}: {rows} rows on levels {store.levels()}, {stored / 1e6:.0f} MB, written in "
            f"{seconds:.0f} s"
        )


if __name__ == "__main__":
    main()
