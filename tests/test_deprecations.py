"""Deprecation warnings that our own calls raise end a test, whichever way they are given."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import transformers

from lenscache.model.loading import silence


@pytest.fixture
def verbosity() -> Iterator[None]:
    before = transformers.utils.logging.get_verbosity()
    yield
    transformers.utils.logging.set_verbosity(before)


def calling(module: str) -> Callable[[Callable[[], None]], None]:
    """A function of a module that calls the function it is given."""
    names: dict[str, Any] = {"__name__": module}
    exec("def call(function):\n    function()", names)
    called: Callable[[Callable[[], None]], None] = names["call"]
    return called


@pytest.mark.parametrize("module", ["lenscache.model.loading", "lenstrain.hub", "lens_cli.console"])
@pytest.mark.parametrize("kind", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_a_deprecation_warning_is_an_error(kind: type[Warning], module: str) -> None:
    with pytest.raises(kind):
        warnings.warn_explicit("torch_dtype is deprecated", kind, "made_up.py", 1, module=module)


@pytest.mark.parametrize(
    ("modules", "heard"),
    [
        (["lenscache.model.loading"], True),
        (["lens_cli.console", "transformers.modeling_utils"], True),
        (["lenstrain.hub", "tests.models"], False),
        (["transformers.modeling_utils"], False),
    ],
)
@pytest.mark.usefixtures("verbosity")
def test_a_deprecation_that_a_silenced_logger_tells_our_modules_is_heard(
    logged_deprecations: list[str], modules: list[str], heard: bool
) -> None:
    silence()
    logger: Any = logging.getLogger("transformers.configuration_utils")
    call = partial(logger.warning_once, "`torch_dtype` is deprecated! Use `dtype` instead!")
    for module in reversed(modules):
        call = partial(calling(module), call)
    call()
    said = logged_deprecations.copy()
    logged_deprecations.clear()
    assert [message.partition(" called ")[0] for message in said] == modules[:1] * heard
