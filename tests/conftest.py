from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
import torch

from tests import deprecations

# A busy machine is slow, not wrong.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices are slower on several threads, and their sums would depend on how many there
    are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def logged_deprecations() -> Iterator[list[str]]:
    with deprecations.overheard() as said:
        yield said


@pytest.fixture(autouse=True)
def _nothing_deprecated_is_called(logged_deprecations: list[str]) -> Iterator[None]:
    deprecations.say_again()
    yield
    said = logged_deprecations.copy()
    logged_deprecations.clear()
    assert said == []
