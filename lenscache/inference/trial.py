"""Whether a model runs at all, tried on two rows of a few tokens, before anything is stored."""

from __future__ import annotations

from collections.abc import Sequence

from lenscache.errors import NonFiniteError, UnsupportedModelError, argument, first_line
from lenscache.inference.batches import BatchLimits
from lenscache.inference.runner import FAILURES, Row, Runner
from lenscache.model.loading import LoadedModel
from lenscache.terms import Mode

_ROWS = Row([0, 0, 0], completion_ids=(0, 0)), Row([0, 0], completion_ids=(0,))
"""One is padded and ends first, so that the other goes on without it."""


def check_model_runs(loaded: LoadedModel, model_layers: Sequence[int], mode: Mode) -> None:
    """Run two rows together: prompts, and completions where the mode has them.

    Whether a batch gives what its rows give alone is not looked at.

    Raises
    ------
    UnsupportedModelError
        If the model fails: its blocks put out something else than a residual stream, it was
        compiled, or it keeps a state that cannot be continued.
    """
    runner = Runner(loaded, model_layers, mode=mode, max_new_tokens=3, limits=BatchLimits(2))
    try:
        runner.run(_ROWS, replay=False)
    except NonFiniteError:
        pass  # of these tokens; what real rows give is looked at when they are stored
    except FAILURES as error:
        other = "" if mode == "prompt" else f", try {argument('mode', 'prompt')}"
        raise UnsupportedModelError(
            f"{loaded.id} cannot run a batch of two texts: {first_line(error)}{other}"
        ) from error
