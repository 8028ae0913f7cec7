"""What checking a store comes to: findings, and how far each round is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Cure = Literal["extract", "hand", "pack"]
"""What mends a finding: the next `lenscache extract`, the user, or naming the right pack."""

EXTRACT_ROWS = "run the same `lenscache extract` again, which extracts these rows anew"
COMPARE_ANEW = "run the same `lenscache extract` again, which compares rows one by one anew"
WRITE_ANEW_AFTER = "run the same `lenscache extract` again, which writes it anew"
"""What to do after some file was removed."""
WRITE_ANEW = "run the same `lenscache extract` again, which writes it anew without extracting a row"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a store."""

    array: str
    """Path of the array inside the store, or of a whole group; "" for the store itself."""
    found: str
    advice: str
    """What to do about it."""
    rows: tuple[int, int] | None = None
    """First and last row concerned, None for all."""
    path: str | None = None
    """Path of the object, or metadata file, inside the store."""
    round: str | None = None
    block: int | None = None
    """The block of `round` that has to be extracted again."""
    cure: Cure = "extract"

    def line(self) -> str:
        """All of it on one line."""
        rows = ""
        if self.rows is not None:
            first, last = self.rows
            rows = f", row {first}" if first == last else f", rows {first}-{last}"
        file = f" ({self.path})" if self.path else ""
        return f"{self.array or 'store'}{rows}{file}: {self.found}: {self.advice}"


@dataclass(frozen=True)
class RoundState:
    """How far a round is."""

    name: str
    rows: int
    complete_rows: int
    blocks: int
    complete_blocks: int
    state: Literal["complete", "not verified", "unfinished", "damaged", "not laid out"]
    """"not verified": every block is there, but rows were not compared one by one yet."""

    def line(self) -> str:
        """All of it on one line."""
        blocks = f"{self.complete_blocks} of {self.blocks} blocks"
        rows = f"{self.complete_rows} of {self.rows} rows"
        aims = {
            "not laid out": "lay it out",
            "unfinished": "continue",
            "not verified": "compare rows one by one",
        }
        aim = aims.get(self.state)
        advice = f": run the same `lenscache extract` again to {aim}" if aim else ""
        return f"{self.name}: {self.state}, {blocks}, {rows}{advice}"


@dataclass
class VerifyReport:
    """What `verify_store` found."""

    path: str
    quick: bool
    """Whether objects were only looked at, not decoded."""
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What does no harm."""
    rounds: list[RoundState] = field(default_factory=list)
    arrays: int = 0
    objects: int = 0
    """Objects that were checked, metadata not counted."""
    bytes: int = 0
    """Size of these objects."""
    elapsed_s: float = 0.0

    @property
    def is_damaged(self) -> bool:
        """Whether anything is wrong; a store that is merely unfinished is not damaged."""
        return bool(self.findings)

    @property
    def is_clean(self) -> bool:
        """Whether something was checked, and nothing was wrong with it."""
        return bool(self.objects and self.rounds) and not self.findings
