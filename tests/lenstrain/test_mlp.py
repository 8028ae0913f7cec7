from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import lenstrain.families.mlp
from lenstrain.errors import TooFewSamplesError
from lenstrain.estimators import LinearLens, MlpLens
from lenstrain.families.mlp import MlpTrainer
from lenstrain.families.standardizer import Standardizer
from tests.lenstrain.batches import MlpBatch, fit_mlp_batch


def make_crossed(
    n: int, d: int = 8, *, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """X (n, d) and y (n,): true where two features have the same sign, which no plane tells."""
    rng = np.random.default_rng(seed)
    sides = rng.integers(0, 2, size=(n, 2)) * 2 - 1
    X = rng.normal(size=(n, d))
    X[:, :2] = 3.0 * sides + 0.5 * X[:, :2]
    return X, sides[:, 0] == sides[:, 1]


def make_tasks(
    lengths: list[int], d: int = 20
) -> tuple[NDArray[np.float64], list[NDArray[np.intp]], list[NDArray[np.bool_]]]:
    """Concepts of several lengths over 120 shared rows whose features differ in scale and mean."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, d)) * rng.uniform(0.1, 50, size=d) + rng.normal(size=d) * 20
    rows = [rng.permutation(120)[:n] for n in lengths]
    targets = []
    for chosen in rows:
        along = X[chosen] @ (rng.normal(size=d) / X.std(axis=0))
        targets.append(along > np.median(along))
    return X, rows, targets


def fit_one(X: NDArray[Any], y: NDArray[np.bool_], **options: Any) -> MlpBatch:
    return fit_mlp_batch(X, [np.arange(len(X))], [y], **options)


def assert_same_logits(a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    """Within what training makes of float32 rounding."""
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


def test_learns_what_no_linear_lens_can() -> None:
    X, y = make_crossed(200)
    held_out, truth = make_crossed(500, seed=1)

    def accuracy(lens: MlpLens | LinearLens) -> float:
        return float(((lens.fit(X, y).decision_function(held_out) > 0) == truth).mean())

    assert accuracy(MlpLens()) > 0.95
    assert accuracy(LinearLens()) < 0.65


def test_rare_class_counts_as_much_as_the_other() -> None:
    """With features that say nothing, an unbalanced loss would learn the share of the positives: a
    logit of -2.9."""
    X = np.repeat([[0.0, 1.0], [1.0, 0.0]], 100, axis=0)
    logits = MlpLens().fit(X, np.arange(200) % 20 == 0).decision_function(X)
    np.testing.assert_allclose(logits, 0, atol=0.1)


# --- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [[30, 30, 30], [5, 100, 17, 2, 60]])
def test_batch_is_its_concepts_one_by_one(lengths: list[int]) -> None:
    X, rows, targets = make_tasks(lengths)
    statistics = Standardizer.fit(X)
    together = fit_mlp_batch(X, rows, targets, standardizer=statistics).decision_function(X)
    for i in range(len(lengths)):
        alone = fit_mlp_batch(
            X, rows[i : i + 1], targets[i : i + 1], standardizer=statistics, keys=[i]
        )
        assert_same_logits(alone.decision_function(X)[:, 0], together[:, i])


def test_memory_bound_cuts_batches_without_changing_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, rows, targets = make_tasks([40, 10, 80, 33])
    whole = fit_mlp_batch(X, rows, targets)
    monkeypatch.setattr(lenstrain.families.mlp, "_BATCH_BYTES", 1)
    parts = fit_mlp_batch(X, rows, targets)
    assert_same_logits(parts.decision_function(X), whole.decision_function(X))


def test_batches_stay_within_the_memory_bound() -> None:
    hidden, n = 2560, 100
    batches = lenstrain.families.mlp._batches([n] * 276, hidden)
    of_one = 4 * 4 * hidden * 128 + 2 * 4 * n * hidden
    assert all(len(batch) * of_one <= lenstrain.families.mlp._BATCH_BYTES for batch in batches)
    assert sorted(i for batch in batches for i in batch) == list(range(276))
    assert len(batches) < 20


def test_one_class_missing_names_the_concept() -> None:
    X, rows, targets = make_tasks([40, 10])
    targets[1][:] = False
    with pytest.raises(
        TooFewSamplesError, match="concept number 1: 0 of 10 training rows are positive"
    ):
        fit_mlp_batch(X, rows, targets)


def test_concept_that_diverges_says_so_and_spares_the_others() -> None:
    X, rows, targets = make_tasks([40, 40])
    X = np.concatenate([X, np.full((1, 20), np.nan)])
    rows[1] = np.append(rows[1], 120)
    targets[1] = np.append(targets[1], True)
    statistics = Standardizer.fit(X[:120])
    batch = fit_mlp_batch(X, rows, targets, standardizer=statistics)
    assert batch.converged.tolist() == [True, False]
    alone = fit_mlp_batch(X, rows[:1], targets[:1], standardizer=statistics)
    assert_same_logits(
        batch.decision_function(X[:120])[:, 0], alone.decision_function(X[:120])[:, 0]
    )


# --- chance -------------------------------------------------------------------------------------


def test_seed_repeats_and_another_seed_changes_the_lens() -> None:
    X, y = make_crossed(40)
    first, again, other = (MlpLens(seed=seed).fit(X, y).decision_function(X) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_rows_in_any_order_give_the_same_lens_to_the_bit() -> None:
    X, y = make_crossed(40)
    X[1], y[:2] = X[0], [False, True]  # the same row in both classes
    a, b = MlpLens().fit(X, y), MlpLens().fit(X[::-1], y[::-1])
    np.testing.assert_array_equal(a.decision_function(X), b.decision_function(X))


def test_key_repeats_and_another_key_changes_the_lens() -> None:
    X, y = make_crossed(40)
    logits = fit_mlp_batch(X, [np.arange(40)] * 3, [y] * 3, keys=[7, 7, 8]).decision_function(X)
    np.testing.assert_array_equal(logits[:, 0], logits[:, 1])
    assert np.abs(logits[:, 0] - logits[:, 2]).max() > 1e-3


def test_random_state_of_torch_is_neither_read_nor_changed() -> None:
    X, y = make_crossed(40)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fit_one(X, y).decision_function(X)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    np.testing.assert_array_equal(fit_one(X, y).decision_function(X), first)


def test_gradients_may_be_switched_off_around_the_fit() -> None:
    X, y = make_crossed(40)
    with torch.no_grad():
        inside = fit_one(X, y).decision_function(X)
    np.testing.assert_array_equal(inside, fit_one(X, y).decision_function(X))


def test_no_epochs_leave_the_first_weights_and_more_epochs_fit_more_closely() -> None:
    X, y = make_crossed(100)

    def loss(epochs: int) -> float:
        logits = MlpLens(epochs=epochs).fit(X, y).decision_function(X)
        return float(np.logaddexp(0, np.where(y, -logits, logits)).mean())

    losses = [loss(epochs) for epochs in (0, 5, 20, 80)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 5


# --- raw activations ----------------------------------------------------------------------------


def test_raw_logits_are_those_of_the_network_on_standardised_rows() -> None:
    X, rows, targets = make_tasks([100])
    statistics = Standardizer.fit(X)
    raw = fit_mlp_batch(X, rows, targets, standardizer=statistics)
    plain = Standardizer(np.zeros(20), np.ones(20))
    Z = statistics.transform(X)
    standard = fit_mlp_batch(Z, rows, targets, standardizer=plain)
    np.testing.assert_allclose(
        raw.decision_function(X), standard.decision_function(Z), rtol=1e-4, atol=1e-4
    )


def test_logits_are_those_of_torch_layers() -> None:
    X, rows, targets = make_tasks([60, 60])
    batch = fit_mlp_batch(X, rows, targets)
    for i in range(2):
        w1, b1, w2, b2, w3, b3 = (
            torch.from_numpy(np.asarray(part)).double() for part in batch.networks[i]
        )
        inner = torch.relu(torch.relu(torch.from_numpy(X) @ w1 + b1) @ w2 + b2)
        np.testing.assert_allclose(
            batch.decision_function(X)[:, i], (inner @ w3 + b3).numpy(), rtol=1e-9
        )


def test_mean_far_from_zero_costs_no_precision() -> None:
    X, y = make_crossed(100)
    X = np.round(X * 2**10) / 2**10  # so that adding the offset is exact
    near, far = fit_one(X, y), fit_one(X + 2.0**24, y)
    np.testing.assert_allclose(
        far.decision_function(X + 2.0**24), near.decision_function(X), rtol=1e-3, atol=1e-3
    )


def test_feature_that_does_not_vary_for_a_concept_has_weight_0_and_changes_nothing() -> None:
    X, rows, targets = make_tasks([40, 40])
    statistics = Standardizer.fit(X)
    still = X.copy()
    still[rows[0], 3] = X[rows[0][0], 3] + 1.0  # varies over other rows
    with_still = fit_mlp_batch(still, rows, targets, standardizer=statistics)
    assert (with_still.networks[0].w1[3] == 0).all()
    assert (with_still.networks[1].w1[3] != 0).any()
    kept = np.arange(20) != 3
    fewer = Standardizer(statistics.mean[kept], statistics.scale[kept])
    without = fit_mlp_batch(X[:, kept], rows, targets, standardizer=fewer)
    assert_same_logits(
        with_still.decision_function(still)[:, 0], without.decision_function(X[:, kept])[:, 0]
    )


def test_concept_in_whose_rows_nothing_varies_is_undecided_beside_one_that_is_not() -> None:
    X, rows, targets = make_tasks([40, 40])
    X[rows[0]] = X[rows[0][0]]
    rows[1] = np.setdiff1d(np.arange(120), rows[0])[:40]
    logits = fit_mlp_batch(X, rows, targets, standardizer=Standardizer.fit(X)).decision_function(X)
    np.testing.assert_array_equal(logits[:, 0], 0)
    assert np.abs(logits[:, 1]).max() > 0.1


class Watched(torch.Tensor):
    """A tensor that notes how much of it goes to the host."""

    copied: list[int]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.cpu, torch.Tensor.numpy):
            cls.copied.append(args[0].numel())
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


def test_fitting_some_rows_does_not_copy_all_of_them_to_the_host() -> None:
    X, rows, targets = make_tasks([20, 30])
    plain = torch.from_numpy(Standardizer.fit(X).transform(X).astype(np.float32))
    Watched.copied = []

    def logits(Z: torch.Tensor) -> NDArray[np.float64]:
        fit = MlpTrainer(Z, rows, targets, seeds=[3, 4]).fit([0, 1], [20, 30], [1.0, 1.0])
        return fit.decision_function(plain)

    np.testing.assert_array_equal(logits(plain.as_subclass(Watched)), logits(plain))
    assert 0 < max(Watched.copied) < plain.numel()


@pytest.mark.gpu
def test_device_does_not_matter() -> None:
    X, rows, targets = make_tasks([40, 60])
    there = fit_mlp_batch(X, rows, targets, device="cuda").decision_function(X)
    np.testing.assert_allclose(
        there, fit_mlp_batch(X, rows, targets).decision_function(X), rtol=0.01, atol=0.05
    )
