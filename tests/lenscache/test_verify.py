"""Verification: what it calls damage, what it does not, and what it says."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import zarr

from lenscache.concepts.prompts import KINDS
from lenscache.errors import PlanError, StoreNotFoundError
from lenscache.extract import ExtractProgress
from lenscache.store.objects import StoredArray
from lenscache.store.store import open_store
from lenscache.store.verify.findings import Finding
from lenscache.store.verify.round import RoundCheck
from lenscache.store.verify.verify import verify_store
from tests.lenscache.conftest import PACK, ROUND, SETTINGS, run_small, tree
from tests.lenscache.faults import BLOCK_ARRAYS, HOW, damage, object_file
from tests.models import tiny_model


def only_finding(store: Path, **options: Any) -> Finding:
    (finding,) = verify_store(store, **options).findings
    return finding


def overwrite(store: Path, name: str, row: int, value: Any) -> None:
    """As a writer would that does not keep to the contract: with checksums that match."""
    array: Any = zarr.open_array(store / ROUND / name, mode="r+").with_config(
        {"write_empty_chunks": True}
    )
    array[row] = value


def set_attribute(store: Path, **values: Any) -> None:
    zarr.open_group(store / ROUND, mode="r+").update_attributes(values)


class Stop(Exception):  # noqa: N818 - not an error
    """Ends a run from outside."""


def stop_after(rows: int) -> Any:
    def stop(progress: ExtractProgress) -> None:
        if progress.rows_run >= rows:
            raise Stop("stopped")

    return stop


# --- what is right ------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("jobs", [1, 4])
def test_finished_store_is_clean_and_untouched(
    quick: bool, jobs: int, finished_store: Path
) -> None:
    before = tree(finished_store)
    report = verify_store(finished_store, quick=quick, jobs=jobs, pack=PACK)
    assert (report.findings, report.notes, report.is_damaged) == ([], [], False)
    assert [state.line() for state in report.rounds] == [
        f"{ROUND}: complete, 3 of 3 blocks, 20 of 20 rows"
    ]
    assert tree(finished_store) == before


def test_every_array_and_every_object_of_a_store_is_checked(finished_store: Path) -> None:
    """Also those that are added to the layout some day."""
    report = verify_store(finished_store)
    arrays = [
        file
        for file in finished_store.rglob("zarr.json")
        if json.loads(file.read_text())["node_type"] == "array"
    ]
    objects = [
        file for file in finished_store.rglob("*") if file.is_file() and "/c/" in file.as_posix()
    ]
    marks = 3
    assert (report.arrays, report.objects) == (len(arrays), len(objects) - marks)


def test_progress_counts_objects_up_to_all_of_them(finished_store: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify_store(finished_store, on_checked=lambda *counts: seen.append(counts))
    assert seen == [(n, report.objects) for n in range(1, report.objects + 1)]


@pytest.mark.parametrize("rows", [0, 12, 16, 20])
def test_unfinished_store_is_not_damaged_and_says_how_far_it_is(rows: int, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run_small(tmp_path / "s", on_progress=stop_after(rows))
    report = verify_store(tmp_path / "s")
    done = max(0, rows - 4) // 8
    assert report.findings == []
    line = (
        f"{ROUND}: unfinished, {done} of 3 blocks, {8 * done} of 20 rows: run the same `lenscache "
        "extract` again"
    )
    assert report.rounds[0].line().startswith(line)


def test_objects_of_blocks_without_a_mark_are_noted_and_do_no_harm(
    tmp_path: Path, finished_store: Path
) -> None:
    with pytest.raises(Stop):
        run_small(tmp_path / "s", on_progress=stop_after(12))
    for name in BLOCK_ARRAYS[:2]:
        file = object_file(finished_store, name, 2)
        to = tmp_path / "s" / file.relative_to(finished_store)
        to.parent.mkdir(parents=True)
        to.write_bytes(file.read_bytes()[:-5])
    report = verify_store(tmp_path / "s")
    assert (report.findings, report.notes) == (
        [],
        [f"{ROUND}: objects of blocks 2, which are not marked complete; harmless"],
    )


def test_rows_without_a_completion_may_be_nan(tmp_path: Path) -> None:
    silent = dataclasses.replace(tiny_model())
    vars(silent)["eos_ids"] = frozenset(range(300))
    run_small(tmp_path / "s", silent)
    assert verify_store(tmp_path / "s").findings == []


def test_one_token_prompts_have_no_position_and_may_be_nan(tmp_path: Path) -> None:
    run_small(tmp_path / "s", settings=dataclasses.replace(SETTINGS, max_prompt_tokens=1))
    assert verify_store(tmp_path / "s").findings == []


@pytest.mark.parametrize("mode", ["prompt", "completion"])
@pytest.mark.parametrize("store_dtype", ["float16", "float32"])
def test_stores_of_every_mode_and_dtype_are_clean(
    mode: Any, store_dtype: Any, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, mode=mode, store_dtype=store_dtype)
    run_small(tmp_path / "s", settings=settings, levels=(0, 1))
    report = verify_store(tmp_path / "s", pack=PACK)
    assert (report.findings, [state.state for state in report.rounds]) == (
        [],
        ["complete", "complete"],
    )


# --- what quick verification finds --------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", BLOCK_ARRAYS)
def test_quick_verification_finds_lost_empty_and_cut_objects(
    name: str, how: str, store_copy: Path
) -> None:
    file = object_file(store_copy, name, 1)
    damage(file, how, random.Random(name))
    findings = verify_store(store_copy, quick=True).findings
    decodes_only = how == "flipped" or (how == "truncated" and name.startswith("samples"))
    assert [(f.array, f.rows) for f in findings] == (
        [] if decodes_only else [(f"{ROUND}/{name}", (8, 15))]
    )


def test_quick_verification_decodes_nothing_but_marks(
    store_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, original = [], StoredArray.decode

    def decode(array: StoredArray, number: int) -> Any:
        decoded.append(array.name)
        return original(array, number)

    monkeypatch.setattr(StoredArray, "decode", decode)
    verify_store(store_copy, quick=True)
    assert set(decoded) == {f"{ROUND}/complete"}


# --- values that no checksum tells --------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["activations/prompt/2", "activations/completion/0"])
def test_value_that_is_not_finite_is_found_with_its_row(
    name: str, value: float, store_copy: Path
) -> None:
    overwrite(store_copy, name, 13, value)
    finding = only_finding(store_copy)
    assert (finding.array, finding.rows, finding.block) == (f"{ROUND}/{name}", (13, 13), 1)
    assert finding.found == "NaN or infinity in 1 of 8 rows of the block"


def test_values_in_a_row_without_a_position_are_found(tmp_path: Path) -> None:
    silent = dataclasses.replace(tiny_model())
    vars(silent)["eos_ids"] = frozenset(range(300))
    run_small(tmp_path / "s", silent)
    overwrite(tmp_path / "s", "activations/completion/0", 3, 1.0)
    assert (
        only_finding(tmp_path / "s").found
        == "values in a row without a pooled position in 1 of 8 rows of the block"
    )


@pytest.mark.parametrize(
    ("name", "row", "value", "found"),
    [
        ("labels/sample", 2, 20, "1 values are not in 0 to 19"),
        ("labels/concept", 2, -1, "1 values are not in 0 to 2"),
        ("labels/role", 2, 3, "1 values are not in 0 to 2"),
        ("samples/kind", 2, 99, f"1 values are not in 0 to {len(KINDS) - 1}"),
        ("samples/split", 2, 3, "1 values are not in 0 to 2"),
        ("samples/n_prompt_tokens", 2, 0, "1 values are not in 1 to 251"),
        ("samples/temperature", 2, float("nan"), "1 values are not in 0.0 to 10.0"),
        ("samples/n_completion_tokens", 2, -1, "1 counts are not in 0 to 5"),
    ],
)
def test_value_out_of_range_is_found_with_its_row(
    name: str, row: int, value: Any, found: str, store_copy: Path
) -> None:
    overwrite(store_copy, name, row, value)
    findings = verify_store(store_copy).findings
    assert (f"{ROUND}/{name}", (row, row), found) in [(f.array, f.rows, f.found) for f in findings]


@pytest.mark.parametrize(
    ("name", "value", "array", "found"),
    [
        (
            "samples/text",
            "another text",
            "samples/key",
            "1 values are not the digest of their text and of the settings",
        ),
        (
            "samples/key",
            7,
            "samples/key",
            "1 values are not the digest of their text and of the settings",
        ),
        ("samples/split", 1, None, "samples and labels have the plan digest"),
        ("labels/concept", 1, None, "samples and labels have the plan digest"),
    ],
)
def test_plan_that_was_changed_is_found_though_every_checksum_matches(
    name: str, value: Any, array: str | None, found: str, store_copy: Path
) -> None:
    overwrite(store_copy, name, 0, value)
    finding = only_finding(store_copy)
    assert (finding.array, finding.found[: len(found)]) == (
        f"{ROUND}/{array}" if array else ROUND,
        found,
    )


def test_key_that_occurs_twice_is_found(store_copy: Path) -> None:
    overwrite(store_copy, "samples/key", 3, open_store(store_copy).rounds()[0].samples().key[5])
    assert "1 keys occur twice" in [finding.found for finding in verify_store(store_copy).findings]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"n_samples": "20"}, "the attribute n_samples is '20', expected int"),
        ({"block_rows": 0}, "20 samples in blocks of 0, expected 1 or more"),
        ({"n_targets": 9}, "9 target concepts of 3"),
        ({"seed": 5}, "the seed is 5, that of the store is 0"),
    ],
)
def test_attributes_that_make_no_sense_are_found(
    change: dict[str, Any], found: str, store_copy: Path
) -> None:
    set_attribute(store_copy, **change)
    finding = only_finding(store_copy)
    assert (finding.path, finding.found, finding.cure) == (f"{ROUND}/zarr.json", found, "hand")


def test_arrays_of_another_shape_or_type_are_found(store_copy: Path) -> None:
    for name, change in (
        ("samples/kind", {"shape": [21]}),
        ("activations/prompt/0", {"data_type": "float16"}),
    ):
        file = store_copy / ROUND / name / "zarr.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    found = {finding.array: finding.found for finding in verify_store(store_copy).findings}
    assert found == {
        f"{ROUND}/samples/kind": "shape (21,) of uint8, expected (20,) of uint8",
        f"{ROUND}/activations/prompt/0": "shape (20, 32) of float16, expected (20, 32) of bfloat16",
    }


def test_hierarchy_that_contradicts_itself_is_found(store_copy: Path) -> None:
    links: Any = zarr.open_array(store_copy / "hierarchy/parent_links", mode="r+")
    links[0] = (99, 0)
    finding = only_finding(store_copy)
    assert (finding.array, finding.found) == (
        "hierarchy",
        "parent_links points outside the concepts",
    )


# --- where the texts come from ------------------------------------------------------------------


def test_other_pack_is_found_by_digest_and_by_the_concepts_that_differ(
    finished_store: Path,
) -> None:
    bird = PACK["bird"]
    longer = dataclasses.replace(
        bird, examples=(*bird.examples, "A sentence about wings that nobody extracted.")
    )
    other = dataclasses.replace(
        PACK, concepts=tuple(longer if c is bird else c for c in PACK.concepts)
    )
    store, texts = verify_store(finished_store, pack=other).findings
    assert store.found == (
        f"extracted from pack small 1 ({PACK.digest}), the pack given is small 1 ({other.digest})"
    )
    assert "'bird' (1 of the pack not stored, 0 stored not in the pack)" in texts.found
    assert "'fish'" not in texts.found


def test_pack_without_the_concepts_is_found(finished_store: Path) -> None:
    other = dataclasses.replace(PACK, concepts=tuple(c for c in PACK.concepts if c.id != "bird"))
    findings = verify_store(finished_store, pack=other).findings
    assert "'bird' is not in the pack" in findings[1].found


def test_level_selects_what_is_checked(store_copy: Path) -> None:
    run_small(store_copy, levels=(0,), limit=1)
    damage(object_file(store_copy, "activations/prompt/0", 1), "flipped", random.Random(0))
    assert verify_store(store_copy, level=0).findings == []
    assert len(verify_store(store_copy, level=1).findings) == 1
    with pytest.raises(PlanError, match=r"has no level 7, it has \[0, 1\]"):
        verify_store(store_copy, level=7)


def test_missing_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no store at"):
        verify_store(tmp_path / "nothing")


def test_lost_round_folder_of_a_level_is_no_round(store_copy: Path) -> None:
    shutil.rmtree(store_copy / ROUND)
    assert verify_store(store_copy).rounds == []


def test_run_that_goes_on_meanwhile_is_not_taken_for_damage(
    store_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marks are read before the attributes: a round that is finished in between has a verification
    and old marks."""
    (store_copy / ROUND / "complete/c/1").rename(tmp_path / "mark")
    original = RoundCheck._read_marks

    def read_marks(check: RoundCheck) -> None:
        real = RoundCheck.n_blocks.fget  # type: ignore[attr-defined]
        decode = StoredArray.size

        def size(array: StoredArray, number: int) -> int | None:
            found = decode(array, number)
            # the last array was read: now the writer is done
            if number == 2 and (tmp_path / "mark").exists():
                (tmp_path / "mark").rename(store_copy / ROUND / "complete/c/1")
            return found

        monkeypatch.setattr(StoredArray, "size", size)
        assert real(check) == 3
        original(check)

    monkeypatch.setattr(RoundCheck, "_read_marks", read_marks)
    assert verify_store(store_copy).findings == []


# --- what metadata claim ------------------------------------------------------------------------


def verified(store: Path) -> dict[str, Any]:
    found: dict[str, Any] = open_store(store).rounds()[0].attributes["verification"]
    return found


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"rows": 21}, "rows is 21, expected 0 to 20"),
        ({"rows": "6"}, "rows is '6', expected 0 to 20"),
        ({"tolerance": None}, "tolerance is None, expected a number"),
        ({"other_completions": -1}, "other_completions is -1, expected 0 to"),
        ({"token_distance": 1.5}, "token_distance is 1.5, expected 0 to 1"),
        ({"max_relative_error": {"0": 0.0}}, "expected one by model layer"),
        ({"max_relative_error": {"0": 0.0, "2": 9.0}}, "the error of model layer 2 is 9.0, above"),
    ],
)
def test_verification_that_makes_no_sense_is_found_and_made_anew(
    change: dict[str, Any], found: str, store_copy: Path
) -> None:
    before = tree(store_copy)
    set_attribute(store_copy, verification={**verified(store_copy), **change})
    finding = only_finding(store_copy)
    assert (finding.path, finding.cure) == (f"{ROUND}/zarr.json", "extract")
    assert found in finding.found
    assert not open_store(store_copy).rounds()[0].is_complete
    assert open_store(store_copy).summary()["rounds"][0]["state"] == "not verified"
    assert run_small(store_copy).rows_run == 0
    assert tree(store_copy) == before


@pytest.mark.parametrize("value", [True, 7, "yes", [1]])
def test_verification_of_another_kind_is_found(value: Any, store_copy: Path) -> None:
    set_attribute(store_copy, verification=value)
    assert only_finding(store_copy).found.endswith(f"it is {value!r}, expected an object")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"n_samples": 12}, "the attribute n_samples is 12, the arrays have 20"),
        ({"n_samples": 21}, "the attribute n_samples is 21, the arrays have 20"),
        ({"block_rows": 10}, "the attribute block_rows is 10, the arrays have 8"),
    ],
)
def test_size_that_every_array_contradicts_is_one_finding_about_the_attribute(
    change: dict[str, Any], found: str, store_copy: Path
) -> None:
    set_attribute(store_copy, **change)
    finding = only_finding(store_copy)
    ((key, _),) = change.items()
    assert (finding.found, finding.path) == (found, f"{ROUND}/zarr.json")
    held = {"n_samples": 20, "block_rows": 8}[key]
    assert finding.advice == f"set {key} to {held} in {ROUND}/zarr.json"


@pytest.mark.parametrize(("name", "shape"), [("parent_links", [0, 2]), ("parent_links", [1, 2])])
def test_links_that_a_shape_hides_are_found(name: str, shape: list[int], store_copy: Path) -> None:
    cut_shape(store_copy / "hierarchy" / name, shape)
    finding = only_finding(store_copy)
    assert "beyond the shape" in finding.found
    (store_copy / "hierarchy" / name / "zarr.json").unlink()
    run_small(store_copy)
    assert verify_store(store_copy).is_clean


def test_levels_that_are_missing_from_the_hierarchy_are_found(store_copy: Path) -> None:
    layer: Any = zarr.open_array(store_copy / "hierarchy/layer", mode="r+")
    layer.with_config({"write_empty_chunks": True})[:] = 0
    found = [finding.found for finding in verify_store(store_copy).findings]
    assert any("are not at level 1, where they were extracted" in each for each in found)


def test_concepts_that_are_missing_from_the_hierarchy_are_found(store_copy: Path) -> None:
    ids: Any = zarr.open_array(store_copy / "hierarchy/id", mode="r+")
    ids[:] = [f"other {number}" for number in range(ids.shape[0])]
    found = [finding.found for finding in verify_store(store_copy).findings]
    assert any(f"concepts of {ROUND} are not in it" in each for each in found)


def cut_shape(array: Path, shape: list[int]) -> None:
    file = array / "zarr.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "shape": shape}))


def test_verification_that_looked_at_nothing_is_not_clean(store_copy: Path) -> None:
    assert verify_store(store_copy).is_clean
    (store_copy / ROUND / "complete/zarr.json").unlink()
    shutil.rmtree(store_copy / ROUND / "complete")
    shutil.rmtree(store_copy / "hierarchy")
    set_attributes_aside(store_copy)
    report = verify_store(store_copy)
    assert (report.is_damaged, report.is_clean, len(report.rounds)) == (False, False, 1)
    shutil.rmtree(store_copy / ROUND)
    assert not verify_store(store_copy).is_clean


def set_attributes_aside(store: Path) -> None:
    """As a writer leaves a round that was killed between its group and its attributes."""
    file = store / ROUND / "zarr.json"
    file.write_text(json.dumps({"attributes": {}, "zarr_format": 3, "node_type": "group"}))
