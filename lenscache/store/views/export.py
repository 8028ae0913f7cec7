"""A store for those who do not read Zarr: safetensors, npz or Parquet, in a folder.

    manifest.json                     what was exported from where; size, SHA-256, shapes of files
    concepts.jsonl                    id, name, level and parents of each concept
    layer_0/round_0/
      samples.jsonl                   safetensors, npz: a line a row with texts, split, kind, labels
      model_layer_15.safetensors      one array a phase, (n, hidden), rows as in samples.jsonl
      samples.parquet                 Parquet: everything of a row in one line

Rows of blocks that are not complete are left out, and the manifest counts them. The store is read
and written block by block. A folder appears under its name when all of it is there.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lenscache.errors import ExportError, MissingPackageError, StoreIncompleteError, argument
from lenscache.folders import replacing
from lenscache.store.disk import require_room
from lenscache.store.remote import local_folder
from lenscache.store.views.selection import RoundSelection, Selection, select
from lenscache.terms import Phase

if TYPE_CHECKING:
    from lenscache.store.store import Store

ExportFormat = Literal["safetensors", "npz", "parquet"]
OnProgress = Callable[[int, int], None]

FORMAT = "lenscache-export"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"

_TENSOR_TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_ROW_GROUP_BYTES = 2**26
_PARQUET_SHARE = 0.4  # of float32: at the least, the zeros below a bfloat16 compress away
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # as a path: without its second slash
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # no clock in a file: the same store gives the same bytes


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote."""

    folder: str
    to: ExportFormat
    rows: int
    rows_left_out: int
    """Rows that are not extracted yet."""
    n_files: int
    size_bytes: int


def export_store(
    store: Store,
    out: str | Path,
    to: ExportFormat,
    *,
    levels: Sequence[int] | None = None,
    model_layers: Sequence[int] | None = None,
    phases: Sequence[Phase] | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> ExportReport:
    """Write the complete rows of a store to a folder.

    safetensors keeps the dtype of the store bit for bit, BF16 included; npz and Parquet hold
    float32, exactly. A row without a position in a phase is NaN there, as in the store.

    Parameters
    ----------
    out : the folder, which must not exist.
    levels, model_layers, phases : what to export; None for all that the store holds.
    overwrite : replace an export that is there; it stays until the new one is complete.
    on_progress : called with vectors written and vectors in all.

    Raises
    ------
    ExportError
        If `out` exists, and is not an export or `overwrite` is off; or lies inside the store.
    MissingPackageError
        If Parquet is asked for and pyarrow is not installed.
    StoreIncompleteError
        If there is no complete block, or no such level.
    ModelLayerError, StoreMismatchError
        If the store holds no such model layer or phase.
    DiskSpaceError
        If the disk cannot hold the export.
    StoreDamagedError
        If a block does not read back. Like after any other error, nothing is left behind.
    """
    if to == "parquet":
        _import_pyarrow()
    out = Path(out)
    check_target(out, store.path, overwrite=overwrite)
    selection = select(store, levels, model_layers=model_layers, phases=phases)
    if not len(selection):
        raise StoreIncompleteError(
            f"none of {selection.n_left_out} rows of {store.path} is in a complete block: "
            "run `lenscache extract` again to continue"
        )
    _check_disk_space(out, store, selection, to)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as scratch:
        files = _Writer(scratch, store, selection, on_progress or (lambda *_: None)).write(to)
        _write_json(scratch / MANIFEST, _make_manifest(store, selection, to, files))
        size = sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file())
    return ExportReport(str(out), to, len(selection), selection.n_left_out, len(files) + 1, size)


def check_target(out: Path, store_path: str, *, overwrite: bool) -> None:
    """Raise ExportError unless an export may be written to `out`."""
    if _URL.match(str(out)):
        raise ExportError(
            f"an export cannot be written to a URL ({out}): choose a folder, and copy it from there"
        )
    folder = local_folder(store_path)
    if folder is not None and folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise ExportError(f"{out} is in the store {store_path}: choose a folder outside it")
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise ExportError(
            f"{out} exists: choose another folder, or pass {argument('overwrite')} if it is an "
            "earlier export"
        )
    listed = _listed_files(out)
    if listed is None:
        raise ExportError(
            f"{out} exists and is not an export (no {MANIFEST} of one): choose another folder"
        )
    found = (file.relative_to(out).as_posix() for file in out.rglob("*") if not file.is_dir())
    if others := sorted(name for name in found if name not in listed):
        raise ExportError(
            f"{out} holds files that no export wrote ({', '.join(others[:3])}): move them away "
            "first"
        )


def _listed_files(folder: Path) -> set[str] | None:
    """The files that the manifest of a folder names; None if it has none, or is a link.

    Raises
    ------
    OSError
        If the manifest is there and cannot be read.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        if folder.is_symlink() or manifest["format"] != FORMAT:
            return None
        return {MANIFEST, *(entry["path"] for entry in manifest["files"])}
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        return None


def _check_disk_space(out: Path, store: Store, selection: Selection, to: ExportFormat) -> None:
    itemsize = 4 if to != "safetensors" or store.header.store_dtype in ("float32", "int8") else 2
    share = _PARQUET_SHARE if to == "parquet" else 1
    needed = int(selection.n_vectors * store.header.hidden * itemsize * share)
    advice = "choose another disk, or fewer model layers"
    require_room(out, needed, "the export needs about {}", advice)


def _make_manifest(
    store: Store, selection: Selection, to: ExportFormat, files: list[dict[str, Any]]
) -> dict[str, Any]:
    header = store.header.to_attributes()
    phases, model_layers = list(selection.phases), list(selection.model_layers)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "to": to,
        "store": {"digest": store.digest(), "format_version": header.pop("format_version")},
        **header,
        "selection": {"phases": phases, "model_layers": model_layers},
        "rounds": [
            {
                "name": part.source.name,
                "rows": len(part),
                "rows_left_out": part.n_left_out,
                "plan_digest": part.source.attributes["plan_digest"],
                "verified": part.source.is_complete,
            }
            for part in selection.rounds
        ],
        "files": files,
    }


class _Writer:
    """Writes the files of one export into a folder."""

    def __init__(
        self, folder: Path, store: Store, selection: Selection, on_progress: OnProgress
    ) -> None:
        self.folder, self.store, self.selection = folder, store, selection
        self.on_progress, self.hidden = on_progress, store.header.hidden
        self._files: list[dict[str, Any]] = []
        self._done = 0

    def write(self, to: ExportFormat) -> list[dict[str, Any]]:
        """Write everything; what the manifest says about each file."""
        self._write_lines("concepts.jsonl", self._concepts())
        for part in self.selection.rounds:
            if not len(part):
                continue
            (self.folder / part.source.name).mkdir(parents=True)
            if to == "parquet":
                self._write_parquet(part)
                continue
            self._write_lines(f"{part.source.name}/samples.jsonl", _sample_lines(part))
            write = self._write_safetensors if to == "safetensors" else self._write_npz
            for model_layer in self.selection.model_layers:
                write(part, model_layer)
        return self._files

    def _concepts(self) -> Iterator[dict[str, Any]]:
        hierarchy, names = self.store.hierarchy, self.store.concept_names
        for concept, level in hierarchy.levels.items():
            parents = list(hierarchy.parents(concept))
            line = {"id": concept, "name": names[concept], "level": level, "parents": parents}
            attributes = self.store.concept_attributes.get(concept)
            yield line | ({"attributes": attributes} if attributes else {})

    def _write_lines(self, name: str, lines: Iterator[dict[str, Any]]) -> None:
        count = 0
        with (self.folder / name).open("w", encoding="utf-8", newline="\n") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
                count += 1
        self._list(name, lines=count)

    def _write_safetensors(self, part: RoundSelection, model_layer: int) -> None:
        """Header first, since every size is known; then the values as they come."""
        stored = part.source.read(self.selection.phases[0], model_layer, slice(0, 0)).dtype
        size = len(part) * self.hidden * stored.itemsize
        arrays = self._arrays(part, _TENSOR_TYPES[str(stored)])
        tensors: dict[str, Any] = {
            phase: {**entry, "data_offsets": [i * size, (i + 1) * size]}
            for i, (phase, entry) in enumerate(arrays.items())
        }
        origin = {"format": FORMAT, "store_digest": self.store.digest()}
        origin |= {"round": part.source.name, "model_layer": str(model_layer)}
        head = json.dumps({"__metadata__": origin, **tensors}, separators=(",", ":")).encode()
        head += b" " * (-len(head) % 8)  # values start at a multiple of 8
        name = f"{part.source.name}/model_layer_{model_layer}.safetensors"
        with (self.folder / name).open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for phase in self.selection.phases:
                for values in self._blocks(part, phase, model_layer):
                    file.write(_little_endian(values))
        self._list(name, arrays=arrays)

    def _write_npz(self, part: RoundSelection, model_layer: int) -> None:
        """What `numpy.savez` writes, a block at a time."""
        name = f"{part.source.name}/model_layer_{model_layer}.npz"
        head = {"descr": "<f4", "fortran_order": False, "shape": (len(part), self.hidden)}
        with zipfile.ZipFile(self.folder / name, "w", zipfile.ZIP_STORED) as archive:
            for phase in self.selection.phases:
                entry = zipfile.ZipInfo(f"{phase}.npy", _ZIP_EPOCH)
                with archive.open(entry, "w", force_zip64=True) as file:
                    np.lib.format.write_array_header_1_0(file, head)
                    for values in self._blocks(part, phase, model_layer):
                        file.write(_little_endian(values.astype(np.float32)))
        self._list(name, arrays=self._arrays(part, "F32"))

    def _arrays(self, part: RoundSelection, dtype: str) -> dict[str, dict[str, Any]]:
        """What the manifest says of the arrays of a file, by phase."""
        shape = [len(part), self.hidden]
        return {phase: {"dtype": dtype, "shape": shape} for phase in self.selection.phases}

    def _write_parquet(self, part: RoundSelection) -> None:
        """A row group a block, or several where a block has many vectors."""
        pa, parquet = _import_pyarrow()
        places = [*product(self.selection.phases, self.selection.model_layers)]
        names = [f"{phase}_{model_layer}" for phase, model_layer in places]
        vector = pa.list_(pa.float32(), self.hidden)
        text = pa.table(part.columns()).append_column("labels", _label_lists(pa, part))
        schema = pa.schema([*text.schema, *(pa.field(name, vector) for name in names)])
        group_rows = max(1, _ROW_GROUP_BYTES // (4 * self.hidden * len(places)))
        name, first = f"{part.source.name}/samples.parquet", 0
        with parquet.ParquetWriter(
            self.folder / name, schema, compression="zstd", use_dictionary=["kind", "split"]
        ) as file:
            for rows in _slices(part, group_rows):
                columns = text.slice(first, rows.stop - rows.start).columns
                first += rows.stop - rows.start
                for phase, model_layer in places:
                    values = self._read(part, phase, model_layer, rows).astype(np.float32)
                    flat = pa.array(values.ravel())
                    columns.append(pa.FixedSizeListArray.from_arrays(flat, type=vector))
                file.write_table(pa.table(columns, schema=schema))
        arrays = {column: {"dtype": "F32", "shape": [len(part), self.hidden]} for column in names}
        self._list(name, lines=len(part), arrays=arrays)

    def _blocks(
        self, part: RoundSelection, phase: Phase, model_layer: int
    ) -> Iterator[NDArray[Any]]:
        for block in part.blocks:
            yield self._read(part, phase, model_layer, part.source.rows(block))

    def _read(
        self, part: RoundSelection, phase: Phase, model_layer: int, rows: slice
    ) -> NDArray[Any]:
        values = part.source.read(phase, model_layer, rows)
        self._done += len(values)
        self.on_progress(self._done, self.selection.n_vectors)
        return values

    def _list(self, name: str, **more: Any) -> None:
        file = self.folder / name
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        self._files.append({"path": name, "bytes": file.stat().st_size, "sha256": digest, **more})


def _sample_lines(part: RoundSelection) -> Iterator[dict[str, Any]]:
    columns = part.columns()
    lists = (column.tolist() for column in columns.values())
    for *values, labels in zip(*lists, _labels_of(part), strict=True):
        yield {**dict(zip(columns, values, strict=True)), "labels": labels}


def _labels_of(part: RoundSelection) -> list[list[dict[str, Any]]]:
    """The labels of each selected row."""
    labels: dict[int, list[dict[str, Any]]] = {row: [] for row in part.rows.tolist()}
    for row, concept, role, order in part.labels():
        labels[row].append({"concept": concept, "role": role, "order": order})
    return list(labels.values())


def _label_lists(pa: Any, part: RoundSelection) -> Any:
    fields = [("concept", pa.string()), ("role", pa.string()), ("order", pa.int32())]
    return pa.array(_labels_of(part), pa.list_(pa.struct(fields)))


def _slices(part: RoundSelection, most: int) -> Iterator[slice]:
    """The rows of the complete blocks, at most so many at a time."""
    for rows in map(part.source.rows, part.blocks):
        for start in range(rows.start, rows.stop, most):
            yield slice(start, min(start + most, rows.stop))


def _little_endian(values: NDArray[Any]) -> bytes:
    """Rows of numbers as bytes, lowest first, whatever the machine."""
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
    return bits.astype(bits.dtype.newbyteorder("<"), copy=False).tobytes()


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPackageError(
            "writing Parquet needs pyarrow: run `pip install '.[parquet]'` in a clone of lenscache"
        ) from None
    return pyarrow, pyarrow.parquet


def _write_json(file: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    file.write_text(text, encoding="utf-8", newline="\n")
