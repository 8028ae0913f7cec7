"""The store: what is written reads back, what is damaged is found, what does not fit is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from lenscache.concepts.pack import ConceptPack
from lenscache.concepts.plan import SamplePlan, plan_samples
from lenscache.errors import (
    ModelLayerError,
    NonFiniteError,
    StoreDamagedError,
    StoreFormatError,
    StoreIncompleteError,
    StoreMismatchError,
    StoreNotFoundError,
)
from lenscache.store.header import StoreHeader
from lenscache.store.layout import write_column
from lenscache.store.round import Block, Round
from lenscache.store.store import Store, create_store, open_store
from lenscache.store.summary import stored_bytes, summarize_round
from lenscache.store.verify.verify import verify_store
from lenscache.terms import Phase
from tests.lenscache.conftest import PACK, ROUND, run_small, tree
from tests.packs import small_pack

HEADER = StoreHeader(
    model_id="m",
    model_fingerprint="abc",
    model_dtype="float32",
    n_layers=4,
    hidden=6,
    tokenizer_fingerprint="tok",
    pack_name=PACK.name,
    pack_version=PACK.version,
    pack_digest=PACK.digest,
    model_layers=(1, 3),
    mode="combined",
    max_new_tokens=5,
    max_prompt_tokens=0,
    pooling="mean",
    pool_first_position=False,
    special_tokens=True,
    store_dtype="bfloat16",
    seed=0,
)
PLAN = plan_samples(PACK, [1], limit=2)  # 20 rows
OTHERS: dict[str, Any] = {  # another value for every field, and what the error calls it
    "model_fingerprint": ("xyz", "model"),
    "model_dtype": ("bfloat16", "dtype"),
    "n_layers": (5, "number of transformer blocks"),
    "hidden": (7, "hidden"),
    "tokenizer_fingerprint": ("t", "tokenizer"),
    "pack_name": ("p", "pack name"),
    "pack_digest": ("0" * 16, "pack digest"),
    "model_layers": ((1,), "model layers"),
    "mode": ("prompt", "mode"),
    "max_new_tokens": (6, "max new tokens"),
    "max_prompt_tokens": (9, "max prompt tokens"),
    "pooling": ("max", "pooling"),
    "pool_first_position": (True, "pool first position"),
    "special_tokens": (False, "special tokens"),
    "store_dtype": ("float32", "store dtype"),
    "seed": (1, "seed"),
}


def new_round(
    path: Path, header: StoreHeader = HEADER, plan: SamplePlan = PLAN, *, block_rows: int = 8
) -> Round:
    n = len(plan)
    return create_store(path, header, PACK).create_round(
        1,
        0,
        plan,
        keys=np.arange(16 * n, dtype=np.uint8).reshape(n, 16),
        n_prompt_tokens=np.full(n, 9, np.int32),
        block_rows=block_rows,
    )


def random_block(target: Round, block: int, *, hidden: int = 6) -> Block:
    rng, rows = np.random.default_rng(block), target.rows(block)
    n = rows.stop - rows.start
    phases: tuple[Phase, ...] = ("prompt", "completion")
    values = {
        (p, i): rng.normal(size=(n, hidden)).astype(np.float32) for p in phases for i in (1, 3)
    }
    return Block(values, [f"text {i}" for i in range(n)], np.full(n, 4, np.int32))


def with_value(
    data: Block, value: float, *, row: int, place: tuple[Phase, int] = ("prompt", 3)
) -> Block:
    data.activations[place][row, 2] = value
    return data


def objects(store: Path, block: int) -> list[Path]:
    """The files that hold the rows of one block, in the finished store."""
    base = store / ROUND
    shards = [
        folder / "c" / str(block) / "0"
        for folder in base.glob("activations/*/*")
        if folder.is_dir()
    ]
    return [
        *shards,
        *(
            base / "samples" / name / "c" / str(block)
            for name in ("completion", "n_completion_tokens")
        ),
        base / "samples" / "completion_ids" / "c" / str(block) / "0",
    ]


# --- the header ---------------------------------------------------------------------------------


def test_header_survives_the_attributes() -> None:
    assert StoreHeader.from_attributes(json.loads(json.dumps(HEADER.to_attributes()))) == HEADER


def test_every_field_but_the_informative_ones_is_compared() -> None:
    names = {field.name for field in dataclasses.fields(StoreHeader)}
    assert names - set(OTHERS) == {"model_id", "pack_version"}


@pytest.mark.parametrize("field", OTHERS)
def test_store_written_with_something_else_is_refused_naming_the_field(
    field: str, tmp_path: Path
) -> None:
    create_store(tmp_path / "s", HEADER, PACK)
    before, (value, name) = tree(tmp_path / "s"), OTHERS[field]
    other = dataclasses.replace(HEADER, **{field: value})
    with pytest.raises(
        StoreMismatchError, match=rf"^the store was written with {name} .*, this run asks for "
    ) as caught:
        create_store(tmp_path / "s", other, PACK)
    assert caught.value.field == name
    for one in (getattr(HEADER, field), value):
        assert (",".join(map(str, one)) if isinstance(one, tuple) else str(one)) in str(
            caught.value
        )
    assert tree(tmp_path / "s") == before


@pytest.mark.parametrize("field", ["model_id", "pack_version"])
def test_names_that_decide_nothing_may_differ(field: str) -> None:
    other: dict[str, Any] = {field: "other"}
    HEADER.check_equal(dataclasses.replace(HEADER, **other))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"request": {"limit": 3}}, "limit"),
        ({"request": {"samples": 3}}, "samples"),
        ({"block_rows": 4}, "block rows"),
    ],
)
def test_round_laid_out_otherwise_is_refused(
    change: dict[str, Any], field: str, tmp_path: Path
) -> None:
    new_round(tmp_path / "s")
    settings: dict[str, Any] = {"block_rows": 8, **change}
    keys, lengths = np.zeros((len(PLAN), 16), np.uint8), np.full(len(PLAN), 9, np.int32)
    with pytest.raises(
        StoreMismatchError, match=rf"written with {field} .*, this run asks for "
    ) as caught:
        open_store(tmp_path / "s", "r+").create_round(
            1, 0, PLAN, keys=keys, n_prompt_tokens=lengths, **settings
        )
    assert caught.value.field == field


def test_round_of_another_plan_is_refused(tmp_path: Path) -> None:
    new_round(tmp_path / "s")
    with pytest.raises(StoreMismatchError, match=f"plan digest {PLAN.digest}, this run asks for "):
        new_round(tmp_path / "s", plan=plan_samples(PACK, [0]))


# --- opening ------------------------------------------------------------------------------------


def test_missing_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"no store at .*nothing: run `lenscache extract"):
        open_store(tmp_path / "nothing")


@pytest.mark.parametrize("make", ["folder", "file", "zarr group"])
def test_something_else_is_not_a_store_and_not_touched(make: str, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    if make == "zarr group":
        zarr.create_group(str(path), attributes={"mine": 1})
    elif make == "folder":
        path.mkdir()
        (path / "thesis.txt").write_text("all my work")
    else:
        path.write_text("all my work")
    before = path.read_text() if make == "file" else tree(path)
    for attempt in (open_store, lambda p: create_store(p, HEADER, PACK)):
        with pytest.raises(
            StoreFormatError, match=r"precious (exists but is not|is a Zarr group but not)"
        ):
            attempt(path)
    assert (path.read_text() if make == "file" else tree(path)) == before


@pytest.mark.parametrize("version", [2, "2"])
def test_newer_format_is_refused(version: int | str, store_copy: Path) -> None:
    zarr.open_group(str(store_copy)).attrs["format_version"] = version
    with pytest.raises(
        StoreFormatError, match=r"format version 2, this lenscache reads up to 1: upgrade"
    ):
        open_store(store_copy)


@pytest.mark.parametrize("place", ["", ROUND])
def test_attributes_of_others_are_kept_and_passed_over(place: str, store_copy: Path) -> None:
    header = open_store(store_copy).header
    zarr.open_group(str(store_copy / place)).attrs["note"] = {"by": "somebody"}
    target = open_store(store_copy, "r+").rounds()[0]
    target.update_attributes({"more": 1})
    run_small(store_copy)
    assert zarr.open_group(str(store_copy / place), mode="r").attrs["note"] == {"by": "somebody"}
    assert open_store(store_copy).header == header


def test_settings_arrays_and_groups_of_others_are_kept_and_passed_over(store_copy: Path) -> None:
    """What a later minor version, or somebody else, adds to a store of this version."""
    header, root = open_store(store_copy).header, zarr.open_group(str(store_copy))
    root.attrs["settings"] = {**dict(root.attrs["settings"]), "steering": "none"}  # type: ignore[arg-type]
    root.create_array("notes", shape=(3,), dtype="int32", fill_value=7)
    zarr.open_group(str(store_copy / ROUND)).create_array(
        "samples/rating", shape=(20,), dtype="int8", fill_value=5
    )
    before = tree(store_copy)
    run_small(store_copy)
    assert tree(store_copy) == before
    assert open_store(store_copy).header == header
    assert [target.name for target in open_store(store_copy).rounds()] == [ROUND]


def test_hierarchy_needs_no_pack_file(finished_store: Path) -> None:
    store = open_store(finished_store)
    for concept in PACK.concepts:
        assert store.hierarchy.ancestors(concept.id) == PACK.hierarchy.ancestors(concept.id)
        assert store.concept_names[concept.id] == concept.name


def related_pack() -> ConceptPack:
    """The small pack, with what few packs have: confusable concepts and attributes."""
    bird = dataclasses.replace(
        PACK["bird"],
        confusable_with=("boat", "nature", "no such"),
        attributes={"risk_level": ("high",), "impacts": ("\u00e4", "b=c")},
    )
    return dataclasses.replace(
        PACK, concepts=tuple(bird if c.id == "bird" else c for c in PACK.concepts)
    )


def faults_of_hierarchy(path: Path) -> list[str]:
    return [x.found for x in verify_store(path).findings if x.array.startswith("hierarchy")]


def test_confusable_concepts_and_attributes_travel_with_the_store(tmp_path: Path) -> None:
    pack = related_pack()
    create_store(tmp_path / "s", dataclasses.replace(HEADER, pack_digest=pack.digest), pack)
    store = open_store(tmp_path / "s")
    assert store.hierarchy.confusable("bird") == {"boat"}  # its parent is no confusable concept
    assert store.hierarchy.confusable("boat") == set()
    assert store.concept_attributes == {"bird": pack["bird"].attributes}


def test_a_store_without_confusable_concepts_and_attributes_has_no_columns_for_them(
    finished_store: Path,
) -> None:
    store = open_store(finished_store)
    assert not any(
        (finished_store / "hierarchy" / c).exists() for c in ("confusable_links", "attributes")
    )
    assert store.concept_attributes == {}
    assert all(store.hierarchy.confusable(c) == set() for c in store.hierarchy)


def test_attributes_that_are_damaged_are_found(store_copy: Path) -> None:
    hierarchy: Any = zarr.open_group(store_copy / "hierarchy")
    column = np.array(["[", *[""] * (len(PACK) - 1)], dtype=object)
    write_column(hierarchy, "attributes", column, ["concept"])
    (found,) = faults_of_hierarchy(store_copy)
    assert "expected a JSON object of lists of texts" in found
    with pytest.raises(StoreDamagedError, match="hierarchy/attributes of nature"):
        _ = open_store(store_copy).concept_attributes


def test_confusable_links_that_are_damaged_are_found(store_copy: Path) -> None:
    hierarchy: Any = zarr.open_group(store_copy / "hierarchy")
    write_column(hierarchy, "confusable_links", np.array([[0, 99]], np.int32), ["link", "end"])
    found = faults_of_hierarchy(store_copy)
    assert found == ["confusable_links points outside the concepts"]


def test_store_digest_names_its_content(
    finished_store: Path, store_copy: Path, tmp_path: Path
) -> None:
    assert open_store(store_copy).digest() == open_store(finished_store).digest()
    run_small(store_copy, levels=(0,), limit=1)
    assert open_store(store_copy).digest() != open_store(finished_store).digest()
    assert open_store(store_copy).levels() == [0, 1]


# --- what is written reads back -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "rounding"), [("bfloat16", 2.0**-8), ("float16", 2.0**-11), ("float32", 0.0)]
)
def test_activations_read_back_in_the_dtype_of_the_store(
    dtype: Any, rounding: float, tmp_path: Path
) -> None:
    target = new_round(tmp_path / "s", dataclasses.replace(HEADER, store_dtype=dtype))
    blocks = [random_block(target, block) for block in range(target.n_blocks)]
    for number in (2, 0, 1):  # in any order
        target.write_block(number, blocks[number])
        target.verify_block(number)
    for place in blocks[0].activations:
        written = np.concatenate([data.activations[place] for data in blocks])
        read = open_store(tmp_path / "s").rounds()[0].read(*place)
        assert str(read.dtype) == dtype
        assert (np.abs(read.astype(np.float32) - written) <= rounding * np.abs(written)).all()


def test_rows_are_read_by_slice(finished_store: Path) -> None:
    target = open_store(finished_store).rounds()[0]
    everything = target.read("completion", 2)
    for rows in (
        slice(0, 0),
        slice(9, 9),
        slice(9, 5),
        slice(5, 6),
        slice(3, 19),
        slice(16, None),
        slice(0, 100),
    ):
        np.testing.assert_array_equal(target.read("completion", 2, rows), everything[rows])


def test_texts_of_any_kind_survive(tmp_path: Path) -> None:
    texts = [
        "",
        "nul \0 in the middle\0",
        "🦜👩‍🚀",
        "שלום עולם",
        "e\u0301\r\n\t\u202e",
        "x" * 5000,
        "\U0010ffff",
        "end",
    ]
    target = new_round(tmp_path / "s")
    target.write_block(0, random_block(target, 0)._replace(completion=texts))
    assert target.samples().completion[:8].tolist() == texts
    target.verify_block(0)


def test_prompts_of_any_kind_survive(tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, texts=("nul \0", "🦜", "שלום", *PLAN.texts[3:]))
    for _ in range(2):  # laid out, and taken up again
        assert new_round(tmp_path / "s", plan=plan).samples().text.tolist() == list(plan.texts)


def test_activations_are_smaller_on_disk_than_raw(tmp_path: Path) -> None:
    plan = plan_samples(small_pack(n_examples=60), [1])
    header = dataclasses.replace(HEADER, hidden=64, model_layers=(1, 3))
    target = new_round(tmp_path / "s", header, plan, block_rows=256)
    target.write_block(0, random_block(target, 0, hidden=64))
    raw = 256 * 64 * 2
    assert 0.5 * raw < stored_bytes(target, "prompt", 1) < 0.9 * raw
    assert summarize_round(target, header)["raw_bytes"] == 4 * raw
    assert summarize_round(target, header)["stored_bytes"] < 0.9 * 4 * raw


# --- blocks and their marks ---------------------------------------------------------------------


def test_reader_sees_complete_blocks_only(tmp_path: Path) -> None:
    writer = new_round(tmp_path / "s")
    reader = open_store(tmp_path / "s").rounds()[0]
    writer.write_block(1, random_block(writer, 1))  # while the reader has the store open
    assert reader.complete_blocks().tolist() == [False, True, False]
    assert reader.read("prompt", 1, slice(8, 16)).shape == (8, 6)
    for rows in (slice(None), slice(7, 9), slice(15, 17)):
        with pytest.raises(
            StoreIncompleteError, match=r"layer_1/round_0: \d of \d blocks .* not extracted yet"
        ):
            reader.read("prompt", 1, rows)


def test_rows_not_written_yet_cannot_be_mistaken_for_data(tmp_path: Path) -> None:
    target = new_round(tmp_path / "s")
    assert (target.samples().n_completion_tokens == -1).all()
    assert np.isnan(
        np.asarray(zarr.open_array(tmp_path / "s" / ROUND / "activations/prompt/1")[:])
    ).all()
    with pytest.raises(StoreDamagedError, match="is gone"):
        target.verify_block(0)


def test_round_without_verification_is_not_complete(tmp_path: Path) -> None:
    target = new_round(tmp_path / "s")
    for block in range(3):
        assert summarize_round(target, HEADER)["state"] == "unfinished"
        target.write_block(block, random_block(target, block))
    assert (target.is_complete, summarize_round(target, HEADER)["state"]) == (False, "not verified")
    errors = dict.fromkeys(("1", "3"), 0.0)
    verification = {"rows": 6, "tolerance": 1e-4, "max_relative_error": errors}
    target.update_attributes({"verification": verification})
    assert (target.is_complete, summarize_round(target, HEADER)["state"]) == (True, "complete")


@pytest.mark.parametrize("failing", range(6))
def test_mark_is_written_last(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the six arrays of a block cannot be written, the block is not marked
    complete."""
    target, writes, original = new_round(tmp_path / "s"), [], zarr.Array.__setitem__

    def full_disk(array: Any, selection: Any, value: Any) -> None:
        writes.append(array.name)
        if len(writes) == failing + 1:
            raise OSError(28, "No space left on device")
        original(array, selection, value)

    monkeypatch.setattr(zarr.Array, "__setitem__", full_disk)
    with pytest.raises(OSError, match="No space left"):
        target.write_block(0, random_block(target, 0))
    assert not target.complete_blocks().any()
    writes.clear()
    monkeypatch.setattr(zarr.Array, "__setitem__", original)
    target.write_block(0, random_block(target, 0))  # and goes on once there is room
    target.verify_block(0)


# --- damage -------------------------------------------------------------------------------------


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")  # what a power cut leaves of a file that was replaced but not synced


def flip_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [truncate, empty, flip_bit, Path.unlink])
@pytest.mark.parametrize("number", range(6))
def test_damaged_block_is_found_naming_array_and_rows(
    damage: Any, number: int, store_copy: Path
) -> None:
    file = objects(store_copy, block=1)[number]
    damage(file)
    target = open_store(store_copy).rounds()[0]
    name = file.relative_to(store_copy).as_posix().split("/c/")[0]
    with pytest.raises(StoreDamagedError, match=rf"^{name}.*rows 8-15"):
        target.verify_block(1)
    for block in (0, 2):
        target.verify_block(block)


def test_reading_a_damaged_block_is_an_error_and_others_still_read(store_copy: Path) -> None:
    flip_bit(store_copy / ROUND / "activations/prompt/2/c/1/0")
    target = open_store(store_copy).rounds()[0]
    with pytest.raises(
        StoreDamagedError,
        match=r"activations/prompt/2, rows 0-19, does not read back .*extract` again",
    ):
        target.read("prompt", 2)
    assert np.isfinite(target.read("prompt", 2, slice(0, 8))).all()
    assert np.isfinite(target.read("prompt", 0)).all()


@pytest.mark.parametrize("rows", [slice(None), slice(8, 16), slice(10, 12), slice(15, 17)])
def test_object_that_is_gone_is_an_error_when_read_and_not_fill_values(
    rows: slice, store_copy: Path
) -> None:
    (store_copy / ROUND / "activations/completion/2/c/1/0").unlink()
    target = open_store(store_copy).rounds()[0]
    with pytest.raises(
        StoreDamagedError, match=r"activations/completion/2: the object of rows 8-15 is gone"
    ):
        target.read("completion", 2, rows)
    assert target.read("completion", 2, slice(0, 8)).shape == (8, 32)


def test_reading_looks_at_no_marks_but_those_of_its_blocks(store_copy: Path) -> None:
    (store_copy / ROUND / "complete" / "c" / "2").unlink()
    target = open_store(store_copy).rounds()[0]
    assert target.read("prompt", 2, slice(0, 16)).shape == (16, 32)
    assert target.complete_blocks(slice(1, 3)).tolist() == [True, False]


def test_rows_that_are_not_consecutive_are_refused(finished_store: Path) -> None:
    with pytest.raises(ValueError, match="rows step by 2, expected consecutive rows"):
        open_store(finished_store).rounds()[0].read("prompt", 2, slice(0, 8, 2))


@pytest.mark.parametrize("damage", [truncate, empty, flip_bit, Path.unlink])
def test_damaged_mark_counts_as_no_mark(damage: Any, store_copy: Path) -> None:
    damage(store_copy / ROUND / "complete" / "c" / "1")
    assert open_store(store_copy).rounds()[0].complete_blocks().tolist() == [True, False, True]


def test_leftover_partial_files_do_no_harm(store_copy: Path) -> None:
    before = open_store(store_copy).rounds()[0].read("prompt", 2)
    for folder in [path for path in store_copy.rglob("*") if path.is_dir()]:
        (folder / "0.1234abcd.partial").write_bytes(b"half of somet")
    target = open_store(store_copy).rounds()[0]
    for block in range(3):
        target.verify_block(block)
    np.testing.assert_array_equal(target.read("prompt", 2), before)


@pytest.mark.parametrize("column", ["samples/text", "labels/concept"])
def test_lost_column_is_an_error_when_read(column: str, store_copy: Path) -> None:
    shutil.rmtree(store_copy / ROUND / column)
    target = open_store(store_copy).rounds()[0]
    with pytest.raises(StoreDamagedError, match=rf"{ROUND}/{column} is missing"):
        target.samples() if column.startswith("samples") else target.labels()


# --- what must not be stored, and what is not there ---------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_activation_that_is_not_finite_is_refused(value: float, dtype: Any, tmp_path: Path) -> None:
    target = new_round(tmp_path / "s", dataclasses.replace(HEADER, store_dtype=dtype))
    what = "NaN" if np.isnan(value) else "infinity"
    message = (
        rf"{ROUND} row 13, model layer 3, prompt: {what} when stored as {dtype} "
        r"\(model dtype float32\)"
    )
    with pytest.raises(NonFiniteError, match=message):
        target.write_block(1, with_value(random_block(target, 1), value, row=5))
    assert not target.complete_blocks().any()


@pytest.mark.parametrize("phase", ["prompt", "completion"])
def test_row_that_is_nan_throughout_is_refused_unless_it_has_no_position(
    phase: Phase, tmp_path: Path
) -> None:
    target = new_round(tmp_path / "s")
    data = random_block(target, 0)
    data.activations[phase, 1][3] = np.nan
    with pytest.raises(NonFiniteError, match=rf"row 3, model layer 1, {phase}: NaN"):
        target.write_block(0, data)


def test_row_without_a_completion_is_stored_as_nan(tmp_path: Path) -> None:
    target = new_round(tmp_path / "s")
    data = random_block(target, 0)
    data.n_completion_tokens[3] = 0
    for model_layer in (1, 3):
        data.activations["completion", model_layer][3] = np.nan
    target.write_block(0, data)
    target.verify_block(0)
    finite = np.isfinite(target.read("completion", 1, slice(0, 8)).astype(np.float32))
    assert finite.all(axis=1).tolist() == [i != 3 for i in range(8)]


@pytest.mark.parametrize(
    ("dtype", "fits"), [("float16", False), ("bfloat16", True), ("float32", True)]
)
def test_70000_becomes_infinity_nowhere(dtype: Any, fits: bool, tmp_path: Path) -> None:
    target = new_round(tmp_path / "s", dataclasses.replace(HEADER, store_dtype=dtype))
    data = with_value(random_block(target, 0), 70_000, row=2)
    if fits:
        target.write_block(0, data)
        assert abs(float(target.read("prompt", 3, slice(0, 8))[2, 2]) - 70_000) <= 70_000 * 2.0**-8
    else:
        with pytest.raises(
            NonFiniteError, match="row 2, model layer 3, prompt: infinity when stored as float16"
        ):
            target.write_block(0, data)


def test_model_layer_that_is_not_stored_is_an_error(finished_store: Path) -> None:
    target = open_store(finished_store).rounds()[0]
    with pytest.raises(ModelLayerError, match=r"model layer 1 .*holds 0,2"):
        target.read("prompt", 1)


def test_phase_that_is_not_stored_is_an_error(tmp_path: Path) -> None:
    target = new_round(tmp_path / "s", dataclasses.replace(HEADER, mode="prompt"))
    data = random_block(target, 0)
    only = {place: values for place, values in data.activations.items() if place[0] == "prompt"}
    target.write_block(0, data._replace(activations=only))
    with pytest.raises(
        StoreMismatchError, match="written with mode prompt, this run asks for completion"
    ):
        target.read("completion", 1, slice(0, 8))


# --- a writer that was killed while laying out --------------------------------------------------


def test_store_whose_creation_was_cut_short_is_created_again(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "zarr.1234abcd.partial").write_bytes(b'{"attr')
    assert isinstance(create_store(folder, HEADER, PACK), Store)


@pytest.mark.parametrize(
    "group", ["layer_1", "layer_1/round_0/samples", "layer_1/round_0/activations/prompt"]
)
def test_group_that_was_not_written_any_more_is_mended(group: str, store_copy: Path) -> None:
    before = tree(store_copy)
    (store_copy / group / "zarr.json").unlink()
    run_small(store_copy)
    assert tree(store_copy) == before


@pytest.mark.parametrize(
    "column", ["samples/text", "samples/split", "labels/role", "labels/sample"]
)
def test_a_column_that_is_gone_is_an_error_and_never_zeros(column: str, store_copy: Path) -> None:
    chunk = next(file for file in (store_copy / ROUND / column / "c").rglob("*") if file.is_file())
    chunk.unlink()
    target = open_store(store_copy).rounds(1)[0]
    with pytest.raises(
        StoreDamagedError, match=rf"{column}: the object c/0 is gone: run `lenscache extract` again"
    ):
        target.samples() if column.startswith("samples") else target.labels()
    run_small(store_copy)
    open_store(store_copy).rounds(1)[0].samples()


def test_column_of_zeros_that_another_writer_creates_first_keeps_its_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, zeros = zarr.create_group(tmp_path / "s.zarr"), np.zeros(5, np.int32)
    group.create_group("samples")
    write_column(group, "samples/n_cut_tokens", zeros)
    file = tmp_path / "s.zarr/samples/n_cut_tokens/c/0"
    assert file.exists()
    # as if this writer had looked before the other one wrote
    monkeypatch.setattr("lenscache.store.layout.find_node", lambda *_: None)
    write_column(group, "samples/n_cut_tokens", zeros)
    assert file.exists()


def test_what_is_written_after_metadata_were_consolidated_is_seen(
    finished_store: Path, tmp_path: Path
) -> None:
    """Many consolidate a store before they share it, and go on with it later."""
    path = Path(shutil.copytree(finished_store, tmp_path / "s"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(str(path))
    run_small(path, levels=[0])
    assert [entry.name for entry in open_store(path).rounds()] == ["layer_0/round_0", ROUND]
    assert run_small(path, levels=[0]).rows_run == 0


def test_a_store_behind_a_web_server_that_lists_folders_is_read(finished_store: Path) -> None:
    pytest.importorskip("aiohttp")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Quiet, directory=str(finished_store.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/{finished_store.name}"
        try:
            (target,) = open_store(url).rounds()
            assert target.is_complete
            (local,) = open_store(finished_store).rounds()
            np.testing.assert_array_equal(target.read("prompt", 2), local.read("prompt", 2))
            report = verify_store(url)
        finally:
            server.shutdown()
    assert not report.findings
    assert [state.name for state in report.rounds] == [ROUND]
