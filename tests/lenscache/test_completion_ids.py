"""The tokens of completions in the store: kept, checked, copied, and done without in older
stores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from lenscache.errors import StoreDamagedError
from lenscache.extract import extract
from lenscache.extract.planned_rounds import TopUp
from lenscache.store.round import Block, Round
from lenscache.store.store import open_store
from lenscache.store.token_ids import NO_TOKEN, UNKNOWN, as_rows, ids_of_row, impossible_rows
from lenscache.store.verify.verify import verify_store
from tests.lenscache.conftest import PACK, ROUND, SETTINGS, run_small, top_up, tree, without_ids
from tests.models import tiny_model

IDS = f"{ROUND}/samples/completion_ids"


def the_round(store: Path) -> Round:
    (target,) = open_store(store, mode="r+").rounds(1)
    return target


def ids_of(target: Round) -> NDArray[np.int32]:
    found = target.completion_ids()
    assert found is not None
    return found


def test_rows_read_back_as_the_tokens_they_were_made_of() -> None:
    completions = [(5, 6, 7), (), (4,)]
    rows = as_rows(completions, 3)
    assert [ids_of_row(row) for row in rows] == completions
    assert ids_of_row(np.full(3, UNKNOWN, np.int32)) is None


@pytest.mark.parametrize(
    ("row", "n_fed", "is_impossible"),
    [
        ((5, 6, 7), 2, False),  # cut off: the last one is not fed back
        ((5, 6, 7), 3, True),
        ((5, NO_TOKEN, NO_TOKEN), 1, False),  # ended
        ((5, NO_TOKEN, NO_TOKEN), 0, True),
        ((NO_TOKEN,) * 3, 0, False),
        ((NO_TOKEN, 5, NO_TOKEN), 1, True),
        ((5, -3, NO_TOKEN), 1, True),
        ((UNKNOWN,) * 3, 2, False),
        ((5, UNKNOWN, UNKNOWN), 1, True),
    ],
)
def test_rows_that_contradict_themselves_or_their_count_are_impossible(
    row: tuple[int, ...], n_fed: int, is_impossible: bool
) -> None:
    found = impossible_rows(np.array([row], np.int32), np.array([n_fed], np.int32))
    assert found.tolist() == [is_impossible]


def test_the_stored_tokens_decode_to_the_stored_texts(finished_store: Path) -> None:
    target, tokenizer = the_round(finished_store), tiny_model().tokenizer
    rows = [ids_of_row(row) for row in ids_of(target)]
    texts = [tokenizer.decode(list(row or ()), skip_special_tokens=True) for row in rows]
    assert texts == list(target.samples().completion)
    assert any(rows)


def test_prompt_mode_stores_none(tmp_path: Path) -> None:
    run_small(tmp_path / "s", settings=replace(SETTINGS, mode="prompt"))
    assert not (tmp_path / "s" / IDS).exists()
    assert the_round(tmp_path / "s").completion_ids() is None


def test_a_block_written_without_token_ids_says_that_they_are_unknown(store_copy: Path) -> None:
    target = the_round(store_copy)
    rows, samples = target.rows(1), target.samples()
    activations = {
        (phase, layer): target.read(phase, layer, rows)
        for phase in target._header.phases
        for layer in target._header.model_layers
    }
    texts, counts = list(samples.completion[rows]), samples.n_completion_tokens[rows]
    target.write_block(1, Block(activations, texts, counts))
    assert (ids_of(target)[rows] == UNKNOWN).all()
    assert verify_store(store_copy).findings == []


# --- verification -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-7, UNKNOWN])
def test_verify_names_the_row_whose_tokens_are_impossible(value: int, store_copy: Path) -> None:
    array = zarr.open_array(store_copy / IDS, mode="r+")
    array[13, 1] = value
    (finding,) = verify_store(store_copy).findings
    assert (finding.array, finding.rows, finding.block) == (IDS, (13, 13), 1)
    assert finding.found == "1 rows are no completions of as many tokens as were fed back"


def test_a_block_with_impossible_tokens_is_extracted_again(
    store_copy: Path, finished_store: Path
) -> None:
    zarr.open_array(store_copy / IDS, mode="r+")[13, 0] = -7
    with pytest.raises(StoreDamagedError, match="rows 8-15 hold impossible token ids"):
        the_round(store_copy).verify_block(1)
    assert run_small(store_copy).repaired_blocks == [f"{ROUND} block 1"]
    assert tree(store_copy) == tree(finished_store)


def test_verify_finds_the_array_missing_where_the_round_says_it_is_there(store_copy: Path) -> None:
    (store_copy / IDS / "zarr.json").unlink()
    (finding,) = verify_store(store_copy).findings
    assert (finding.array, finding.found) == (IDS, "the array is missing")
    run_small(store_copy)
    assert verify_store(store_copy).findings == []


# --- stores of before ---------------------------------------------------------------------------


def test_an_older_store_is_complete_and_verifies(store_copy: Path) -> None:
    old = without_ids(store_copy)
    before = tree(old)
    assert run_small(old).rows_run == 0
    assert verify_store(old, pack=PACK).findings == []
    assert tree(old) == before


def test_an_older_store_goes_on_without_token_ids(store_copy: Path, finished_store: Path) -> None:
    old = without_ids(store_copy)
    the_round(old).unmark_block(1)
    report = run_small(old)
    assert report.rows_run == 8
    assert the_round(old).is_complete
    assert not (old / IDS).exists()
    expected = {name: data for name, data in tree(finished_store).items() if IDS not in name}
    found = tree(old)
    attributes = f"{ROUND}/zarr.json"
    assert found.pop(attributes) != expected.pop(attributes)  # lacks one attribute
    assert found == expected


def test_an_older_round_whose_attributes_are_gone_gets_no_token_ids(store_copy: Path) -> None:
    old = without_ids(store_copy)
    (old / ROUND / "zarr.json").unlink()
    run_small(old)
    assert not (old / IDS).exists()
    assert verify_store(old).findings == []


def test_a_top_up_of_an_older_store_keeps_those_of_its_own_round(tmp_path: Path) -> None:
    few = replace(SETTINGS, samples=6)
    run_small(tmp_path / "s", settings=few, limit=None)
    old = without_ids(tmp_path / "s")
    top_up(old, TopUp(("bird",), samples=3), few)
    first, second = open_store(old).rounds(1)
    assert first.completion_ids() is None
    assert (ids_of(second)[:, 0] != UNKNOWN).all()
    assert verify_store(old).findings == []


# --- copied rows --------------------------------------------------------------------------------


def reusing(store: Path, other: Path) -> Round:
    """All of a pack, where another store has two concepts of it."""
    reuse = [open_store(other)]
    extract(store, PACK, tiny_model(), SETTINGS, levels=[1], limit=3, reuse=reuse)
    assert verify_store(store).findings == []
    return the_round(store)


def test_copied_rows_bring_their_tokens_along(finished_store: Path, tmp_path: Path) -> None:
    found = reusing(tmp_path / "new", finished_store)
    run_small(tmp_path / "fresh", limit=3)
    np.testing.assert_array_equal(ids_of(found), ids_of(the_round(tmp_path / "fresh")))


def test_tokens_of_rows_copied_from_an_older_store_are_unknown(
    store_copy: Path, tmp_path: Path
) -> None:
    old = without_ids(store_copy)
    keys = {bytes(key) for key in the_round(old).samples().key}
    found = reusing(tmp_path / "new", old)
    is_copied = [bytes(key) in keys for key in found.samples().key]
    assert 0 < sum(is_copied) < len(is_copied)
    assert (ids_of(found) == UNKNOWN).all(axis=1).tolist() == is_copied
