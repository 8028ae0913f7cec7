"""Token ids of texts, looked at before a model runs on them.

A model that was never resized fails on a token that its tokenizer got later, after hours. A text
that brings its first token along gets a second one, and a text that ends the sequence is not gone
on with: both give vectors of another text than the one that was meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lenscache.errors import TokenError, argument
from lenscache.model.loading import LoadedModel

_SHOWN = 60  # characters of a text in a message


class TokenCheck:
    """Looks at texts one by one; `conclude` tells how many are not what was meant.

    Parameters
    ----------
    continued : whether the model is to go on where the texts end.
    """

    def __init__(self, loaded: LoadedModel, *, continued: bool) -> None:
        self._tokenizer, self._first = loaded.tokenizer, loaded.tokenizer.bos_token_id
        self._ends = loaded.eos_ids & _special(loaded) if continued else frozenset[int]()
        self._n_embeddings = _n_embeddings(loaded)
        self._doubled: list[str] = []
        self._ended: list[str] = []

    def look(self, text: str, ids: Sequence[int]) -> None:
        """Look at one text and its tokens.

        Raises
        ------
        TokenError
            If the model has no embedding for a token.
        """
        if self._n_embeddings is not None and ids and max(ids) >= self._n_embeddings:
            number = next(each for each in ids if each >= self._n_embeddings)
            token = self._tokenizer.convert_ids_to_tokens(number)
            raise TokenError(
                f"the prompt {_shown(text)} has the token {token!r}, number {number}, for which "
                f"the model has no embedding: it has {self._n_embeddings}, from 0. Use the "
                "tokenizer that belongs to the model, or resize its embeddings and train them"
            )
        if len(ids) > 1 and ids[0] == ids[1] == self._first:
            self._doubled.append(text)
        # The first token of some tokenizers is their last one, too.
        if len(ids) > 1 and ids[-1] in self._ends:
            self._ended.append(text)

    def conclude(self) -> None:
        """Raise TokenError if texts begin twice, or end where the model is to go on."""
        if self._doubled:
            first = self._tokenizer.bos_token
            raise TokenError(
                f"{_count(self._doubled)} with {first!r} twice, since the tokenizer adds it: "
                "remove it from the texts"
            )
        if self._ended:
            n, verb = len(self._ended), "ends" if len(self._ended) == 1 else "end"
            raise TokenError(
                f"{n} prompt{'s'[: n != 1]} ({_shown(self._ended[0])}) {verb} with the "
                "end-of-sequence token (eos), and the model would go on after the end: remove it "
                "from the texts, set add_eos_token to false in tokenizer_config.json, or use "
                f"{argument('mode', 'prompt')} where there is a choice"
            )


def token_ids(loaded: LoadedModel, text: str, *, continued: bool = False) -> list[int]:
    """The tokens of one text, special ones included.

    Raises
    ------
    TokenError
        If the model has no embedding for one, if the text begins twice, or if it is to be continued
        and ends the sequence.
    """
    ids: list[int] = loaded.tokenizer(text, verbose=False)["input_ids"]
    check_tokens(loaded, [(text, ids)], continued=continued)
    return ids


def check_tokens(
    loaded: LoadedModel, texts: Iterable[tuple[str, Sequence[int]]], *, continued: bool = False
) -> None:
    """Raise TokenError as `token_ids` does, for texts that are tokenised already."""
    check = TokenCheck(loaded, continued=continued)
    for text, ids in texts:
        check.look(text, ids)
    check.conclude()


def _special(loaded: LoadedModel) -> frozenset[int]:
    """Tokens that stand for no piece of text: a text may well end with an ordinary one."""
    tokenizer = loaded.tokenizer
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset([*tokenizer.all_special_ids, *added])


def _n_embeddings(loaded: LoadedModel) -> int | None:
    """Tokens that a model has an embedding for; None where it does not say."""
    found = loaded.model.get_input_embeddings()
    return getattr(found, "num_embeddings", None)


def _count(texts: Sequence[str]) -> str:
    n = len(texts)
    return f"{n} prompt{'s'[: n != 1]} ({_shown(texts[0])}) begin{'s'[: n == 1]}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...")
