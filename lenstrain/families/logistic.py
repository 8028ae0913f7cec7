"""L2-regularised logistic regression, solved exactly in the space of samples, many at a time.

Samples are few, features are many, and the intercept is not penalised. With rows Z (n, features)
and K = Z Z^T the optimum has the form w = Z^T a, and Newton's method on

    sum_i v_i log(1 + exp(-y_i f_i)) + |w|^2 / (2 C),    f = K a + b

comes down to one n x n positive definite system a step (iteratively reweighted least squares in its
dual form; Murphy, Machine Learning, section 8.3, with the representer theorem). The systems of many
concepts are one batch, and what was computed once for a concept's rows, K, serves every subset of
them, every strength and every set of targets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

_TOLERANCE = 1e-7  # on the optimality condition, relative to the largest dual variable
ROUGHLY = 1e-3
"""A tolerance that is enough to rank rows by: what is chosen by it is fitted again."""
_MAX_STEPS = 100
_CACHED_BYTES = 2**23  # of systems solved together: more would not stay in a core's cache
_ROUGH_STEPS = 30  # in float32; whatever took more gets float64
_SMALLEST_CURVATURE = 1e-15  # of p(1-p), so that it can be divided by
_FLAT = 0.01  # share of the slope at the start of a step at which its length is good enough
_LENGTHS = 30  # tried for a step


class Solution(NamedTuple):
    """Optima of a batch of problems."""

    dual: torch.Tensor
    """(batch, n)"""
    intercept: torch.Tensor
    """(batch,)"""
    logits: torch.Tensor
    """(batch, n) of the problem's own rows."""
    converged: torch.Tensor
    """(batch,) whether the optimality condition was met."""


def balanced_weights(y: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Weights (batch, n): classes count alike, the mean is 1, and 0 where a row is not present."""
    share = (y * present).sum(dim=1, keepdim=True) / present.sum(dim=1, keepdim=True)
    return torch.where(y > 0, 0.5 / share, 0.5 / (1 - share)) * present


def solve(
    gram: torch.Tensor,
    y: torch.Tensor,
    importance: torch.Tensor,
    C: torch.Tensor,
    *,
    start: Solution | None = None,
    tolerance: float = _TOLERANCE,
) -> Solution:
    """Newton's method with a line search.

    Steps are solved for in float32, as corrections, and where they lead is computed in float64:
    they converge to the same point in as many steps, in two thirds of the time.

    Parameters
    ----------
    gram : (batch, n, n) float64.
    y : (batch, n) targets, 0 or 1, both among the rows of every problem.
    importance : (batch, n) weights of the rows; a row of weight 0 takes no part.
    C : (batch,) inverse L2 strengths, against the *sum* of the losses as in scikit-learn.
    start : where to start; None for zero. The optimum at a tenth of C saves a third of the steps,
        that of fewer rows none.
    tolerance : on the optimality condition, relative to the largest dual variable.
    """
    n = max(1, _CACHED_BYTES // (4 * y.shape[1] ** 2)) if y.device.type == "cpu" else len(y)
    if start is None:
        cost = C.unsqueeze(1) * importance
        prior = torch.logit((y * cost).sum(dim=1) / cost.sum(dim=1))
        logits = prior.unsqueeze(1).expand_as(y)
        start = Solution(torch.zeros_like(y), prior, logits, torch.zeros_like(C))
    split = [torch.split(values, n) for values in (gram, y, importance, C, *start[:3])]
    solutions = [_solve(*part, tolerance=tolerance) for part in zip(*split, strict=True)]
    return Solution(*(torch.cat(values) for values in zip(*solutions, strict=True)))


def _solve(
    gram: torch.Tensor,
    y: torch.Tensor,
    importance: torch.Tensor,
    C: torch.Tensor,
    dual: torch.Tensor,
    intercept: torch.Tensor,
    f: torch.Tensor,
    *,
    tolerance: float,
) -> Solution:
    cost = C.unsqueeze(1) * importance
    unsolved = torch.zeros_like(C, dtype=torch.bool)
    found = Solution(torch.zeros_like(y), torch.empty_like(C), torch.empty_like(y), unsolved)
    live, rough = torch.arange(len(y), device=y.device), gram.float()
    for step in range(_MAX_STEPS + 1):
        # At the optimum each dual variable is its row's weighted residual, and residuals sum to 0.
        pull = cost * _residual(f, y)
        slack = torch.maximum((dual - pull).abs().amax(dim=1), pull.sum(dim=1).abs())
        done = slack <= tolerance * pull.abs().amax(dim=1)
        finished = done if step < _MAX_STEPS else torch.ones_like(done)
        if bool(finished.any()):
            for kept, now in zip(found, (dual, intercept, f, done), strict=True):
                kept[live[finished]] = now[finished]
            going = ~finished
            if not bool(going.any()):
                break
            live, gram, rough = live[going], gram[going], rough[going]
            y, cost, pull = y[going], cost[going], pull[going]
            dual, intercept, f = dual[going], intercept[going], f[going]
        if step == _ROUGH_STEPS:
            rough = gram
        system = f, pull - dual, dual.sum(dim=1), cost
        try:
            by, shift = _correction(rough, *system)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            # With a weak penalty, float32 may take the system for a singular one.
            rough = gram
            by, shift = _correction(rough, *system)
        new_dual, new_intercept = dual + by, intercept + shift
        new_f = (gram @ new_dual.unsqueeze(2)).squeeze(2) + new_intercept.unsqueeze(1)
        turn = new_f - f
        at = dual, f - intercept.unsqueeze(1), f
        t = _step_length(y, cost, at, (by, turn - shift.unsqueeze(1), turn))
        dual, f = dual + t.unsqueeze(1) * by, f + t.unsqueeze(1) * turn
        intercept = intercept + t * shift
    return found


# Dual variables, logits without intercept, logits.
_Line = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _step_length(y: torch.Tensor, cost: torch.Tensor, at: _Line, by: _Line) -> torch.Tensor:
    """(batch,) how often to go by `by`: to where the objective is about lowest on that line.

    A full Newton step is too short while classes still come apart, where losses fall exponentially
    and it adds about 1 to a margin: with the right length there are two thirds of the steps. Logits
    are linear in the step, so no length costs a product with the Gram matrices. The objective is
    convex, so its slope has one zero; that is found by Newton's method, kept between the lengths
    that are known to be too short and too long.
    """
    (dual, g, f), (by_dual, by_g, by_f) = at, by
    weighted = cost * by_f
    second = weighted * by_f
    # Slope and curvature of |w|^2 / 2, and what the targets add to the slope.
    curvature = (by_dual * by_g).sum(dim=1)
    slope = (dual * by_g + by_dual * g).sum(dim=1) / 2 - (weighted * y).sum(dim=1)

    def slope_at(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        p = torch.sigmoid(torch.addcmul(f, t.unsqueeze(1), by_f))
        here = torch.addcmul(slope, t, curvature) + (weighted * p).sum(dim=1)
        return here, curvature + (second * (p - p * p)).sum(dim=1)

    t = torch.ones_like(slope)
    # Near the optimum slopes are but rounding, and a full Newton step is right whatever they say.
    flat = _FLAT * slope_at(torch.zeros_like(t))[0].abs() + 1e-9 * weighted.abs().sum(dim=1)
    short, long = torch.zeros_like(t), torch.full_like(t, torch.inf)
    for _ in range(_LENGTHS):
        here, bend = slope_at(t)
        searching = here.abs() > flat
        if not bool(searching.any()):
            break
        short, long = torch.where(here < 0, t, short), torch.where(here > 0, t, long)
        middle = torch.where(long.isinf(), 2 * t, (short + long) / 2)
        guess = (t - here / bend).clamp(max=8 * t)
        t = torch.where(searching, torch.where((guess > short) & (guess < long), guess, middle), t)
    return t


def _correction(
    rough: torch.Tensor,
    f: torch.Tensor,
    lack: torch.Tensor,
    excess: torch.Tensor,
    cost: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A full Newton step: (K + 1/W) da + db 1 = lack / W with 1^T da = -excess, W = cost p (1 - p).

    Solved through B = I + W^1/2 K W^1/2, whose eigenvalues are at least 1 however small W gets
    (Rasmussen and Williams, Gaussian Processes for Machine Learning, section 3.4.3).

    Parameters
    ----------
    rough : (batch, n, n) K in the precision to solve in.
    lack : (batch, n) how far each dual variable is below its row's weighted residual.
    excess : (batch,) sum of the dual variables, which is 0 at the optimum.
    """
    curvature = (torch.sigmoid(f) * torch.sigmoid(-f)).clamp_(min=_SMALLEST_CURVATURE)
    root = (cost * curvature).sqrt()  # 0 for rows that take no part, which so drop out
    scale = root.to(rough.dtype)
    system = rough * scale.unsqueeze(2)
    system.mul_(scale.unsqueeze(1)).diagonal(dim1=1, dim2=2).add_(1.0)
    right = torch.stack([torch.where(root > 0, lack / root, 0.0), root], dim=2).to(rough.dtype)
    solved = torch.cholesky_solve(right, torch.linalg.cholesky(system)).double()
    along = torch.einsum("bi,bik->bk", root, solved)
    shift = (along[:, 0] + excess) / along[:, 1]
    return root * (solved[:, :, 0] - shift.unsqueeze(1) * solved[:, :, 1]), shift


def _residual(f: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """y - sigmoid(f), to full relative precision where it is tiny."""
    sign = 2 * y - 1
    return sign * torch.sigmoid(-sign * f)
