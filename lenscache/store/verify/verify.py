"""Is a store what it should be? Every object is decoded, every value checked, nothing written.

    store --> hierarchy, rounds, label sets
        --tasks, one an object--> threads --> findings, how far each round is

A store that is merely unfinished is not damaged. What a killed writer leaves (temporary files,
objects of blocks that are not marked) does no harm and is noted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lenscache.concepts.pack import ConceptPack
from lenscache.errors import LabelSetError, PlanError, StoreDamagedError
from lenscache.store.columns import HIERARCHY
from lenscache.store.labelsets import label_set_names, read_label_set
from lenscache.store.layout import BACKGROUND
from lenscache.store.objects import StoredArray, leftover_files
from lenscache.store.store import Store, open_store
from lenscache.store.verify.contents import (
    check_columns,
    check_hierarchy,
    check_levels,
    check_pack,
)
from lenscache.store.verify.findings import WRITE_ANEW, WRITE_ANEW_AFTER, Finding, VerifyReport
from lenscache.store.verify.round import Outcome, RoundCheck, Task
from lenscache.store.verify.sizes import rows_beyond

OnChecked = Callable[[int, int], None]
"""Called with the objects checked so far, and all of them."""


def verify_store(
    path: str | Path,
    *,
    quick: bool = False,
    pack: ConceptPack | None = None,
    level: int | None = None,
    jobs: int | None = None,
    on_checked: OnChecked | None = None,
) -> VerifyReport:
    """Check a store; it may be read-only, and it may be written meanwhile.

    Parameters
    ----------
    quick : only look at marks, metadata, and presence and size of objects; decode only marks.
    pack : compare the store with this pack, too.
    level : only the rounds of one level of abstraction.
    jobs : threads; None for one a core, eight at most.
    on_checked : called after every object.

    Raises
    ------
    StoreNotFoundError, StoreFormatError
        If there is no store, or its own metadata is damaged.
    PlanError
        If the store has no round of this level.
    """
    start = time.perf_counter()
    store = open_store(path)
    report = VerifyReport(str(path), quick)
    places = [place for place in store.places() if level in (None, place[0])]
    if level is not None and not places:
        there = sorted({n for n, _ in store.places() if n != BACKGROUND})
        raise PlanError(f"{path} has no level {level}, it has {there}")
    checks = [RoundCheck(store.group, store.header, *place, quick=quick) for place in places]
    for check in checks:
        check.prepare()
    jobs = jobs or min(8, os.cpu_count() or 1)
    run = _Run(report, jobs, on_checked or (lambda _done, _total: None))
    # The hierarchy is written before any round: without one, it may be as a stopped writer left it.
    hierarchy = _open_hierarchy(store, report) if any(check.attributes for check in checks) else {}
    # Columns of all rounds first: they say which rows of the activations may be NaN.
    steps = [(check, task) for check in checks for task in check.column_tasks()]
    later = [(check, task) for check in checks for task in check.activation_tasks()]
    run.total = sum(array.n_objects for array in hierarchy.values()) + len(steps) + len(later)
    _check_hierarchy(store, hierarchy, checks, run)
    run.do(steps)
    for check in checks:
        check.join_columns()
    run.do(later)
    for check in checks:
        _finish(check, report)
    if not quick:
        _check_label_sets(store, report)
        if pack is not None:
            report.findings += check_pack(store.header, checks, pack)
    left = "left by a writer that was stopped; harmless"
    report.notes += [f"{file}: {left}" for file in leftover_files(store.group)]
    report.elapsed_s = time.perf_counter() - start
    return report


class _Run:
    """Objects examined by several threads, results taken in order."""

    def __init__(self, report: VerifyReport, jobs: int, on_checked: OnChecked) -> None:
        self.report, self.jobs, self.on_checked = report, jobs, on_checked
        self.total = 0

    def do(self, steps: Sequence[tuple[RoundCheck, Task]]) -> None:
        pool = ThreadPoolExecutor(self.jobs, thread_name_prefix="lenscache-verify")
        try:
            for (check, task), outcome in zip(steps, pool.map(_examine, steps), strict=True):
                check.findings += outcome.findings
                check.keep(task, outcome.values)
                self.count(outcome.size)
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for what was not begun

    def count(self, size: int) -> None:
        self.report.objects += 1
        self.report.bytes += size
        self.on_checked(self.report.objects, self.total)


def _examine(step: tuple[RoundCheck, Task]) -> Outcome:
    check, task = step
    return check.examine(task)


def _finish(check: RoundCheck, report: VerifyReport) -> None:
    """What follows once every object of a round was examined."""
    if check.attributes and not check.quick:
        check.findings += check_columns(check)
    check.findings.sort(key=lambda finding: (finding.array, finding.rows or (-1, -1)))
    if unmarked := check.unmarked_objects():
        what = f"objects of blocks {', '.join(map(str, unmarked))}, which are not marked complete"
        report.notes.append(f"{check.name}: {what}; harmless")
    report.findings += check.findings
    report.rounds.append(check.state())
    report.arrays += len(check.arrays)


def _open_hierarchy(store: Store, report: VerifyReport) -> dict[str, StoredArray]:
    """The columns of the hierarchy that can be opened."""
    found: dict[str, StoredArray] = {}
    for column in HIERARCHY:
        place, file, data_type = column.place, f"{column.place}/zarr.json", column.dtype
        try:
            array = StoredArray.open(store.group, place)
        except StoreDamagedError as error:
            advice = f"remove {file} and {WRITE_ANEW_AFTER}"
            found_there = f"zarr.json does not parse ({type(error.__cause__ or error).__name__})"
            report.findings.append(Finding(place, found_there, advice, path=file, cure="hand"))
            continue
        if array is None:
            if not column.optional:
                missing = Finding(place, "the array is missing", WRITE_ANEW, path=file)
                report.findings.append(missing)
        elif array.data_type != data_type:
            wrong = f"data type {array.data_type}, expected {data_type}"
            advice = f"remove {file} and extract again"
            report.findings.append(Finding(place, wrong, advice, path=file, cure="hand"))
        else:
            found[column.name] = array
            report.arrays += 1
    return found


def _check_hierarchy(
    store: Store, arrays: dict[str, StoredArray], checks: list[RoundCheck], run: _Run
) -> None:
    columns: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        parts = []
        for number in range(array.n_objects):
            size, fault, values = array.look(number) if run.report.quick else array.check(number)
            if values is not None:
                parts.append(values)
            if fault:
                path = array.object_path(number)
                run.report.findings.append(Finding(array.name, fault, WRITE_ANEW, path=path))
            run.count(size)
        if len(parts) == array.n_objects and not run.report.quick:
            columns[name] = np.concatenate(parts) if parts else np.zeros(array.shape, np.int32)
            if beyond := rows_beyond(store.group, array):
                file = f"{array.name}/zarr.json"
                hidden = f"{beyond} rows lie beyond the shape {array.shape}, which was cut"
                advice = f"remove {file} and {WRITE_ANEW_AFTER}"
                cut = Finding(array.name, hidden, advice, path=file, cure="hand")
                run.report.findings.append(cut)
    if all(column.name in columns for column in HIERARCHY if not column.optional):
        run.report.findings += check_hierarchy(columns)
        run.report.findings += check_levels(columns, checks)


def _check_label_sets(store: Store, report: VerifyReport) -> None:
    for name in label_set_names(store):
        try:
            read_label_set(store, name)
        except LabelSetError as error:
            advice = "write it again with `lenscache label --overwrite`"
            report.findings.append(Finding(f"label_sets/{name}", str(error), advice, cure="hand"))
