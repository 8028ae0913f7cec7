"""Plots and figures of lens packs: right numbers, labelled axes, no harm from names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from numpy.typing import NDArray

from lenscache.concepts.hierarchy import Hierarchy
from lenscache.drawing import make_axes
from lenstrain import inspection, plots
from lenstrain.data.dataset import TEST, LensDataset
from lenstrain.errors import SettingsError
from lenstrain.fit.train import train
from lenstrain.metrics.grade import Grade
from lenstrain.pack.lens import Lens
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FitSettings
from tests.hostile import HIDDEN, NAMES
from tests.lenstrain.conftest import BRANCHES, LEAVES, SIGNAL_LAYER
from tests.test_imports import run_blocked

mpl.use("Agg")

SETTINGS = FitSettings(C=0.1)


@pytest.fixture(scope="module")
def pack(planted: LensDataset) -> LensPack:
    """Twelve clear lenses. Do not change it."""
    return train(planted, SETTINGS)


@pytest.fixture(autouse=True)
def _no_figure_is_left() -> Iterator[None]:
    yield
    plt.close("all")


def renamed(pack: LensPack, names: tuple[str, ...]) -> LensPack:
    """The pack with other names, ids included, for its first lenses."""
    new = [replace(lens, concept=name, name=name) for lens, name in zip(pack, names, strict=False)]
    return LensPack([*new, *pack.lenses[len(new) :]], pack.provenance, {})


def with_metrics(lens: Lens, **changes: Any) -> Lens:
    return replace(lens, metrics=replace(lens.metrics, **changes))


def cells(ax: Axes) -> NDArray[np.float64]:
    """The values of a heat map; NaN where it is grey."""
    values: Any = ax.images[0].get_array()
    return np.asarray(np.ma.filled(values, np.nan), np.float64)


PLOTS: dict[str, Callable[..., Axes]] = {
    "all curves": lambda pack, data, ax=None: plots.plot_learning_curves(pack, ax=ax),
    "curves": lambda pack, data, ax=None: plots.plot_learning_curves(pack, ["bird", "vote"], ax=ax),
    "by model layer": lambda pack, data, ax=None: plots.plot_by_model_layer(
        pack, hierarchy=data.hierarchy, ax=ax
    ),
    "reliability": lambda pack, data, ax=None: plots.plot_reliability(pack, ax=ax),
    "reliability of one": lambda pack, data, ax=None: plots.plot_reliability(pack["bird"], ax=ax),
    "confusion": lambda pack, data, ax=None: plots.plot_confusion(pack, data, "bird", ax=ax),
    "similarity": lambda pack, data, ax=None: plots.plot_similarity(pack, data.hierarchy, ax=ax),
    "grades": lambda pack, data, ax=None: plots.plot_grades(pack, ax=ax),
}
NAMED_AXES = {"lens", "concept", "lens with the strongest signal"}
"""Axes along which there are names and not numbers."""


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_every_plot_names_its_axes_with_units_and_says_what_to_see(
    pack: LensPack, planted: LensDataset, plot: Callable[..., Axes]
) -> None:
    ax = plot(pack, planted)
    assert len(ax.get_title(loc="left")) > 40
    for text in (ax.get_xlabel(), ax.get_ylabel()):
        assert "(" in text or text in NAMED_AXES, f"no unit in {text!r}"
    for other in ax.figure.axes[1:]:
        assert "(" in other.get_ylabel(), "a colour bar without unit"
    assert plt.get_fignums() == [1]
    ax.figure.canvas.draw()


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_axes_that_are_given_are_drawn_into_and_returned(
    pack: LensPack, planted: LensDataset, plot: Callable[..., Axes]
) -> None:
    given = make_axes(None)
    assert plot(pack, planted, ax=given) is given
    assert plt.get_fignums() == [1]


def test_learning_curves_hold_what_the_fit_recorded(pack: LensPack) -> None:
    ax = plots.plot_learning_curves(pack, ["bird"])
    steps = [*pack["bird"].trajectory, *pack["bird"].beyond]
    dotted, solid, _, target = ax.get_lines()
    np.testing.assert_array_equal(
        solid.get_xydata(), [[step.n_samples, step.test_f1] for step in steps]
    )
    np.testing.assert_array_equal(dotted.get_ydata(), [step.train_f1 for step in steps])
    assert set(np.asarray(target.get_ydata()).tolist()) == {SETTINGS.target_f1}


def test_the_median_curve_keeps_lenses_that_have_ended(pack: LensPack) -> None:
    step = pack["bird"].trajectory[0]
    early = replace(pack["bird"], trajectory=(step._replace(n_samples=5, test_f1=0.9),), beyond=())
    late = replace(
        pack["fish"],
        trajectory=tuple(step._replace(n_samples=n, test_f1=n / 100) for n in (5, 10)),
        beyond=(),
    )
    ax = plots.plot_learning_curves(LensPack([early, late], pack.provenance, {}))
    (median,) = [line for line in ax.get_lines() if str(line.get_label()).startswith("median")]
    np.testing.assert_allclose(
        np.asarray(median.get_xydata()), [[5, (0.9 + 0.05) / 2], [10, (0.9 + 0.10) / 2]]
    )


def test_more_curves_than_colours_are_refused(pack: LensPack) -> None:
    with pytest.raises(SettingsError, match="8 concepts are named, 7 can be told apart"):
        plots.plot_learning_curves(pack, [lens.concept for lens in pack][:8])
    with pytest.raises(SettingsError, match="no lens for 'cow'"):
        plots.plot_learning_curves(pack, ["cow"])
    assert plt.get_fignums() == []


def test_what_was_recorded_of_each_model_layer_is_drawn(pack: LensPack) -> None:
    noted = [
        with_metrics(lens, score_by_model_layer={"0": 0.1, "1": None, "7": 0.9}) for lens in pack
    ]
    ax = plots.plot_by_model_layer(LensPack(noted, pack.provenance, {}))
    table = cells(ax)
    np.testing.assert_array_equal(table, [[0.1, np.nan, 0.9]] * len(pack))
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "1", "7"]
    assert [text.get_text() for text in ax.get_yticklabels()] == [lens.name for lens in pack]
    assert (
        np.asarray(ax.collections[0].get_offsets())[:, 0] == 1
    ).all()  # all lenses read model layer 1
    assert "no other" not in ax.get_title(loc="left")


def test_a_pack_that_recorded_nothing_shows_the_model_layer_of_each_lens_and_says_so(
    pack: LensPack,
) -> None:
    bare = [
        with_metrics(replace(lens, model_layers=(i % 2,)), score_by_model_layer={})
        for i, lens in enumerate(pack)
    ]
    ax = plots.plot_by_model_layer(LensPack(bare, pack.provenance, {}))
    table = cells(ax)
    assert np.isfinite(table).sum() == len(pack)
    assert " ".join(ax.get_title(loc="left").split()).endswith("no other model layer was recorded")
    nothing = LensPack([replace(lens, model_layers=()) for lens in bare], pack.provenance, {})
    with pytest.raises(SettingsError, match="no value by model layer"):
        plots.plot_by_model_layer(nothing)


def test_f1_is_better_where_the_signal_is(planted: LensDataset, pack: LensPack) -> None:
    seen: list[int] = []
    fits = inspection.fit_by_model_layer(
        planted, SETTINGS, concepts=["bird", "vote"], on_model_layer=seen.append
    )
    assert seen == [0, 1]
    f1 = inspection.by_model_layer(fits)
    for concept in ("bird", "vote"):
        assert f1[concept][SIGNAL_LAYER] > 0.9 > f1[concept][0]
    ax = plots.plot_by_model_layer(f1, "test_f1", pack=pack)
    np.testing.assert_array_equal(cells(ax), [[f1[c][0], f1[c][1]] for c in ("bird", "vote")])


def test_reliability_is_pooled_by_weight(pack: LensPack) -> None:
    bins: dict[str, Any] = {
        "predicted": [0.1, None, 0.9],
        "observed": [0.0, None, 1.0],
        "weight": [0.5, 0.0, 0.5],
    }
    one = with_metrics(pack["bird"], reliability=bins)
    other = with_metrics(
        pack["fish"],
        reliability={
            "predicted": [0.3, 0.5, None],
            "observed": [0.4, 0.5, None],
            "weight": [0.5, 0.5, 0.0],
        },
    )
    ax = plots.plot_reliability([one, other])
    points = np.asarray(ax.collections[0].get_offsets())
    np.testing.assert_allclose(points, [[0.2, 0.2], [0.5, 0.5], [0.9, 1.0]])
    with pytest.raises(SettingsError, match="no reliability was recorded"):
        plots.plot_reliability(with_metrics(pack["bird"], reliability={}))


def test_clear_siblings_are_not_confused(pack: LensPack, planted: LensDataset) -> None:
    assert inspection.siblings_of(pack, planted, "bird") == ["bird", "fish", "tree"]
    found = inspection.confusion(pack, planted, ["bird", "fish", "tree"])
    np.testing.assert_allclose(found.share, np.eye(3), atol=0.2)
    np.testing.assert_allclose(found.share.sum(axis=1), 1)
    test = [int((planted.split[planted.positives(c)] == TEST).sum()) for c in found.concepts]
    assert (list(found.n_samples), found.n_ambiguous) == (test, 0)
    np.testing.assert_allclose(
        cells(plots.plot_confusion(pack, planted, "bird")), 100 * found.share
    )


def test_swapped_lenses_are_confused(pack: LensPack, planted: LensDataset) -> None:
    swapped = [replace(pack[b], concept=a) for a, b in (("bird", "fish"), ("fish", "bird"))]
    found = inspection.confusion(LensPack(swapped, pack.provenance, {}), planted, ["bird", "fish"])
    np.testing.assert_allclose(found.share, 1 - np.eye(2), atol=0.2)


def test_samples_of_several_of_the_concepts_are_left_out(
    pack: LensPack, planted: LensDataset
) -> None:
    found = inspection.confusion(pack, planted, ["bird", "nature"])
    assert found.n_ambiguous + sum(found.n_samples) > 0
    assert found.n_samples[0] + found.n_ambiguous >= int(
        (planted.split[planted.positives("bird")] == TEST).sum()
    )


def test_confusion_needs_lenses(pack: LensPack, planted: LensDataset) -> None:
    with pytest.raises(SettingsError, match="no lens for 'cow'"):
        plots.plot_confusion(pack, planted, ["cow"])
    with pytest.raises(SettingsError, match="no sibling of 'bird' has a lens"):
        plots.plot_confusion(LensPack([pack["bird"]], pack.provenance, {}), planted, "bird")


def test_everything_below_a_concept_comes_right_after_it(planted: LensDataset) -> None:
    order = inspection.hierarchy_order(planted.hierarchy, [*planted.concepts, "stranger"])
    wanted = [(c, b) for b, leaves in zip(BRANCHES, LEAVES, strict=True) for c in (b, *leaves)]
    assert order == [*wanted, ("stranger", "stranger")]


def test_a_concept_with_two_parents_stands_below_the_first() -> None:
    tree = Hierarchy(dict.fromkeys("abcd", 0), {"c": ("b", "a"), "d": ("c",)})
    assert inspection.hierarchy_order(tree, list("abcd")) == [
        ("a", "a"),
        ("c", "a"),
        ("d", "a"),
        ("b", "b"),
    ]


@pytest.mark.parametrize("of", ["weights", "directions"])
def test_cosines_are_those_of_the_lenses(pack: LensPack, planted: LensDataset, of: Any) -> None:
    found = inspection.lens_similarity(pack, planted.hierarchy, of=of)
    np.testing.assert_allclose(np.diag(found.cosine), 1, rtol=1e-6)
    i, j = found.concepts.index("bird"), found.concepts.index("vote")
    a, b = (
        pack[c].weight if of == "weights" else pack[c].directions[0].vector
        for c in ("bird", "vote")
    )
    assert found.cosine[i, j] == pytest.approx(
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), abs=1e-5
    )
    ax = plots.plot_similarity(pack, planted.hierarchy, of=of)
    np.testing.assert_allclose(cells(ax), found.cosine)
    assert len(ax.get_lines()) == 2 * (len(BRANCHES) - 1)


@pytest.mark.parametrize("of", ["weights", "directions"])
def test_lenses_of_several_model_layers_are_compared_with_those_that_read_the_same(
    pack: LensPack, planted: LensDataset, of: Any
) -> None:
    shared = train(planted, FitSettings(family="discriminant"))
    found = inspection.lens_similarity(shared, of=of)
    assert found.concepts == tuple(lens.concept for lens in shared)
    both = LensPack([*shared.lenses[:5], *pack.lenses[5:8]], pack.provenance, {})
    assert len(inspection.lens_similarity(both, of=of).concepts) == 5


def test_similarity_is_of_two_lenses_at_least(pack: LensPack) -> None:
    with pytest.raises(SettingsError, match="1 lenses of the pack are linear"):
        plots.plot_similarity(LensPack([pack["bird"]], pack.provenance, {}))


def test_grades_are_drawn_from_the_best_down(pack: LensPack) -> None:
    scores = {"bird": 0.1, "fish": 0.9, "vote": 0.3, "debt": math.nan}
    lenses = [
        replace(
            with_metrics(pack[c], score=s, score_low=s - 0.05, score_high=s + 0.05),
            grade=Grade.of(s),
            reason="",
        )
        for c, s in scores.items()
    ]
    ax = plots.plot_grades(LensPack(lenses, pack.provenance, {}))
    points = {
        str(line.get_label()): line.get_xydata()
        for line in ax.get_lines()
        if ": " in str(line.get_label())
    }
    assert {name: np.asarray(at).tolist() for name, at in points.items()} == {
        "A: 1": [[0.9, 0]],
        "B: 1": [[0.3, 1]],
        "C: 1": [[0.1, 2]],
    }
    assert [text.get_text() for text in ax.get_yticklabels()] == ["fish", "vote", "bird"]


def _ungraded(lens: Lens, score: float) -> Lens:
    lens = with_metrics(lens, score=score, score_low=score, score_high=score)
    return replace(lens, grade=None, status="ungraded", reason="too few test texts")


def test_ungraded_lenses_are_left_out_of_the_grades_and_counted(pack: LensPack) -> None:
    graded = replace(with_metrics(pack["bird"], score=0.9), grade=Grade.A, reason="")
    capped = replace(with_metrics(pack["boat"], score=0.8), grade=Grade.C, reason="fires on 40 %")
    # One of them has a score, of texts too few for a grade.
    without = [_ungraded(pack["fish"], math.nan), _ungraded(pack["tree"], 1.0)]
    ax = plots.plot_grades(LensPack([graded, capped, *without], pack.provenance, {}))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["bird", "boat"]
    title = " ".join(ax.get_title(loc="left").split())
    assert title.endswith("; 2 of 4 have no grade and are left out")
    legend = ax.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["A: 1", "B: 0", "C: 1 (1 capped)"]
    alone = plots.plot_grades(LensPack([graded], pack.provenance, {}))
    assert "left out" not in alone.get_title(loc="left")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "plot", ["all curves", "curves", "by model layer", "reliability", "similarity", "grades"]
)
def test_a_pack_without_any_score_is_drawn(pack: LensPack, planted: LensDataset, plot: str) -> None:
    nothing = [
        replace(
            _ungraded(with_metrics(lens, score_by_model_layer={}), math.nan),
            trajectory=tuple(step._replace(score=math.nan) for step in lens.trajectory),
        )
        for lens in pack
    ]
    ax = PLOTS[plot](LensPack(nothing, pack.provenance, {}), planted)
    ax.figure.canvas.draw()
    if plot == "grades":
        title = " ".join(ax.get_title(loc="left").split())
        assert f"; {len(pack)} of {len(pack)} have no grade" in title


@pytest.mark.parametrize("n", [56, 185, 3000])
def test_any_number_of_lenses_is_drawn_with_names_that_can_be_read(pack: LensPack, n: int) -> None:
    many = [replace(pack["bird"], concept=f"concept-{i}", name=f"concept {i}") for i in range(n)]
    large = LensPack(many, pack.provenance, {})
    values = {lens.concept: {0: 0.1, 1: 0.9} for lens in large}
    for ax in (plots.plot_grades(large), plots.plot_by_model_layer(values, pack=large)):
        ax.figure.canvas.draw()
        boxes = [text.get_window_extent() for text in ax.get_yticklabels() if text.get_text()]
        assert all(abs(a.y0 - b.y0) >= 0.8 * a.height for a, b in pairwise(boxes))
        assert ("one in" in ax.get_ylabel()) == (len(boxes) < n and "rank" not in ax.get_ylabel())


def test_equal_names_are_told_apart_by_id(pack: LensPack) -> None:
    seals = [replace(pack["bird"], concept=f"seal-{i}", name="seal") for i in range(2)]
    ax = plots.plot_grades(LensPack([*seals, pack["fish"]], pack.provenance, {}))
    assert {text.get_text() for text in ax.get_yticklabels()} == {"seal-0", "seal-1", "fish"}


@pytest.mark.parametrize(
    "plot", ["all curves", "by model layer", "reliability", "similarity", "grades"]
)
def test_hostile_names_do_no_harm(pack: LensPack, planted: LensDataset, plot: str) -> None:
    ax = PLOTS[plot](renamed(pack, NAMES), planted)
    ax.figure.canvas.draw()
    texts = [text.get_text() for text in (*ax.get_yticklabels(), *ax.get_xticklabels())]
    assert not any(sign in text for sign in HIDDEN for text in texts)
    assert max(map(len, texts)) <= 40


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_does_no_harm_in_title_and_legend(pack: LensPack, name: str) -> None:
    lenses = renamed(pack, (name,))
    for ax in (plots.plot_learning_curves(lenses, [name]), plots.plot_reliability(lenses[name])):
        ax.figure.canvas.draw()
        legend = ax.get_legend()
        assert legend is not None
        assert len(legend.get_texts()) >= 2
        texts = [ax.get_title(loc="left"), *(text.get_text() for text in legend.get_texts())]
        assert not any(sign in text for sign in HIDDEN for text in texts)


def test_without_matplotlib_one_line_names_the_extra() -> None:
    code = """
    from lenstrain import plots
    from lenstrain.errors import LenstrainError
    try:
        plots.plot_grades([])
    except LenstrainError as error:
        print(type(error).__name__, error)
    """
    ran = run_blocked(code, "matplotlib", "transformers")
    cure = "run `pip install '.[plots]'` in a clone of lenscache"
    line = f"MissingPackageError plots need matplotlib: {cure}\n"
    assert (ran.stdout, ran.returncode) == (line, 0), ran.stderr
