"""Checks of one round: its arrays against the plan, its objects, its values.

    attributes --> expected arrays --metadata--> marks
        --every object of every array, many threads--> columns --> keys, plan digest

Columns come before activations, since they say which rows may be NaN. Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from lenscache.errors import StoreDamagedError
from lenscache.store.access import raise_unless_damage, type_and_text
from lenscache.store.attributes import attributes_fault, is_verified, verification_fault
from lenscache.store.columns import COLUMNS
from lenscache.store.header import StoreHeader
from lenscache.store.layout import find_node, round_name, vector_arrays
from lenscache.store.objects import StoredArray, object_names
from lenscache.store.quantization import MISSING
from lenscache.store.round import has_position
from lenscache.store.verify.findings import (
    COMPARE_ANEW,
    EXTRACT_ROWS,
    WRITE_ANEW,
    WRITE_ANEW_AFTER,
    Cure,
    Finding,
    RoundState,
)
from lenscache.store.verify.sizes import contradicted_sizes
from lenscache.terms import Phase

_VECTORS = ("activations/", "scales/")
_PER_BLOCK = frozenset(column.place for column in COLUMNS if column.by_block)


@dataclass(frozen=True)
class Task:
    """One object of one array."""

    array: StoredArray
    number: int
    place: tuple[Phase, int] | None = None
    """Phase and model layer, of activations."""
    block: int | None = None
    """The block the object holds; None for a column that the plan determines."""


@dataclass
class Outcome:
    """What came of one task."""

    findings: list[Finding]
    size: int
    values: NDArray[Any] | None = None
    """Of columns; activations are let go at once."""


class RoundCheck:
    """One round under examination: `prepare`, `examine` every task, `keep` what columns hold.

    Parameters
    ----------
    root : root group of the store.
    """

    def __init__(
        self, root: zarr.Group, header: StoreHeader, level: int, index: int, *, quick: bool
    ) -> None:
        self.root, self.header, self.quick = root, header, quick
        self.level, self.index = level, index
        self.name = round_name(level, index)
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self.attributes: dict[str, Any] = {}
        self.arrays: dict[str, StoredArray] = {}
        self.marked: set[int] = set()
        self.columns: dict[str, NDArray[Any]] = {}
        """What decoded whole; block columns only where every block is complete."""
        self._parts: dict[str, dict[int, NDArray[Any]]] = {}

    @property
    def n_samples(self) -> int:
        """Rows by the attributes."""
        return int(self.attributes["n_samples"])

    @property
    def block_rows(self) -> int:
        """Rows of a block by the attributes."""
        return int(self.attributes["block_rows"])

    @property
    def n_blocks(self) -> int:
        """Number of blocks by the attributes."""
        return -(-self.n_samples // self.block_rows)

    def rows(self, block: int) -> slice:
        """The rows of a block."""
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.n_samples))

    def state(self) -> RoundState:
        """How far the round is, by its marks."""
        if not self.attributes or "complete" not in self.arrays:
            return RoundState(self.name, 0, 0, 0, 0, "damaged" if self.findings else "not laid out")
        done, all_done = len(self.marked), len(self.marked) == self.n_blocks
        rows = sum(self.rows(block).stop - self.rows(block).start for block in self.marked)
        state: Any = "complete" if is_verified(self.attributes, self.header) else "not verified"
        state = "damaged" if self.findings else state if all_done else "unfinished"
        return RoundState(self.name, self.n_samples, rows, self.n_blocks, done, state)

    # Metadata and marks

    def prepare(self) -> None:
        """Check attributes and metadata, and read the marks; later, only what opened is checked.

        A round that is not laid out to the end has no `complete` yet and is not checked further.
        """
        if not self._read_attributes():
            return
        phases = [f"/{phase}" for phase in self.header.phases]
        vectors = [f"{name}{end}" for name in vector_arrays(self.header) for end in ("", *phases)]
        self._check_group(self.name.partition("/")[0])
        for name in ("samples", "labels", *vectors):
            self._check_group(f"{self.name}/{name}")
        if not self._is_laid_out:
            return  # nothing can be missing or damaged that the next run would not write anyway
        for name, (shape, data_type) in self._expected().items():
            self._open(name, shape, data_type)
        for column in (c for c in COLUMNS if c.optional and not self.attributes.get(c.name)):
            if object_names(self.root, f"{self.name}/{column.place}/c"):
                found = f"{column.place} is there, the attribute {column.name} denies it"
                self._add_metadata(self.name, found)
        if "complete" in self.arrays:
            self._read_marks()

    def _read_attributes(self) -> bool:
        try:
            group = find_node(self.root, self.name)
        except StoreDamagedError as error:
            self._add_unparsed(self.name, error)
            return False
        if group is None:
            if self._has_marks():
                self._add_metadata(self.name, "zarr.json is missing", WRITE_ANEW)
            return False
        attributes = dict(group.attrs)
        if "plan_digest" not in attributes and not self._has_marks():
            return False  # a writer was stopped between the group and its attributes
        if fault := attributes_fault(attributes, self.header, self.level):
            self._add_metadata(self.name, fault)
            return False
        # The other checks go by what all arrays say.
        for key, held in contradicted_sizes(self.root, self.name, attributes):
            path = f"{self.name}/zarr.json"
            found = f"the attribute {key} is {attributes[key]}, the arrays have {held}"
            advice = f"set {key} to {held} in {path}"
            self.findings.append(
                Finding(self.name, found, advice, path=path, round=self.name, cure="hand")
            )
            attributes[key] = held
        self.attributes = attributes
        return True

    def _check_group(self, name: str) -> None:
        try:
            if find_node(self.root, name) is None and self._is_laid_out:
                self._add_metadata(name, "zarr.json of the group is missing", WRITE_ANEW)
        except StoreDamagedError as error:
            self._add_unparsed(name, error)

    @cached_property
    def _is_laid_out(self) -> bool:
        """Whether everything must be there: `complete` is created last, and marks come after it."""
        try:
            return find_node(self.root, f"{self.name}/complete") is not None or self._has_marks()
        except StoreDamagedError:
            return True

    def _has_marks(self) -> bool:
        return bool(object_names(self.root, f"{self.name}/complete/c"))

    def _expected(self) -> dict[str, tuple[tuple[int | None, ...], str]]:
        """Shape and data type of every array the round must have; None where any length will do."""
        n, header = self.n_samples, self.header
        arrays: dict[str, tuple[tuple[int | None, ...], str]] = {
            column.place: (
                (
                    n if column.place.startswith("samples/") else None,
                    *column.more_axes(header).values(),
                ),
                column.dtype,
            )
            for column in COLUMNS
            if not column.optional or self.attributes.get(column.name)
        }
        for place in (f"{phase}/{i}" for phase in header.phases for i in header.model_layers):
            arrays[f"activations/{place}"] = ((n, header.hidden), header.store_dtype)
            if header.store_dtype == "int8":
                arrays[f"scales/{place}"] = ((n,), "float32")
        return {**arrays, "complete": ((self.n_blocks,), "uint8")}

    def _open(self, name: str, shape: tuple[int | None, ...], data_type: str) -> None:
        full = f"{self.name}/{name}"
        try:
            array = StoredArray.open(self.root, full)
        except StoreDamagedError as error:
            self._add_unparsed(full, error)
            return
        if array is None:
            self._add_metadata(full, "the array is missing", WRITE_ANEW)
            return
        fits = len(array.shape) == len(shape) and all(
            want in (None, have) for have, want in zip(array.shape, shape, strict=True)
        )
        fault = None
        if not fits or array.data_type != data_type:
            wanted = tuple("any" if size is None else size for size in shape)
            fault = f"shape {array.shape} of {array.data_type}, expected {wanted} of {data_type}"
        elif self._is_per_block(name) and array.object_rows != self.block_rows:
            fault = f"{array.object_rows} rows an object, expected {self.block_rows}"
        elif name == "complete" and array.object_rows != 1:
            fault = f"{array.object_rows} marks an object, expected 1"
        elif name == "complete" and array.array.fill_value != 0:
            fault = "marks that are missing would read as set"
        if fault:
            self._add_metadata(full, fault)
        else:
            self.arrays[name] = array

    def _is_per_block(self, name: str) -> bool:
        return name in _PER_BLOCK or name.startswith(_VECTORS)

    def _read_marks(self) -> None:
        """Read the marks, and then the attributes again.

        This order, and a second look at missing marks, keep a run that goes on meanwhile from
        looking like damage: it sets `verification` after the last mark and takes it back first.
        """
        marks = self.arrays["complete"]
        found = {block: _read_mark(marks, block) for block in range(self.n_blocks)}
        now = dict(cast("zarr.Group", find_node(self.root, self.name)).attrs)
        self.attributes["verification"] = now.get("verification")
        for block, mark in found.items():
            if mark == 1:
                self.marked.add(block)
            elif isinstance(mark, str):
                self._add_block("complete", block, mark)
            elif self.attributes.get("verification") and _read_mark(marks, block) == mark:
                missing = "the mark of these rows is missing"
                what = missing if mark is None else "these rows are marked unfinished"
                self._add_block("complete", block, f"{what}, though the round was finished")
        if fault := verification_fault(self.attributes, self.header):
            self._add_metadata(self.name, f"the attribute verification: {fault}", COMPARE_ANEW)

    # Objects

    def column_tasks(self) -> Iterator[Task]:
        """The objects of samples and labels that must be there."""
        for name, array in self.arrays.items():
            if name in _PER_BLOCK:
                yield from (Task(array, block, block=block) for block in sorted(self.marked))
            elif name != "complete" and not name.startswith(_VECTORS):
                yield from (Task(array, number) for number in range(array.n_objects))

    def activation_tasks(self) -> Iterator[Task]:
        """The objects of activations that must be there."""
        for phase in self.header.phases:
            for model_layer in self.header.model_layers:
                for name in vector_arrays(self.header):
                    if (array := self.arrays.get(f"{name}/{phase}/{model_layer}")) is not None:
                        for block in sorted(self.marked):
                            yield Task(array, block, place=(phase, model_layer), block=block)

    def examine(self, task: Task) -> Outcome:
        """Look at one object; decode it unless this is a quick check. Called from many threads."""
        look = task.array.look if self.quick else task.array.check
        size, fault, values = look(task.number)
        findings = [self._object_finding(task, fault)] if fault else []
        if values is not None and task.place is not None:
            findings += self._check_activations(task, values)
            values = None
        return Outcome(findings, size, values)

    def keep(self, task: Task, values: NDArray[Any] | None) -> None:
        """Remember the values of a column."""
        if values is not None:
            self._parts.setdefault(self._relative(task.array), {})[task.number] = values

    def parts(self, name: str) -> Mapping[int, NDArray[Any]]:
        """What decoded of a column, by number of the object."""
        return self._parts.get(name, {})

    def unmarked_objects(self) -> list[int]:
        """Blocks that are not marked complete and have objects all the same."""
        names = {
            entry
            for name in self.arrays
            if self._is_per_block(name)
            for entry in object_names(self.root, f"{self.name}/{name}/c")
        }
        return sorted({int(name) for name in names if name.isdecimal()} - self.marked)

    def join_columns(self) -> None:
        """Put together what decoded whole."""
        for name, parts in self._parts.items():
            array = self.arrays[name]
            if len(parts) == array.n_objects:
                self.columns[name] = np.concatenate([parts[number] for number in sorted(parts)])
        for name in (column.place for column in COLUMNS if column.place.startswith("labels/")):
            if (empty := self.arrays.get(name)) is not None and empty.n_objects == 0:
                self.columns[name] = np.asarray(empty.array[:])

    def _check_activations(self, task: Task, values: NDArray[Any]) -> Iterable[Finding]:
        # for the type checker
        assert task.place is not None and task.block is not None  # noqa: S101, PT018
        values = values.reshape(len(values), -1)  # scales are one number a row
        if values.dtype == np.int8:
            finite, empty = (values != MISSING).all(axis=1), np.zeros(len(values), np.bool_)
        else:
            finite, empty = np.isfinite(values).all(axis=1), np.isnan(values).all(axis=1)
        present = self._positions(task.block, task.place[0])
        # Where a count is unknown, a row may be one or the other but not a mixture.
        if values.dtype == np.int8:
            present = None  # their scales say so
        wrong = ~finite & ~empty if present is None else np.where(present, ~finite, ~empty)
        if not wrong.any():
            return []
        rows = (self.rows(task.block).start + np.flatnonzero(wrong)).tolist()
        no_position = "values in a row without a pooled position"
        what = "NaN or infinity" if (~finite & wrong).any() else no_position
        found = f"{what} in {len(rows)} of {len(values)} rows of the block"
        name = self._relative(task.array)
        return [self.block_finding(name, task.block, found, (rows[0], rows[-1]))]

    def _positions(self, block: int, phase: Phase) -> NDArray[np.bool_] | None:
        """(rows,) whether a position was pooled; None if the column that says so is damaged."""
        prompts = self.columns.get("samples/n_prompt_tokens")
        counts = self.parts("samples/n_completion_tokens").get(block)
        rows = self.rows(block)
        if (prompts if phase == "prompt" else counts) is None:
            return None
        unknown = np.zeros(rows.stop - rows.start, np.int32)
        n_prompt = unknown if prompts is None else prompts[rows]
        return has_position(self.header, n_prompt, unknown if counts is None else counts)[phase]

    # Findings

    def _add_metadata(self, name: str, found: str, advice: str = "") -> None:
        """A finding about the zarr.json of an array or a group; by default it has to be removed."""
        path = f"{name}/zarr.json"
        cure: Cure = "extract" if advice else "hand"
        advice = advice or f"remove {path} and {WRITE_ANEW_AFTER}"
        self.findings.append(Finding(name, found, advice, path=path, round=self.name, cure=cure))

    def _add_unparsed(self, name: str, error: StoreDamagedError) -> None:
        cause = type_and_text(error.__cause__ or error)
        self._add_metadata(name, f"zarr.json does not parse ({cause})")

    def _add_block(self, name: str, block: int, found: str) -> None:
        self.findings.append(self.block_finding(name, block, found))

    def block_finding(
        self, name: str, block: int, found: str, rows: tuple[int, int] | None = None
    ) -> Finding:
        """A finding that extracting a block again mends; `rows` if not all of it is concerned."""
        array, whole = self.arrays[name], self.rows(block)
        path, rows = array.object_path(block), rows or (whole.start, whole.stop - 1)
        return Finding(array.name, found, EXTRACT_ROWS, rows, path, self.name, block)

    def _relative(self, array: StoredArray) -> str:
        return array.name.removeprefix(f"{self.name}/")

    def _object_finding(self, task: Task, fault: str) -> Finding:
        if task.block is not None:
            return self.block_finding(self._relative(task.array), task.block, fault)
        array, rows = task.array, task.array.rows(task.number)
        path, span = array.object_path(task.number), (rows.start, rows.stop - 1)
        return Finding(array.name, fault, WRITE_ANEW, span, path, self.name)


def _read_mark(marks: StoredArray, block: int) -> int | str | None:
    """0, 1, None if there is no mark, or what is wrong with it."""
    try:
        if marks.size(block) is None:
            return None
        value = int(marks.decode(block)[0])
    except Exception as error:  # noqa: BLE001 - codecs raise anything on damaged input
        raise_unless_damage(error, marks.object_path(block))
        return f"the mark does not read back ({type_and_text(error)})"
    return value if value in (0, 1) else f"the mark is {value}, expected 0 or 1"
