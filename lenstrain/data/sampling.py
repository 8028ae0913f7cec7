"""A sample of rows that represents each concept as all rows do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def spread_sample(
    strata: NDArray[np.integer], size: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Numbers of `size` rows, ascending, or of all rows if there are no more.

    A systematic sample: rows in the order of their strata, at random within each, and every k-th of
    them. So a stratum with a share of the rows has that share of the sample, to within one row, and
    each row has the same chance (Cochran, Sampling Techniques, 1977, chapter 8).

    Parameters
    ----------
    strata : (rows,) number of the stratum of each row.
    """
    n = len(strata)
    if n <= size:
        return np.arange(n)
    in_order = np.lexsort((rng.random(n), strata))
    places = (np.arange(size) + rng.random()) * (n / size)
    return np.sort(in_order[places.astype(np.intp)])
