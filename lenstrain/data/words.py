"""Text lenses: what the model writes, rather than what it represents.

TF-IDF of the completions, in scikit-learn's vectoriser, and the linear solver on sparse rows. Words
and their weights come from training completions alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from lenstrain.data.dataset import TRAIN, LensDataset
from lenstrain.data.features import Features
from lenstrain.errors import SettingsError

_OPTIONS: dict[str, Any] = {"ngram_range": (1, 2), "sublinear_tf": True, "max_features": 20_000}


class Vocabulary(NamedTuple):
    """The terms of TF-IDF rows and what they weigh: all that is needed to make such rows again."""

    terms: tuple[str, ...]
    idf: NDArray[np.float64]
    """(terms,)"""

    def transform(self, texts: Sequence[str]) -> scipy.sparse.csr_array:
        """(texts, terms) rows of length 1, or 0 where no term is known."""
        if not len(texts):  # which scikit-learn refuses
            return scipy.sparse.csr_array((0, len(self.terms)), dtype=np.float64)
        vectorizer = TfidfVectorizer(**_OPTIONS, vocabulary=list(self.terms))
        vectorizer.idf_ = self.idf
        return scipy.sparse.csr_array(vectorizer.transform(texts))


def learn_vocabulary(texts: Sequence[str]) -> Vocabulary:
    """Words and word pairs that occur in at least two of the texts (or one, if that is none)."""
    for least in (2, 1):
        try:
            vectorizer = TfidfVectorizer(**_OPTIONS, min_df=least).fit(texts)
        except ValueError:  # what scikit-learn raises when no term is left
            continue
        terms = tuple(map(str, vectorizer.get_feature_names_out()))
        return Vocabulary(terms, np.asarray(vectorizer.idf_))
    raise SettingsError(
        "the training texts hold not a single word: there is nothing to learn from them"
    )


def word_features(dataset: LensDataset, texts: Sequence[str]) -> tuple[Features, Vocabulary]:
    """TF-IDF of one text a sample, as features of the dataset's vectors."""
    train = np.unique(dataset.samples_by_split[dataset.split_slices[TRAIN]])
    vocabulary = learn_vocabulary([texts[i] for i in train])
    return Features(dataset, vocabulary.transform(texts)[dataset.samples_by_split]), vocabulary
