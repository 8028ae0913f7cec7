"""Extraction as a whole: exact, resumable, and it refuses what it should."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray

from lenscache.concepts.pack import Concept, ConceptPack
from lenscache.concepts.plan import plan_samples
from lenscache.concepts.prompts import concept_prompts
from lenscache.errors import (
    BatchMismatchError,
    DiskSpaceError,
    NonFiniteError,
    PlanError,
    PromptTooLongError,
    StoreMismatchError,
)
from lenscache.extract import TOLERANCE, ExtractProgress, ExtractSettings, extract
from lenscache.extract.identity import make_header
from lenscache.inference.batches import BatchLimits
from lenscache.inference.runner import Row, Runner
from lenscache.model.loading import LoadedModel, find_blocks
from lenscache.store.disk import estimate_bytes
from lenscache.store.round import Round
from lenscache.store.store import open_store
from tests.lenscache.conftest import PACK, ROUND, SETTINGS, run_small, tree
from tests.models import tiny_model
from tests.packs import small_pack

ROOT = Path(__file__).parents[2]
PLACES = [("prompt", 0), ("prompt", 2), ("completion", 0), ("completion", 2)]


class Stop(Exception):  # noqa: N818 - not an error
    """Ends a run from outside."""


def the_round(path: Path) -> Round:
    (target,) = open_store(path).rounds()
    return target


def activations(path: Path) -> list[NDArray[np.float64]]:
    found = the_round(path)
    return [found.read(phase, block).astype(np.float64) for phase, block in PLACES]  # type: ignore[arg-type]


def setting(**changes: Any) -> ExtractSettings:
    return dataclasses.replace(SETTINGS, **changes)


def own_model(hook: Callable[..., Any] | None = None, *, block: int = 0) -> LoadedModel:
    """A copy of the model, whose weights may be changed; the hook sees and may replace the output
    of a block."""
    loaded = tiny_model()
    loaded = dataclasses.replace(loaded, model=copy.deepcopy(loaded.model))
    loaded = dataclasses.replace(loaded, blocks=list(find_blocks(loaded.model)))
    if hook is not None:
        loaded.blocks[block].register_forward_hook(hook)
    return loaded


def states_of_files(path: Path) -> dict[str, tuple[int, int]]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {
        file.relative_to(path).as_posix(): (file.stat().st_mtime_ns, file.stat().st_ino)
        for file in files
    }


def stop_after(rows: int) -> Callable[[ExtractProgress], None]:
    def stop(progress: ExtractProgress) -> None:
        if progress.rows_run >= rows:
            raise Stop("stopped")

    return stop


# --- a whole run --------------------------------------------------------------------------------


def test_run_stores_every_row_of_the_plan_once(finished_store: Path) -> None:
    plan, target = plan_samples(PACK, [1], limit=2), the_round(finished_store)
    samples, labels = target.samples(), target.labels()
    assert target.is_complete
    assert samples.text.tolist() == list(plan.texts)
    for column in ("kind", "split", "temperature"):
        np.testing.assert_array_equal(getattr(samples, column), getattr(plan, column))
    for column in ("sample", "concept", "role"):
        np.testing.assert_array_equal(getattr(labels, column), getattr(plan, f"label_{column}"))
    assert target.targets == ("bird", "fish")
    assert len({key.tobytes() for key in samples.key}) == len(plan)


def test_row_numbers_join_texts_labels_splits_and_activations(finished_store: Path) -> None:
    """Each row against its own text, by the model's own account: one prompt, no padding, no
    batch."""
    target, loaded = the_round(finished_store), tiny_model()
    samples, stored = target.samples(), target.read("prompt", 0).astype(np.float32)
    for row, text in enumerate(samples.text):
        ids = loaded.tokenizer(text)["input_ids"]
        assert len(ids) == samples.n_prompt_tokens[row]
        with torch.inference_mode():
            hidden = loaded.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][
                0, 1:
            ]
        np.testing.assert_allclose(stored[row], hidden.mean(dim=0).numpy(), rtol=2.0**-8, atol=1e-6)


def test_completions_are_those_of_each_row_run_alone(finished_store: Path) -> None:
    samples, loaded = the_round(finished_store).samples(), tiny_model()
    plan = plan_samples(PACK, [1], limit=2)
    stored = the_round(finished_store).read("completion", 2).astype(np.float32)
    runner = Runner(loaded, (2,), max_new_tokens=5, limits=BatchLimits(1))
    for row, text in enumerate(samples.text):
        ids = loaded.tokenizer(text)["input_ids"]
        (alone,) = runner.run(
            [Row(ids, int(plan.sampling_seed[row]), float(plan.temperature[row]))]
        )
        assert samples.completion[row] == loaded.tokenizer.decode(
            alone.completion_ids, skip_special_tokens=True
        )
        assert samples.n_completion_tokens[row] == alone.n_completion_tokens
        np.testing.assert_allclose(
            stored[row], alone.pooled["completion"][0], rtol=2.0**-8, atol=1e-5
        )


def test_labels_point_to_texts_that_say_so(finished_store: Path) -> None:
    target = the_round(finished_store)
    texts = target.samples().text
    for sample, concept, role in zip(*target.labels(), strict=True):
        prompts = concept_prompts(PACK, PACK[target.concepts[concept]])
        assert (texts[sample], role) in [(prompt.text, prompt.role) for prompt in prompts]


def test_second_run_extracts_nothing_and_changes_nothing(store_copy: Path) -> None:
    before = states_of_files(store_copy)
    report = run_small(store_copy)
    assert (report.rows, report.rows_run, report.repaired_blocks) == (20, 0, [])
    assert states_of_files(store_copy) == before


def test_two_runs_are_byte_identical(finished_store: Path, tmp_path: Path) -> None:
    run_small(tmp_path / "s")
    assert tree(tmp_path / "s") == tree(finished_store)


def test_progress_counts_rows_up_to_all_of_them(tmp_path: Path) -> None:
    seen: list[ExtractProgress] = []
    report = run_small(tmp_path / "s", on_progress=seen.append)
    assert [progress.rows_done for progress in seen] == [0, 4, 8, 12, 16, 20]
    assert {(progress.level, progress.rows_total, progress.message) for progress in seen} == {
        (1, 20, "")
    }
    assert (report.rows, report.rows_run, report.levels, report.batch_size) == (20, 20, [1], 4)


def test_levels_are_rounds_of_one_store(store_copy: Path) -> None:
    before = tree(store_copy)
    report = run_small(store_copy, levels=(0, 1))
    rounds = open_store(store_copy).rounds()
    assert [target.name for target in rounds] == ["layer_0/round_0", "layer_1/round_0"]
    assert report.rows_run == rounds[0].n_samples
    assert {name: tree(store_copy)[name] for name in before} == before


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_other_batch_size_changes_activations_by_rounding_only(
    batch_size: int, finished_store: Path, tmp_path: Path
) -> None:
    run_small(tmp_path / "s", settings=setting(batch_size=batch_size))
    ours, theirs = the_round(tmp_path / "s"), the_round(finished_store)
    np.testing.assert_equal(ours.samples()._asdict(), theirs.samples()._asdict())
    np.testing.assert_equal(ours.labels()._asdict(), theirs.labels()._asdict())
    for found, expected in zip(
        activations(tmp_path / "s"), activations(finished_store), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=2.0**-7, atol=1e-5)  # one step of bfloat16


def test_float32_store_shows_batch_size_to_1e_4_at_most(tmp_path: Path) -> None:
    for batch_size in (1, 4):
        run_small(
            tmp_path / str(batch_size),
            settings=setting(batch_size=batch_size, store_dtype="float32"),
        )
    for found, expected in zip(
        activations(tmp_path / "4"), activations(tmp_path / "1"), strict=True
    ):
        distance = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert distance.max() < 1e-4


def test_text_is_completed_alike_whatever_else_is_extracted(
    finished_store: Path, tmp_path: Path
) -> None:
    run_small(tmp_path / "s", limit=None, settings=setting(block_rows=16))
    more, fewer = the_round(tmp_path / "s").samples(), the_round(finished_store).samples()
    assert len(more.text) > len(fewer.text)
    row_of = {text: row for row, text in enumerate(more.text)}
    rows = [row_of[text] for text in fewer.text]
    for column in ("key", "completion", "split", "temperature", "n_completion_tokens"):
        np.testing.assert_array_equal(getattr(more, column)[rows], getattr(fewer, column))
    for found, expected in zip(
        activations(tmp_path / "s"), activations(finished_store), strict=True
    ):
        np.testing.assert_allclose(found[rows], expected, rtol=2.0**-7, atol=1e-5)


def test_temperature_tells_nothing_about_labels_or_order() -> None:
    plan = plan_samples(small_pack(n_examples=100))
    assert plan.temperature.min() >= 0.3
    assert plan.temperature.max() <= 0.9
    for number in range(len(plan.concepts)):
        positive = np.zeros(len(plan))
        positive[plan.label_sample[plan.label_concept == number]] = 1
        # more than 3 standard deviations
        assert abs(np.corrcoef(plan.temperature, positive)[0, 1]) < 0.12
    assert abs(np.corrcoef(plan.temperature, np.arange(len(plan)))[0, 1]) < 0.12
    assert abs(np.corrcoef(plan.temperature, plan.split)[0, 1]) < 0.12


@pytest.mark.parametrize("mode", ["prompt", "completion", "combined"])
@pytest.mark.parametrize("store_dtype", ["bfloat16", "float16", "float32"])
def test_estimated_size_is_the_raw_size_of_the_arrays(
    mode: Any, store_dtype: Any, tmp_path: Path
) -> None:
    settings = setting(mode=mode, store_dtype=store_dtype)
    run_small(tmp_path / "s", settings=settings, limit=1)
    group = zarr.open_group(tmp_path / "s" / ROUND / "activations", mode="r")
    arrays = [array for _, phase in group.groups() for _, array in phase.arrays()]
    assert len(arrays) == (4 if mode == "combined" else 2)
    header = make_header(tiny_model(), PACK, settings)
    assert estimate_bytes(header, the_round(tmp_path / "s").n_samples) == sum(
        array.nbytes for array in arrays
    )


def test_prompt_mode_stores_prompts_only(tmp_path: Path) -> None:
    run_small(tmp_path / "s", settings=setting(mode="prompt"))
    samples = the_round(tmp_path / "s").samples()
    assert set(samples.completion) == {""}
    assert set(samples.n_completion_tokens) == {0}
    assert the_round(tmp_path / "s").is_complete
    assert not (tmp_path / "s" / ROUND / "activations/completion").exists()
    assert run_small(tmp_path / "s", settings=setting(mode="prompt")).rows_run == 0


def test_rows_that_say_nothing_are_stored_and_not_extracted_again(tmp_path: Path) -> None:
    """Whole objects of empty texts, zero counts and NaN: present all the same."""
    silent = dataclasses.replace(tiny_model())
    vars(silent)["eos_ids"] = frozenset(range(300))
    run_small(tmp_path / "s", silent)
    assert set(the_round(tmp_path / "s").samples().n_completion_tokens) == {0}
    assert all(np.isnan(values).all() for values in activations(tmp_path / "s")[2:])
    report = run_small(tmp_path / "s", silent)
    assert (report.rows_run, report.repaired_blocks) == (0, [])


def test_bfloat16_model_is_extracted_within_its_tolerance(tmp_path: Path) -> None:
    report = run_small(tmp_path / "s", tiny_model(dtype="bfloat16"))
    assert 0 < report.max_relative_error <= TOLERANCE["bfloat16"] + 2.0**-8
    assert open_store(tmp_path / "s").header.model_dtype == "bfloat16"


# --- interrupted runs ---------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 4, 8, 12, 16, 20])
def test_interrupted_run_resumes_to_the_same_bytes(
    rows: int, finished_store: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stop, match="stopped"):
        run_small(tmp_path / "s", on_progress=stop_after(rows))
    done = int(the_round(tmp_path / "s").complete_blocks().sum())
    assert done == max(0, rows - 4) // 8  # a block is written once the next one has begun
    report = run_small(tmp_path / "s")
    assert report.rows_run == 20 - 8 * done
    assert tree(tmp_path / "s") == tree(finished_store)


def test_run_interrupted_while_verifying_verifies_again(
    finished_store: Path, tmp_path: Path
) -> None:
    seen = 0

    def stop(_block: object, inputs: tuple[torch.Tensor], _output: object) -> None:
        nonlocal seen
        seen += len(inputs[0]) == 4
        # after five batches of four rows, of five passes each: this is the check at the end
        if len(inputs[0]) == 1 and seen == 25:
            raise Stop("stopped")

    with pytest.raises(Stop, match="stopped"):
        run_small(tmp_path / "s", own_model(stop))
    assert the_round(tmp_path / "s").complete_blocks().all()
    assert not the_round(tmp_path / "s").is_complete
    assert run_small(tmp_path / "s").rows_run == 0
    assert tree(tmp_path / "s") == tree(finished_store)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"loaded": "weights"}, "model"),
        ({"loaded": "dtype"}, "dtype"),
        ({"loaded": "tokenizer"}, "tokenizer"),
        ({"pack": small_pack(n_examples=4)}, "pack digest"),
        ({"limit": 1}, "limit"),
        ({"limit": None}, "limit"),
        ({"settings": setting(mode="prompt")}, "mode"),
        ({"settings": setting(pooling="max")}, "pooling"),
        ({"settings": setting(max_new_tokens=6)}, "max new tokens"),
        ({"settings": setting(model_layers=(0, 1))}, "model layers"),
        ({"settings": setting(pool_first_position=True)}, "pool first position"),
        ({"settings": setting(store_dtype="float16")}, "store dtype"),
        ({"settings": setting(seed=1)}, "seed"),
        ({"settings": setting(block_rows=4)}, "block rows"),
    ],
    ids=str,
)
def test_run_with_something_else_is_refused_and_the_store_untouched(
    change: dict[str, Any], field: str, store_copy: Path
) -> None:
    if "loaded" in change:
        tokenizer = copy.deepcopy(tiny_model().tokenizer)
        tokenizer.add_tokens(["sat on the mat"])
        models = {
            "weights": tiny_model(seed=1),
            "dtype": tiny_model(dtype="bfloat16"),
            "tokenizer": dataclasses.replace(tiny_model(), tokenizer=tokenizer),
        }
        change = {"loaded": models[change["loaded"]]}
    before = states_of_files(store_copy)
    with pytest.raises(StoreMismatchError, match=rf"the store was written with {field} ") as caught:
        run_small(store_copy, **change)
    assert caught.value.field == field
    assert states_of_files(store_copy) == before


def test_model_under_the_same_name_with_one_other_weight_is_refused(store_copy: Path) -> None:
    other = own_model()
    other.model.get_parameter("model.norm.weight")[0] += 0.5
    with pytest.raises(
        StoreMismatchError, match=r"written with model tiny-llama \(weights \w{16}\)"
    ):
        run_small(store_copy, other)


def test_other_batch_size_may_continue_a_store(tmp_path: Path) -> None:
    with pytest.raises(Stop, match="stopped"):
        run_small(tmp_path / "s", on_progress=stop_after(12))
    run_small(tmp_path / "s", settings=setting(batch_size=2))
    assert the_round(tmp_path / "s").is_complete


def test_verification_is_recorded(finished_store: Path) -> None:
    found = the_round(finished_store).attributes
    assert found["batch_size"] == 4
    assert (found["verification"]["rows"], found["verification"]["other_completions"]) == (8, 0)
    errors = found["verification"]["max_relative_error"]
    assert set(errors) == {"0", "2"}
    # not 0: bf16 was stored
    assert all(0 < error < found["verification"]["tolerance"] for error in errors.values())


@pytest.mark.parametrize("block", [0, 2])
def test_model_that_does_not_batch_is_found_out(block: int, tmp_path: Path) -> None:
    def depends_on_the_batch(_block: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output * (1 + 0.01 * len(output))

    message = (
        rf"{ROUND}: rows extracted one by one differ .* not marked complete"
        ".* another store with --batch-size 1"
    )
    for _ in range(2):  # it is not forgotten
        with pytest.raises(BatchMismatchError, match=message):
            run_small(tmp_path / "s", own_model(depends_on_the_batch, block=block))
    target = the_round(tmp_path / "s")
    assert not target.is_complete
    assert "verification" not in target.attributes


@pytest.mark.parametrize("existing", [False, True])
def test_disk_too_small_is_refused_before_anything_is_written(
    existing: bool, store_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store_copy if existing else tmp_path / "folder" / "s"
    before = states_of_files(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1000))
    with pytest.raises(
        DiskSpaceError, match=r"the run needs about .* GB more, .* has 0\.0 GB free: choose another"
    ):
        run_small(
            path,
            limit=None,
            levels=(0, 1),
            settings=setting(model_layers=None, store_dtype="float32"),
        )
    assert states_of_files(tmp_path) == before
    assert (tmp_path / "folder").exists() is False


def test_disk_with_just_enough_room_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = estimate_bytes(make_header(tiny_model(), PACK, SETTINGS), 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=needed))
    assert run_small(tmp_path / "s").rows_run == 20


def prompt_lengths() -> list[int]:
    return [
        len(own_model().tokenizer(text)["input_ids"])
        for text in plan_samples(PACK, [1], limit=2).texts
    ]


@pytest.mark.parametrize(("mode", "new"), [("prompt", 0), ("combined", 5)])
def test_prompts_that_do_not_fit_the_positions_are_cut_and_it_is_said_which(
    mode: Any, new: int, tmp_path: Path
) -> None:
    loaded, lengths = own_model(), np.array(prompt_lengths())
    room = int(np.sort(lengths)[-3])
    loaded.model.config.max_position_embeddings = room + new
    report = run_small(tmp_path / "s", loaded, setting(mode=mode))
    samples = the_round(tmp_path / "s").samples()
    np.testing.assert_array_equal(samples.n_cut_tokens, np.maximum(lengths - room, 0))
    np.testing.assert_array_equal(samples.n_prompt_tokens, np.minimum(lengths, room))
    assert report.cut_prompts == (samples.n_cut_tokens > 0).sum() > 0
    assert list(samples.text) == list(plan_samples(PACK, [1], limit=2).texts)


def test_a_cut_prompt_gives_what_its_beginning_gives(tmp_path: Path) -> None:
    limit = min(prompt_lengths()) - 2
    run_small(
        tmp_path / "cut",
        settings=setting(mode="prompt", max_prompt_tokens=limit, store_dtype="float32"),
    )
    found = the_round(tmp_path / "cut")
    loaded = tiny_model()
    ids = loaded.tokenizer(str(found.samples().text[0]))["input_ids"][:limit]
    with torch.no_grad():
        states = (
            loaded.model(torch.tensor([ids]), output_hidden_states=True)
            .hidden_states[1][0, 1:]
            .mean(dim=0)
        )
    np.testing.assert_allclose(
        found.read("prompt", 0, slice(0, 1))[0], states.float().numpy(), rtol=1e-4, atol=1e-5
    )


def test_another_prompt_limit_is_another_store(tmp_path: Path) -> None:
    run_small(tmp_path / "s", settings=setting(max_prompt_tokens=9))
    with pytest.raises(StoreMismatchError, match="max prompt tokens 9, this run asks for 8"):
        run_small(tmp_path / "s", settings=setting(max_prompt_tokens=8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 300}, "no room for a prompt"),
        ({"max_prompt_tokens": 255}, "leave room for 251 beside 5"),
    ],
)
def test_settings_that_leave_no_room_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(PromptTooLongError, match=message):
        run_small(tmp_path / "s", settings=setting(**change))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "change",
    [{"max_new_tokens": 1}, {"batch_size": 0}, {"block_rows": 0}, {"max_prompt_tokens": 0}],
    ids=lambda change: next(iter(change)),
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=next(iter(change))):
        setting(**change)


def test_nan_weights_are_an_error_and_not_stored(tmp_path: Path) -> None:
    broken = own_model()
    broken.blocks[2].get_parameter("mlp.down_proj.weight").fill_(float("nan"))
    with pytest.raises(
        NonFiniteError, match=rf"{ROUND} row 0, model layer 2, prompt: NaN when stored as bfloat16"
    ):
        run_small(tmp_path / "s", broken)
    assert not the_round(tmp_path / "s").complete_blocks().any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_blocks_before_a_value_that_is_not_finite_are_kept(
    value: float, finished_store: Path, tmp_path: Path
) -> None:
    calls: list[int] = []

    def fails_later(_block: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        if len(output) > 1:  # not where the first block is checked
            calls.append(len(output))
        if len(calls) > 15:  # two batches of five passes a block: in the second block
            output = output.index_fill(2, torch.tensor([7]), value)
        return output

    what = "NaN" if value != value else "(NaN|infinity)"
    with pytest.raises(
        NonFiniteError, match=rf"{ROUND} row \d+, model layer 0, (prompt|completion): {what}"
    ):
        run_small(tmp_path / "s", own_model(fails_later))
    assert the_round(tmp_path / "s").complete_blocks().tolist() == [True, False, False]
    run_small(tmp_path / "s")
    assert tree(tmp_path / "s") == tree(finished_store)


def test_out_of_memory_is_told_once_recorded_and_changes_nothing(
    finished_store: Path, tmp_path: Path
) -> None:
    def out_of_memory(_block: object, inputs: tuple[torch.Tensor], _output: object) -> None:
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    seen: list[ExtractProgress] = []
    report = run_small(tmp_path / "s", own_model(out_of_memory), on_progress=seen.append)
    assert [p.message for p in seen if p.message] == ["out of memory: going on with batches of 2"]
    assert report.batch_size == the_round(tmp_path / "s").attributes["batch_size"] == 2
    for found, expected in zip(
        activations(tmp_path / "s"), activations(finished_store), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=2.0**-7, atol=1e-5)


def test_keys_change_with_whatever_the_activation_depends_on(
    finished_store: Path, tmp_path: Path
) -> None:
    base = {bytes(key) for key in the_round(finished_store).samples().key}
    changes: list[dict[str, Any]] = [
        {"max_new_tokens": 6},
        {"pooling": "max"},
        {"mode": "prompt"},
        {"seed": 1},
    ]
    for number, change in enumerate(changes):
        run_small(tmp_path / str(number), settings=setting(**change), limit=1)
        assert base.isdisjoint(
            bytes(key) for key in the_round(tmp_path / str(number)).samples().key
        )


def test_keys_do_not_change_with_the_model_layers_captured(
    finished_store: Path, tmp_path: Path
) -> None:
    run_small(tmp_path / "s", settings=setting(model_layers=(1,)))
    assert (
        the_round(tmp_path / "s").samples().key.tolist()
        == the_round(finished_store).samples().key.tolist()
    )


def test_nothing_in_a_store_is_pickled_or_python_only(finished_store: Path) -> None:
    names = {
        codec["name"]
        for file in finished_store.rglob("zarr.json")
        for codec in json.loads(file.read_text()).get("codecs", [])
    }
    assert names <= {"bytes", "vlen-utf8", "zstd", "crc32c", "sharding_indexed"}


def test_writers_that_start_at_the_same_time_do_each_other_no_harm(
    finished_store: Path, tmp_path: Path
) -> None:
    """Two workers may lay out and fill one store together: wasted work, the same bytes."""
    barrier = threading.Barrier(3)

    def work() -> None:
        model = copy.deepcopy(tiny_model().model)  # hooks belong to one runner at a time
        loaded = dataclasses.replace(tiny_model(), model=model, blocks=list(find_blocks(model)))
        barrier.wait()
        run_small(tmp_path / "s", loaded)

    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(work) for _ in range(3)]:
            future.result()
    assert tree(tmp_path / "s") == tree(finished_store)


def test_round_that_does_not_fit_shows_before_anything_is_extracted(tmp_path: Path) -> None:
    run_small(tmp_path / "s")
    with pytest.raises(StoreMismatchError, match="block rows 8, this run asks for 4"):
        run_small(tmp_path / "s", settings=setting(block_rows=4), levels=[0, 1])
    assert not any(r.complete_blocks().any() for r in open_store(tmp_path / "s").rounds(0))


class _BatchedGarbage(torch.nn.Module):
    """A block that is right for one row and constant for several."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        output: torch.Tensor = self.block(hidden, *args, **kwargs)
        return output if len(output) == 1 else torch.full_like(output, 3.0)


@pytest.mark.parametrize("mode", ["combined", "completion", "prompt"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verification_fails_whatever_the_mode_and_dtype(
    dtype: str, mode: Any, tmp_path: Path
) -> None:
    """Completions differ between batches in low precision, and must be compared all the same."""
    model = copy.deepcopy(tiny_model(dtype=dtype).model)
    blocks = find_blocks(model)
    blocks[0] = _BatchedGarbage(blocks[0])
    loaded = dataclasses.replace(tiny_model(dtype=dtype), model=model, blocks=list(blocks))
    with pytest.raises(BatchMismatchError, match="differ from the batched ones"):
        run_small(tmp_path / "s", loaded, setting(mode=mode))
    assert not the_round(tmp_path / "s").is_complete


@pytest.mark.parametrize("mode", ["combined", "completion", "prompt"])
def test_rounds_in_bfloat16_pass_verification(mode: Any, tmp_path: Path) -> None:
    run_small(tmp_path / "s", tiny_model(dtype="bfloat16"), setting(mode=mode))
    assert the_round(tmp_path / "s").is_complete


def test_bytes_of_another_level_do_not_count_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_small(tmp_path / "s", levels=[1], limit=None)
    header = open_store(tmp_path / "s").header
    needed = estimate_bytes(header, len(plan_samples(PACK, [0])))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed // 2))
    with pytest.raises(DiskSpaceError, match="GB free"):
        run_small(tmp_path / "s", levels=[0], limit=None)


def test_logits_that_are_nan_stop_the_run_even_if_no_stored_block_is(tmp_path: Path) -> None:
    model = copy.deepcopy(tiny_model().model)
    model.lm_head.weight.fill_(float("nan"))
    loaded = dataclasses.replace(tiny_model(), model=model, blocks=list(find_blocks(model)))
    with pytest.raises(NonFiniteError, match="logits are NaN in float32"):
        run_small(tmp_path / "s", loaded)


def test_texts_of_every_sort_and_length_are_extracted_and_read_back_as_they_were(
    tmp_path: Path,
) -> None:
    texts = (
        "nul \0 inside",
        "emoji 🦜🏴‍☠️ and \ud7ff",
        "שלום עולם, right to left",
        "line\r\nbreaks\u2028here",
        "a" * 50_000,
        "word " * 10_000,
        "\u202ereversed\u202c",
        "tab\tand\x1b[31mescape",
    )
    concept = Concept(
        "../c/" + "x" * 300, "c", 0, examples=texts, negatives=("plain", "and simple")
    )
    pack = ConceptPack("odd", "1", (concept,), prompts="examples")
    report = extract(tmp_path / "s", pack, tiny_model(), setting(model_layers=(0,)))
    target = open_store(tmp_path / "s").rounds(0)[0]
    samples = target.samples()
    assert {*map(str, samples.text)} == {*texts, "plain", "and simple"}
    assert report.cut_prompts == (samples.n_cut_tokens > 0).sum() == 2
    assert target.targets == (concept.id,)
    assert np.isfinite(target.read("prompt", 0)).all()
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
