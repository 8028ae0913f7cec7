"""What a check is asked, and what it answers: plain values, sent between processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

LENS_FILE = "steering.npz"
"""File of the directions that the check of lenses leaves for the check of steering."""


class Verdict(StrEnum):
    """How a check ended."""

    passed = "passed"
    failed = "failed"
    skipped = "skipped"
    crashed = "crashed"
    """It did not come to an answer: its process was killed, hung, or ran into a fault."""


@dataclass(frozen=True)
class Request:
    """What all checks are asked."""

    model: str
    """Model folder, Hugging Face id, or built-in alias."""
    device: str = "auto"
    pack: str | None = None
    """Path of a concept pack; None for the built-in set."""
    folder: str = ""
    """Where checks leave files for each other."""
    quick: bool = False
    """Fewer prompts, repeats and concepts."""
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a check found."""

    verdict: Verdict
    why: str
    """One line."""
    details: dict[str, Any] = field(default_factory=dict)
    """The numbers, as JSON holds them; sizes in bytes, times in seconds."""

    @classmethod
    def passed(cls, why: str, **details: Any) -> Outcome:
        """The answer is good news, or neither good nor bad."""
        return cls(Verdict.passed, why, details)

    @classmethod
    def failed(cls, why: str, **details: Any) -> Outcome:
        """The answer is that something does not work."""
        return cls(Verdict.failed, why, details)


@dataclass(frozen=True)
class CheckResult:
    """A check that was run."""

    number: int
    name: str
    question: str
    verdict: Verdict
    why: str
    details: dict[str, Any]
    elapsed_s: float


Tell = Callable[[str, int, int], None]
"""How a check says where it stands: what it does, how much is done, of how much."""
