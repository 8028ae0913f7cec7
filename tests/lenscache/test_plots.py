"""Plots and figures of a store: right numbers, labelled axes, no harm from names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes

from lenscache import inspection, plots
from lenscache.drawing import label, make_axes, name_ticks, visible
from lenscache.errors import (
    MissingPackageError,
    PlanError,
    StoreIncompleteError,
    StoreMismatchError,
)
from lenscache.store.store import Store
from tests.hostile import HIDDEN, NAMES
from tests.lenstrain.conftest import HIDDEN as SIZE
from tests.lenstrain.conftest import Planting, make_planted_store, planted_pack
from tests.test_imports import run_blocked

mpl.use("Agg")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two levels, rows without a completion, a clear direction for every concept. Do not change
    it."""
    return make_planted_store(
        tmp_path_factory.mktemp("plots") / "s.zarr",
        planting=Planting(without_completion=0.2, completion_strength=8.0),
    )


@pytest.fixture(autouse=True)
def _no_figure_is_left() -> Iterator[None]:
    yield
    plt.close("all")


PLOTS: dict[str, Callable[..., Axes]] = {
    "norms": plots.plot_norms,
    "outliers": plots.plot_outlier_dimensions,
    "pca": lambda store, ax=None: plots.plot_pca(store, "bird", 1, ax=ax),
    "phases": plots.plot_phases,
}


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_every_plot_names_its_axes_with_units_and_says_what_to_see(
    store: Store, plot: Callable[..., Axes]
) -> None:
    ax = plot(store)
    assert len(ax.get_title(loc="left")) > 40
    for text in (ax.get_xlabel(), ax.get_ylabel()):
        assert "(" in text, f"no unit in {text!r}"
    assert ax.get_legend() is not None
    assert plt.get_fignums() == [1]
    ax.figure.canvas.draw()


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_axes_that_are_given_are_drawn_into_and_returned(
    store: Store, plot: Callable[..., Axes]
) -> None:
    given = make_axes(None)
    assert plot(store, ax=given) is given
    assert plt.get_fignums() == [1]


def test_norms_are_those_of_the_arrays() -> None:
    X = {3: np.array([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]]), 1: np.ones((5, 4))}
    lines = inspection.activation_norms(X)
    assert [(line.model_layer, line.n, line.median) for line in lines] == [(1, 5, 2.0), (3, 3, 5.0)]
    (line,) = plots.plot_norms(X).get_lines()
    np.testing.assert_array_equal(line.get_xydata(), [[1, 2.0], [3, 5.0]])


def test_rows_without_a_position_do_not_count(store: Store) -> None:
    found = {line.phase: line.n for line in inspection.activation_norms(store)}
    n = sum(entry.n_samples for entry in store.rounds())
    assert found["prompt"] == n > found["completion"] > 0.6 * n
    with pytest.raises(StoreIncompleteError, match="model layer 2: no row has an activation"):
        inspection.activation_norms({2: np.full((3, 4), np.nan)})


def test_a_phase_that_the_store_lacks_is_refused(tmp_path: Path) -> None:
    prompts = make_planted_store(tmp_path / "s.zarr", mode="prompt", max_new_tokens=0)
    with pytest.raises(StoreMismatchError, match="asks for completion"):
        plots.plot_phases(prompts)
    assert plt.get_fignums() == []
    assert [line.phase for line in inspection.activation_norms(prompts)] == ["prompt", "prompt"]


def test_an_outlier_dimension_is_found_and_its_share_drawn() -> None:
    X = np.random.default_rng(0).normal(size=(200, 16))
    X[:, 11] = 40.0
    (first, second) = inspection.outlier_dimensions({0: X}, top=2)
    assert (first.dimension, second.dimension == 11) == (11, False)
    assert first.share == pytest.approx(1600 / (1600 + 15), rel=0.02)
    assert first.ratio == pytest.approx(40 / np.sqrt(2 / np.pi), rel=0.1)
    ax = plots.plot_outlier_dimensions({0: X}, top=1)
    one, rest = ax.get_lines()
    assert one.get_label() == "dimension 11"
    assert np.asarray(one.get_ydata()) + np.asarray(rest.get_ydata()) == pytest.approx(100)


def test_a_sample_is_nearest_to_samples_of_its_own_concept(store: Store) -> None:
    found = inspection.principal_components(store, "bird", 1)
    sample = found.sample[found.concept.index("bird")]
    nearest = inspection.nearest_samples(store, sample, 1, n=6)
    assert sample not in {each.sample for each in nearest}
    assert all("bird" in each.concepts and each.shared for each in nearest)
    assert [each.cosine for each in nearest] == sorted(
        (each.cosine for each in nearest), reverse=True
    )
    assert not all(
        "bird" in each.concepts for each in inspection.nearest_samples(store, sample, 0, n=6)
    )


def test_nearest_samples_ask_for_a_sample_that_is_there(store: Store) -> None:
    with pytest.raises(PlanError, match="samples are named like"):
        inspection.nearest_samples(store, "layer_9/round_0/0", 1)
    empty = str(store.to_xarray().n_completion_tokens.to_series().idxmin())
    with pytest.raises(PlanError, match="no position in the phase completion"):
        inspection.nearest_samples(store, empty, 1, phase="completion")


def test_the_plane_parts_concepts_that_the_model_tells_apart(store: Store) -> None:
    found = inspection.principal_components(store, "bird", 1)
    assert set(found.concept) == {"bird", "fish", "tree"}
    assert len(found.points) == len(found.sample) == len(set(found.sample)) == 3 * 20
    assert 1 > found.explained[0] > found.explained[1] > 1 / SIZE
    centre = {
        c: found.points[np.isin(found.concept, [c])].mean(axis=0) for c in ("bird", "fish", "tree")
    }
    spread = found.points[np.isin(found.concept, ["bird"])].std(axis=0).max()
    assert min(np.linalg.norm(centre["bird"] - centre[c]) for c in ("fish", "tree")) > 2 * spread
    ax = plots.plot_pca(store, "bird", 1)
    drawn = np.concatenate([np.asarray(points.get_offsets()) for points in ax.collections])
    np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(found.points, axis=0))
    assert f"{found.explained[0]:.0%}" in ax.get_xlabel()


def test_the_plane_needs_something_to_compare_with(store: Store, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="'cow' is not in the store"):
        plots.plot_pca(store, "cow", 1)
    with pytest.raises(PlanError, match="0 samples of 'bird' and its siblings are of kind x"):
        inspection.principal_components(store, "bird", 1, kind="x")
    alone = planted_pack()
    alone = replace(alone, concepts=(replace(alone["bird"], parents=(), level=0),))
    with pytest.raises(PlanError, match="has no siblings"):
        plots.plot_pca(make_planted_store(tmp_path / "s.zarr", pack=alone), "bird", 1)
    assert plt.get_fignums() == []


def test_many_siblings_are_one_group(store: Store) -> None:
    others = [c for c in store.hierarchy if c != "bird"]
    ax = plots.plot_pca(store, "bird", 1, against=others)
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text().split(" (")[0] for text in legend.get_texts()] == [
        "bird",
        f"{len(others)} siblings",
    ]


def test_both_phases_of_a_sample_are_alike_where_they_say_the_same(store: Store) -> None:
    noise, signal = inspection.phase_similarity(store)
    assert (noise.model_layer, signal.model_layer) == (0, 1)
    assert abs(noise.median) < 0.1
    assert signal.median > 0.3 > abs(signal.other)
    own, other = plots.plot_phases(store).get_lines()
    np.testing.assert_array_equal(own.get_ydata(), [noise.median, signal.median])
    np.testing.assert_array_equal(other.get_ydata(), [noise.other, signal.other])


def test_a_large_store_is_summarised_from_blocks_spread_over_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = inspection.activation_norms(store, phases=["prompt"])[1]
    monkeypatch.setattr(inspection, "MAX_ROWS", 130)
    some = inspection.activation_norms(store, phases=["prompt"])[1]
    assert some.n < 0.6 * everything.n
    assert some.median == pytest.approx(everything.median, rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_is_shown_as_it_is_and_hides_nothing(name: str) -> None:
    shown = visible(name)
    assert len(shown) <= 60
    assert not any(sign in shown for sign in (*HIDDEN, "\n", "\t"))
    ax = make_axes(None)
    ax.plot([0, 1], [0, 1], label=label(name))
    name_ticks(ax, [name, name], "y")
    ax.set_title(label(name, 60))
    ax.legend()
    ax.figure.canvas.draw()
    legend = ax.get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 1
    for text in (*ax.get_yticklabels(), *legend.get_texts(), ax.title):
        assert text._preprocess_math(text.get_text())[1] is False  # type: ignore[attr-defined]


def test_the_plain_name_would_do_harm() -> None:
    """What `label` is for: without it matplotlib fails on this name."""
    ax = make_axes(None)
    ax.set_title(r"$\frac{$")
    with pytest.raises(ValueError, match="frac"):
        ax.figure.canvas.draw()


@pytest.mark.parametrize("name", NAMES)
def test_a_concept_with_a_hostile_name_is_drawn(name: str, tmp_path: Path) -> None:
    bird = planted_pack(n_examples=6)["bird"]
    pack = planted_pack(n_examples=6, changes=[replace(bird, name=name)])
    ax = plots.plot_pca(make_planted_store(tmp_path / "s.zarr", pack=pack), "bird", 1)
    ax.figure.canvas.draw()
    assert not any(sign in ax.get_title(loc="left") for sign in HIDDEN)
    assert len(ax.get_title(loc="left")) < 250


def test_more_names_than_fit_are_thinned_and_the_axis_says_so() -> None:
    ax = make_axes(None, height=3)
    assert name_ticks(ax, [str(i) for i in range(400)], "y") == " (one in 13 is named)"
    assert [text.get_text() for text in ax.get_yticklabels()][:3] == ["0", "13", "26"]
    assert name_ticks(ax, ["a", "b"], "x") == ""


def test_without_matplotlib_one_line_names_the_extra_and_numbers_are_there(store: Store) -> None:
    code = f"""
    from lenscache import inspection, open_store, plots
    store = open_store({str(store.path)!r})
    print(len(inspection.activation_norms(store)), len(inspection.phase_similarity(store)))
    for plot in (plots.plot_norms, plots.plot_outlier_dimensions, plots.plot_phases):
        try:
            plot(store)
        except ImportError as error:
            print(type(error).__name__, error)
    """
    ran = run_blocked(code, "matplotlib", "pandas", "xarray", "torch", "transformers")
    cure = "run `pip install '.[plots]'` in a clone of lenscache"
    line = f"MissingPackageError plots need matplotlib: {cure}\n"
    assert (ran.stdout, ran.returncode) == ("4 2\n" + 3 * line, 0), ran.stderr


def test_importing_the_packages_does_not_load_matplotlib() -> None:
    code = (
        "import lenscache, lenscache.plots, lenstrain, lenstrain.plots, sys; print('matplotlib' "
        "in sys.modules)"
    )
    ran = run_blocked(code)
    assert (ran.stdout, ran.returncode) == ("False\n", 0), ran.stderr


def test_missing_packages_are_import_errors() -> None:
    assert issubclass(MissingPackageError, ImportError)
