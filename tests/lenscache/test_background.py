"""Texts of no concept in a store: given or written by the model, in no level, as safe as rounds."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lenscache.concepts.importers.texts import read_texts
from lenscache.concepts.plan import MIN_BACKGROUND, SPLITS, plan_background, plan_samples
from lenscache.errors import PackError, PlanError, StoreMismatchError
from lenscache.extract import ExtractReport, ExtractSettings, Partition, extract
from lenscache.extract.background import write_texts
from lenscache.extract.estimate import estimate_run
from lenscache.extract.partitions import partitions_done
from lenscache.model.loading import LoadedModel
from lenscache.store.layout import BACKGROUND
from lenscache.store.round import Round
from lenscache.store.store import open_store
from lenscache.store.verify.verify import verify_store
from tests.lenscache.conftest import PACK, SETTINGS, tree
from tests.lenscache.test_caches import Stateful, loaded_as
from tests.models import tiny_model

TEXTS = tuple(f"Line {i} of a paper that nobody read." for i in range(21))


def run(
    path: Path,
    background: int | Sequence[str] | None = TEXTS,
    settings: ExtractSettings = SETTINGS,
    loaded: LoadedModel | None = None,
    **options: Any,
) -> ExtractReport:
    loaded = loaded or tiny_model()
    asked: dict[str, Any] = {"levels": [1], "limit": 2, **options}
    return extract(path, PACK, loaded, settings, background=background, **asked)


def background_of(path: Path) -> Round:
    found = open_store(path).background
    assert found is not None
    return found


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `TEXTS`. Shared between tests: do not change it."""
    path = tmp_path_factory.mktemp("given") / "s"
    run(path)
    return path


# --- the plan ------------------------------------------------------------------------------------


def test_half_of_the_texts_judge_whatever_their_order() -> None:
    plan, other = (plan_background(PACK, texts) for texts in (TEXTS, TEXTS[::-1]))
    halves = [{t for t, s in zip(p.texts, p.split, strict=True) if s} for p in (plan, other)]
    assert halves[0] == halves[1]
    assert len(halves[0]) == len(TEXTS) // 2
    assert set(plan.split) == {SPLITS.index("train"), SPLITS.index("test")}
    assert plan.n_targets == len(plan.concepts) == len(plan.label_sample) == 0


def test_texts_of_the_pack_and_repeated_ones_are_left_out() -> None:
    own = plan_samples(PACK).texts[0]
    plan = plan_background(PACK, [own, own.upper(), TEXTS[0], f"{TEXTS[0].upper()}!", "  ", *TEXTS])
    assert plan.texts == TEXTS


def test_too_few_texts_are_refused() -> None:
    wanted = f"9 of 18 background texts are distinct .*expected {MIN_BACKGROUND}"
    with pytest.raises(PlanError, match=wanted):
        plan_background(PACK, TEXTS[:9] * 2)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("texts.txt", "one\ntwo\n"),
        ("texts.csv", "id,text\n1,one\n2,two\n3,\n"),
        ("texts.jsonl", '{"text": "one"}\n{"text": "two"}\n{"text": 3}\n{"text": null}\n'),
    ],
)
def test_texts_are_lines_or_a_column(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert read_texts(tmp_path / name) == ("one", "two")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xfa")
    for name in ("none.txt", "binary.txt"):
        with pytest.raises(PlanError, match=r"cannot be read .*give a text file in UTF-8") as error:
            read_texts(tmp_path / name)
        assert "\n" not in str(error.value)
    (tmp_path / "texts.csv").write_text("id,said\n1,one\n")
    with pytest.raises(PackError, match="no column 'text', its columns are 'id', 'said'"):
        read_texts(tmp_path / "texts.csv")
    assert read_texts(tmp_path / "texts.csv", "said") == ("one",)
    (tmp_path / "texts.csv").write_text("id,said\n1,one\n2,well, two\n")
    with pytest.raises(PackError, match=r"line 3 \(3 of 2 fields\): row with more fields"):
        read_texts(tmp_path / "texts.csv", "said")


# --- the store -----------------------------------------------------------------------------------


def test_the_background_is_a_group_of_its_own_and_in_no_level(given: Path) -> None:
    store, plain = open_store(given), given.parent / "plain"
    run(plain, None)
    other = open_store(plain)
    assert [entry.name for entry in store.rounds()] == ["layer_1/round_0"]
    assert store.levels() == [1]
    assert [entry.name for entry in store.all_rounds] == ["layer_1/round_0", "background/round_0"]
    assert other.background is None
    assert store.digest() != other.digest()
    own = {name: data for name, data in tree(given).items() if not name.startswith("background/")}
    assert own == tree(plain)


def test_its_rows_are_extracted_checked_and_verified_as_others_are(given: Path) -> None:
    target = background_of(given)
    assert target.is_complete
    assert tuple(target.samples().text) == TEXTS
    for phase in ("prompt", "completion"):
        assert np.isfinite(target.read(phase, 2).astype(np.float32)).all()
    report = verify_store(given)
    assert not report.findings
    assert "background/round_0" in [state.name for state in report.rounds]
    summary = open_store(given).summary()["rounds"][-1]
    assert (summary["name"], summary["rows"], summary["concepts"]) == ("background/round_0", 21, 0)


def test_damage_in_it_is_found_and_mended(given: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(given, tmp_path / "s"))
    place = path / "background/round_0/activations/prompt/2/c/1/0"
    place.write_bytes(b"x" + place.read_bytes()[1:-1] + b"x")
    (finding,) = verify_store(path).findings
    assert (finding.round, finding.block) == ("background/round_0", 1)
    report = run(path)
    assert report.repaired_blocks == ["background/round_0 block 1"]
    assert tree(path) == tree(given)


def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(given: Path, tmp_path: Path) -> None:
    class Stop(Exception):  # noqa: N818 - not an error
        pass

    def stop(progress: Any) -> None:
        if progress.level == -1 and progress.rows_run >= 12:
            raise Stop

    path = tmp_path / "s"
    with pytest.raises(Stop):
        run(path, on_progress=stop)
    assert 0 < background_of(path).complete_blocks().sum() < 3
    run(path)
    assert tree(path) == tree(given)


def test_partitions_share_it(given: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    for number in (2, 1):
        run(path, settings=replace(SETTINGS, partition=Partition(number, 2)))
    assert tree(path) == tree(given)
    blocks = [entry["blocks"] for entry in partitions_done(open_store(path), 2)]
    assert sum(map(int, blocks)) == 6  # three of the concepts, three of the background


def test_another_background_is_refused(given: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(given, tmp_path / "s"))
    with pytest.raises(StoreMismatchError, match="plan digest"):
        run(path, TEXTS[1:])
    with pytest.raises(StoreMismatchError, match="background"):
        run(path, 12)
    assert tree(path) == tree(given)


def test_a_run_that_asks_for_nothing_goes_on_with_what_the_store_has(
    given: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(given, tmp_path / "s"))
    open_store(path, mode="r+").rounds(BACKGROUND)[0].unmark_block(1)
    assert run(path, None).rows_run == 8
    assert tree(path) == tree(given)


def test_rows_of_another_store_are_copied(given: Path, tmp_path: Path) -> None:
    report = run(tmp_path / "s", reuse=[open_store(given)])
    assert (report.rows_run, report.rows_reused) == (0, report.rows)
    assert report.levels == [1]


# --- texts that the model writes ---------------------------------------------------------------


def test_what_the_model_writes_is_the_same_each_time_and_distinct() -> None:
    written = [write_texts(tiny_model(), 12, SETTINGS, lambda _: None) for _ in range(2)]
    assert written[0] == written[1]
    assert len(set(written[0])) == 12
    assert write_texts(tiny_model(), 12, replace(SETTINGS, seed=1), lambda _: None) != written[0]


def test_texts_that_were_written_once_are_read_from_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "s", 12)
    before = tree(tmp_path / "s")

    def never(*_: object) -> list[str]:
        raise AssertionError("written again")

    monkeypatch.setattr("lenscache.extract.background.write_texts", never)
    run(tmp_path / "s", 12)
    assert tree(tmp_path / "s") == before
    assert 10 <= background_of(tmp_path / "s").n_samples <= 12


def test_a_model_that_cannot_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = replace(tiny_model(), tokenizer=copy.deepcopy(tiny_model().tokenizer))
    with pytest.raises(PlanError, match=r"3 background texts are asked for, expected 10 or more"):
        run(tmp_path / "s", 3)
    monkeypatch.setattr(loaded.model.config, "bos_token_id", None)
    loaded.tokenizer.bos_token = None
    with pytest.raises(PlanError, match=r"no beginning-of-sequence token .*give a file"):
        run(tmp_path / "s", 12, loaded=loaded)
    assert not (tmp_path / "s").exists()


def test_a_model_without_a_cache_is_told_to_take_a_file() -> None:
    """It can store prompts, and a prompt store has a background by default, too."""
    wanted = r"cannot write background texts \(.*\): give a file of texts, or 0 for none"
    with pytest.raises(PlanError, match=wanted):
        write_texts(loaded_as(Stateful), 12, SETTINGS, lambda _: None)


# --- what it costs -------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [12, TEXTS])
def test_plan_counts_it(background: int | tuple[str, ...]) -> None:
    asked: dict[str, Any] = {"levels": [1], "limit": 2}
    plain = estimate_run(PACK, tiny_model(), SETTINGS, **asked)
    found = estimate_run(PACK, tiny_model(), SETTINGS, background=background, **asked)
    n = background if isinstance(background, int) else len(background)
    assert found.background == found.prompts - plain.prompts == n
    assert found.prompt_tokens > plain.prompt_tokens
    assert found.stored_bytes > plain.stored_bytes
