"""Text lenses: words of training completions, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from lenscache.concepts.plan import SPLITS
from lenscache.concepts.prompts import POSITIVE
from lenscache.store.round import Block
from lenscache.store.store import Store, open_store
from lenstrain.data.dataset import TEST, LensDataset
from lenstrain.data.words import Vocabulary, learn_vocabulary, word_features
from lenstrain.errors import SettingsError
from lenstrain.families.linear import LinearWeights
from lenstrain.fit.adaptive import FitResult, fit_lenses
from lenstrain.fit.to_pack import make_lens_pack
from lenstrain.pack.pack import LensPack
from lenstrain.settings import FitSettings
from tests.lenstrain.conftest import Planting, make_planted_store

SETTINGS = FitSettings(family="text", phase="completion", initial_samples=200, C=10.0)
TEXTS = ["the bird sang", "the bird flew away", "a boat, the boat!", "Bird on the boat", ""]

Writer = Callable[[list[str], str], str]
"""What a row's completion is, by the concepts that the row expresses and its split."""


def write_completions(store: Store, write: Writer) -> Store:
    """Change what was written in a planted store; activations and counts stay."""
    opened = open_store(store.path, mode="r+")
    for entry in opened.rounds():
        samples, labels = entry.samples(), entry.labels()
        expressed: list[list[str]] = [[] for _ in samples.text]
        for sample, concept, role in zip(*labels, strict=True):
            if role == POSITIVE:
                expressed[sample].append(entry.concepts[concept])
        completions = [
            write(concepts, SPLITS[split]) if count else ""
            for concepts, split, count in zip(
                expressed, samples.split, samples.n_completion_tokens, strict=True
            )
        ]
        header = opened.header
        for block in range(entry.n_blocks):
            rows = entry.rows(block)
            read = {
                (p, m): entry.read(p, m, rows) for p in header.phases for m in header.model_layers
            }
            entry.write_block(
                block, Block(read, completions[rows], samples.n_completion_tokens[rows])
            )
    return opened


def name_concepts(concepts: list[str], split: str) -> str:
    """Completions that hold the words of their concepts."""
    return " ".join(["we speak of", *concepts, "now"])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> LensDataset:
    """Every completion holds the words of its concepts, and one for its split."""
    store = make_planted_store(tmp_path_factory.mktemp("written") / "s")
    changed = write_completions(
        store, lambda concepts, split: f"{name_concepts(concepts, split)} only{split}"
    )
    return LensDataset(changed, phase="completion")


@pytest.fixture(scope="module")
def result(written: LensDataset) -> FitResult:
    return fit_lenses(written, SETTINGS)


@pytest.fixture(scope="module")
def pack(written: LensDataset, result: FitResult) -> LensPack:
    return make_lens_pack(result, written, SETTINGS)


# --- vocabulary ---------------------------------------------------------------------------------


def test_words_come_from_training_completions_alone(
    written: LensDataset, result: FitResult
) -> None:
    assert {"onlytest", "onlycalibration"} <= set(" ".join(written.completions).split())
    assert result.vocabulary is not None
    words = {word for term in result.vocabulary.terms for word in term.split()}
    assert {"onlytrain", "bird", "speak"} <= words
    assert not words & {"onlytest", "onlycalibration"}


def test_weights_of_words_come_from_training_completions_alone(tmp_path: Path) -> None:
    """Held-out completions that are all the same word do not make it any commoner."""
    stores = [
        write_completions(
            make_planted_store(tmp_path / name),
            lambda concepts, split, word=word: (  # type: ignore[misc]
                name_concepts(concepts, split) if split == "train" else word
            ),
        )
        for name, word in (("a", "bird"), ("b", "boat"))
    ]
    learned = []
    for store in stores:
        dataset = LensDataset(store, phase="completion")
        learned.append(word_features(dataset, dataset.completions)[1])
    assert learned[0].terms == learned[1].terms
    assert learned[0].idf.tobytes() == learned[1].idf.tobytes()


def test_rows_are_those_of_scikit_learn() -> None:
    vocabulary = learn_vocabulary(TEXTS)
    theirs = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2).fit(TEXTS)
    assert list(vocabulary.terms) == list(theirs.get_feature_names_out())
    others = [*TEXTS, "the the the bird", "unheard words"]
    ours = vocabulary.transform(others)
    assert isinstance(ours, scipy.sparse.csr_array)
    np.testing.assert_array_equal(ours.toarray(), theirs.transform(others).toarray())


def test_rows_have_length_1_and_those_without_a_known_word_length_0() -> None:
    rows = learn_vocabulary(TEXTS).transform(
        ["the bird", "the boat and the bird", "", "   \n", "unheard words", "☂"]
    )
    np.testing.assert_allclose(scipy.sparse.linalg.norm(rows, axis=1), [1, 1, 0, 0, 0, 0])


def test_no_texts_are_no_rows() -> None:
    vocabulary = learn_vocabulary(TEXTS)
    assert vocabulary.transform([]).shape == (0, len(vocabulary.terms))


@pytest.mark.parametrize(
    ("texts", "terms"),
    [
        (["bird", "bird", ""], ["bird"]),
        (["bird"], ["bird"]),
        (["bird sang", "boat sank"], ["bird", "bird sang", "boat", "boat sank", "sang", "sank"]),
        (["bird sang", "bird sank"], ["bird"]),
        (["größe 東京", "GRÖSSE 東京"], ["東京"]),
    ],
)
def test_words_must_occur_twice_unless_none_does(texts: list[str], terms: list[str]) -> None:
    vocabulary = learn_vocabulary(texts)
    assert sorted(vocabulary.terms) == terms
    assert vocabulary.idf.shape == (len(terms),)


@pytest.mark.parametrize("texts", [[], ["", ""], ["a b", "!?"]])
def test_texts_without_a_word_are_refused(texts: list[str]) -> None:
    with pytest.raises(SettingsError, match="not a single word"):
        learn_vocabulary(texts)


# --- lenses -------------------------------------------------------------------------------------


def test_concept_whose_word_is_written_is_found_in_words_it_names(pack: LensPack) -> None:
    assert pack.vocabulary is not None
    for lens in pack:
        assert lens.model_layers == ()
        assert lens.metrics["score"] > 0.9
        assert isinstance(lens.weights, LinearWeights)
        weight = dict(zip(pack.vocabulary.terms, lens.weights.weight.tolist(), strict=True))
        alone = {term: value for term, value in weight.items() if " " not in term}
        assert max(alone, key=alone.__getitem__) == lens.concept


def test_words_that_say_nothing_leave_a_lens_at_chance(tmp_path: Path) -> None:
    store = write_completions(
        make_planted_store(tmp_path / "s"), lambda concepts, split: "and so on and so forth"
    )
    for lens in fit_lenses(
        LensDataset(store, phase="completion"), SETTINGS, concepts=["bird", "nature"]
    ).lenses:
        assert lens.ranking.score == pytest.approx(0.01)
        assert lens.ranking.auroc == 0.5


def test_texts_are_scored_as_in_training(written: LensDataset, pack: LensPack) -> None:
    scores = pack.score_texts(written.completions)
    assert scores.shape == (written.n_samples, len(pack))
    assert scores.dtype == np.float32
    features, vocabulary = word_features(written, written.completions)
    assert vocabulary.terms == (pack.vocabulary or Vocabulary((), np.zeros(0))).terms
    for column, lens in enumerate(pack):
        logits = features.Z @ lens.weight + lens.bias
        expected = np.asarray(logits)[written.split_place]
        np.testing.assert_allclose(
            scores[written.vector_sample, column], expected, rtol=1e-5, atol=1e-5
        )


def test_new_texts_are_recognised(pack: LensPack) -> None:
    names = [lens.concept for lens in pack]
    scores = pack.score_texts([f"It is about {name}, I think." for name in names])
    assert [names[i] for i in scores.argmax(axis=1)] == names
    nothing = pack.score_texts(["", "Zyx!"])
    np.testing.assert_array_equal(
        nothing, np.tile(np.array([lens.bias for lens in pack], np.float32), (2, 1))
    )
    assert pack.score_texts([]).shape == (0, len(pack))


def test_packs_refuse_what_their_lenses_cannot_read(pack: LensPack, planted: LensDataset) -> None:
    with pytest.raises(ValueError, match="read text: use `score_texts`"):
        pack.score_all({1: planted.vectors(1)})
    settings = FitSettings(model_layers=(1,), max_iterations=1, C=0.1)
    activations = make_lens_pack(
        fit_lenses(planted, settings, concepts=["bird"]), planted, settings
    )
    with pytest.raises(
        ValueError, match=r"read activations: `LensPack.text` has those that read text"
    ):
        activations.score_texts(["a bird"])


def test_samples_without_a_completion_are_no_text(tmp_path: Path) -> None:
    store = make_planted_store(tmp_path / "s", planting=Planting(without_completion=0.4))
    dataset = LensDataset(write_completions(store, name_concepts), phase="completion")
    lenses = fit_lenses(dataset, SETTINGS).lenses
    assert all(lens.ranking.score > 0.9 for lens in lenses)
    assert all(
        lens.ranking.n_positive + lens.ranking.n_negative
        <= (dataset.split[dataset.vector_sample] == TEST).sum()
        for lens in lenses
    )
    assert len(dataset.vector_sample) < dataset.n_samples
