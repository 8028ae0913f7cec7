"""Take the marks off damaged blocks: nobody reads them, and `lenscache extract` redoes them.

Nothing is deleted and no other block is touched. Columns that the plan determines need no repair:
`extract` compares them with the plan and writes them again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lenscache.store.store import open_store
from lenscache.store.verify.findings import Finding
from lenscache.store.verify.verify import OnChecked, verify_store


@dataclass
class RepairReport:
    """What `repair_store` did."""

    path: str
    unmarked: list[str] = field(default_factory=list)
    """Blocks whose mark was taken off."""
    rows: int = 0
    """Rows of these blocks, which the next extraction runs again."""
    left_to_extract: list[Finding] = field(default_factory=list)
    """Damage that `lenscache extract` mends by itself, without extracting a row."""
    left_to_user: list[Finding] = field(default_factory=list)
    """Damage that someone has to mend by hand first; each says how."""


def repair_store(
    path: str | Path,
    *,
    level: int | None = None,
    jobs: int | None = None,
    on_checked: OnChecked | None = None,
) -> RepairReport:
    """Check a store and unmark exactly the damaged blocks.

    Raises
    ------
    StoreNotFoundError, StoreFormatError
        If there is no store, or its own metadata is damaged.
    StoreWriteError
        If a mark cannot be taken off, because the store is read-only or the disk is full.
    """
    found = verify_store(path, level=level, jobs=jobs, on_checked=on_checked).findings
    report = RepairReport(str(path))
    places = {(f.round, f.block) for f in found}
    damaged = sorted((name, block) for name, block in places if name and block is not None)
    report.left_to_extract = [f for f in found if f.block is None and f.cure == "extract"]
    report.left_to_user = [f for f in found if f.cure == "hand"]
    if not damaged:
        return report
    store = open_store(path, mode="r+")
    for name, block in damaged:
        level_number, index = (int(part.rpartition("_")[2]) for part in name.split("/"))
        target = store.round(level_number, index)
        target.unmark_block(block)
        rows = target.rows(block)
        report.unmarked.append(f"{name} block {block}, rows {rows.start}-{rows.stop - 1}")
        report.rows += rows.stop - rows.start
    return report
