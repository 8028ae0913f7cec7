"""What every lens family asks of its input before it fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lenstrain.errors import SettingsError, TooFewSamplesError

if TYPE_CHECKING:
    import torch

    Activations: TypeAlias = NDArray[Any] | torch.Tensor


def check_rows(X: ArrayLike, y: ArrayLike) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """X (n, hidden) and y (n,) of one lens as arrays.

    Raises
    ------
    ValueError
        If the shapes do not fit or X is not finite.
    """
    X, target = np.asarray(X), np.asarray(y).astype(np.bool_)
    if X.ndim != 2 or target.shape != (len(X),):
        raise ValueError(
            f"X has shape {X.shape} and y {target.shape}, expected (n, hidden) and (n,)"
        )
    if not np.isfinite(X).all():
        raise ValueError("X holds NaN or infinity: leave out rows without activations")
    return X, target


def plain_rows(values: Any) -> Any:
    """Values as numpy or scipy can take them: a tensor of torch as an array, and bfloat16, which
    numpy lacks, as float32; whatever else as it is."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() else values).numpy()
    is_narrow = str(getattr(values, "dtype", "")) == "bfloat16"
    return values.astype(np.float32) if is_narrow else values


def activation_rows(X: Activations, width: int) -> NDArray[Any]:
    """Raw activations X (n, width), of numpy or torch, as an array.

    Raises
    ------
    SettingsError
        If they have another shape.
    """
    rows: NDArray[Any] = np.asarray(plain_rows(X))
    if rows.ndim != 2 or rows.shape[1] != width:
        raise SettingsError(
            f"X has shape {rows.shape}, expected (n, {width}): a row for each text, its positions "
            "pooled, and the model layers of a lens side by side"
        )
    return rows


def check_both_classes(targets: Sequence[NDArray[np.bool_]]) -> None:
    """Check that the training rows of each concept hold positives and negatives.

    Raises
    ------
    TooFewSamplesError
        If a concept has rows of one class only.
    """
    for number, target in enumerate(targets):
        if not 0 < target.sum() < len(target):
            found = f"{target.sum()} of {len(target)} training rows are positive"
            raise TooFewSamplesError(f"concept number {number}: {found}, which is one class alone")


def first_targets(
    own: Sequence[NDArray[np.bool_]],
    which: Sequence[int],
    counts: Sequence[int],
    others: Sequence[NDArray[np.bool_]] | None = None,
) -> list[NDArray[np.bool_]]:
    """Whether each of the first `counts` rows of some concepts expresses its concept.

    Parameters
    ----------
    own : targets of all concepts, of which `which` are wanted.
    others : targets to take instead, one entry for each of `which`, such as shuffled ones.

    Raises
    ------
    TooFewSamplesError
        If a concept has rows of one class only.
    """
    chosen = [own[number] for number in which] if others is None else others
    known = [target[:count] for target, count in zip(chosen, counts, strict=True)]
    check_both_classes(known)
    return known
