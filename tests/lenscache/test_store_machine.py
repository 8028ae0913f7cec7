"""Two writers, a follower and a repairer of a tiny store, in any order, with faults in between."""

from __future__ import annotations

import errno
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from lenscache.concepts.plan import plan_samples
from lenscache.errors import StoreDamagedError, StoreIncompleteError, StoreWriteError
from lenscache.store.keys import sample_keys
from lenscache.store.round import Block, Round
from lenscache.store.store import Store, create_store, open_store
from lenscache.store.verify.repair import repair_store
from lenscache.store.verify.verify import verify_store
from tests.lenscache.faults import damage, failing_write
from tests.lenstrain.conftest import planted_header, planted_pack

PACK = planted_pack(n_examples=3)
HEADER = planted_header(PACK)
PLAN = plan_samples(PACK, [1])
BLOCK_ROWS = -(-len(PLAN) // 3)
ROUND = "layer_1/round_0"
BLOCKS = range(3)
PLACES: list[tuple[Any, int]] = [(p, i) for p in HEADER.phases for i in HEADER.model_layers]


def expected(place: tuple[Any, int], rows: slice) -> NDArray[np.float32]:
    """Another value in every row, feature and array."""
    first = 1000.0 * PLACES.index(place) + np.arange(rows.start, rows.stop)
    return (first[:, None] + np.arange(HEADER.hidden) / HEADER.hidden).astype(np.float32)


class StoreMachine(RuleBasedStateMachine):
    """The model: which blocks are marked, and which objects of them are damaged."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "s.zarr"
        self.writers: dict[str, Round] = {}
        self.follower: Round | None = None
        self.marked: set[int] = set()
        self.damaged: dict[int, set[Path]] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize()
    def create(self) -> None:
        self.open_writer("first")

    def open_writer(self, who: str) -> None:
        store: Store = create_store(self.path, HEADER, PACK)
        n = np.full(len(PLAN), 5, np.int32)
        keys = sample_keys(HEADER, PLAN)
        self.writers[who] = store.create_round(
            1, 0, PLAN, keys=keys, n_prompt_tokens=n, block_rows=BLOCK_ROWS
        )

    @rule(who=st.sampled_from(["first", "second"]))
    def start_again(self, who: str) -> None:
        self.open_writer(who)

    @rule(who=st.sampled_from(["first", "second"]), block=st.sampled_from(BLOCKS))
    def write(self, who: str, block: int) -> None:
        if who not in self.writers:
            self.open_writer(who)
        self._write(self.writers[who], block)
        self.marked.add(block)
        self.damaged.pop(block, None)

    @precondition(lambda self: set(BLOCKS) - self.marked)
    @rule(fails_at=st.integers(0, 8), data=st.data())
    def write_and_fail(self, fails_at: int, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(set(BLOCKS) - self.marked)))
        try:
            with failing_write(fails_at, OSError(errno.ENOSPC, "No space left on device")):
                self._write(self.writers["first"], block)
        except StoreWriteError:
            return
        self.marked.add(block)

    def _write(self, target: Round, block: int) -> None:
        rows = target.rows(block)
        texts = [f"row {row}" for row in range(rows.start, rows.stop)]
        values = {place: expected(place, rows) for place in PLACES}
        counts = np.full(len(texts), HEADER.max_new_tokens - 1, np.int32)
        target.write_block(block, Block(values, texts, counts))

    @precondition(lambda self: self.marked)
    @rule(how=st.sampled_from(["lost", "truncated", "emptied", "flipped"]), data=st.data())
    def damage_an_object(self, how: str, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.marked)))
        phase, model_layer = data.draw(st.sampled_from(PLACES))
        file = self.path / ROUND / "activations" / phase / str(model_layer) / f"c/{block}/0"
        if file not in self.damaged.get(block, set()):
            damage(file, how, random.Random(data.draw(st.integers(0, 1000))))
            self.damaged.setdefault(block, set()).add(file)

    @rule()
    def repair(self) -> None:
        report = repair_store(self.path, jobs=1)
        unmarked = {int(line.split(" block ")[1].split(",")[0]) for line in report.unmarked}
        assert unmarked == set(self.damaged)
        self.marked -= unmarked
        self.damaged.clear()

    @rule()
    def follow(self) -> None:
        if self.follower is None:
            self.follower = open_store(self.path).rounds()[0]
        self._read_all(self.follower)

    @invariant()
    def nothing_is_lost_or_taken_for_whole(self) -> None:
        target = open_store(self.path).rounds()[0]
        assert set(np.flatnonzero(target.complete_blocks()).tolist()) == self.marked
        self._read_all(target)

    @rule()
    def verify(self) -> None:
        report = verify_store(self.path, jobs=1)
        assert {finding.block for finding in report.findings} == set(self.damaged)

    def _read_all(self, target: Round) -> None:
        """Whoever opened the store, and whenever: right values or a refusal, nothing else."""
        for block in BLOCKS:
            rows = target.rows(block)
            for place in PLACES:
                try:
                    values = target.read(*place, rows)
                except StoreIncompleteError:
                    assert block not in self.marked
                except StoreDamagedError:
                    assert block in self.damaged or block not in self.marked
                else:
                    assert np.array_equal(values, expected(place, rows))


@pytest.mark.parametrize(
    "examples", [5, pytest.param(200, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_writers_follower_and_repairer_keep_each_block_whole(examples: int) -> None:
    hypothesis.stateful.run_state_machine_as_test(
        StoreMachine,
        settings=hypothesis.settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )
