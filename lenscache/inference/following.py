"""What a process does that shares a model without leading: run every batch that the leader runs,
and keep nothing."""

from __future__ import annotations

from lenscache.inference.runner import Runner
from lenscache.model.loading import LoadedModel


def follow(loaded: LoadedModel) -> None:
    """Run batches until the leader has no more.

    Raises
    ------
    ModelError
        If the memory of this process's device is full, or the leader is gone.
    """
    assert loaded.team is not None  # noqa: S101 - for the type checker
    for order in loaded.team.orders():
        runner = Runner(
            loaded, order.model_layers, mode=order.mode, max_new_tokens=order.max_new_tokens
        )
        runner.run_batch(order.rows)
