"""Texts whose tokens are not what was meant: said before the model runs, at every door."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from lenscache.concepts.pack import ConceptPack
from lenscache.errors import TokenError
from lenscache.extract import ExtractSettings, extract
from lenscache.extract.estimate import estimate_run
from lenscache.extract.rows import tokenize
from lenscache.live.continuation import continue_prompt
from lenscache.live.listening import read_text
from lenscache.model.loading import LoadedModel
from lenscache.preflight.texts import fit
from tests.models import tiny_model, tiny_tokenizer
from tests.packs import small_pack

TEXT = "The cat sat on the mat"


def with_tokenizer(*, template: str = "", added: str = "") -> LoadedModel:
    """A tiny model whose tokenizer adds special tokens, or has a token more than the model."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    if template:
        special = [("<bos>", 0), ("<eos>", 1)]
        tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=template, special_tokens=special
        )
    if added:
        missing = 300 - len(tokenizer)
        tokenizer.add_tokens([*(f"<filler{i}>" for i in range(missing)), added])
    return dataclasses.replace(tiny_model(), tokenizer=tokenizer)


class Deaf:
    """A listener that the model must never get to."""

    model_layers = (0,)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


def pack_with(text: str) -> ConceptPack:
    content = json.loads(json.dumps(small_pack(n_examples=3).to_dict()))
    content["concepts"][0]["examples"][0] = text
    return ConceptPack.from_dict(content)


DOORS: dict[str, Callable[[LoadedModel, str, Path], object]] = {
    "rows": lambda loaded, text, _: tokenize(loaded, [TEXT, text], continued=True),
    "extract": lambda loaded, text, path: extract(path / "s.zarr", pack_with(text), loaded),
    "plan": lambda loaded, text, _: estimate_run(pack_with(text), loaded),
    "steer": lambda loaded, text, _: continue_prompt(loaded, text, model_layers=[0]),
    "preflight": lambda loaded, text, _: fit(loaded, text, 4),
    "read": lambda loaded, text, _: read_text(loaded, text, Deaf()),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_token_without_an_embedding_is_named_with_its_text(door: str, tmp_path: Path) -> None:
    message = "'<speaker1> said .*' has the token '<speaker1>', number 300, .* it has 300, from 0"
    with pytest.raises(TokenError, match=message):
        DOORS[door](with_tokenizer(added="<speaker1>"), "<speaker1> said so", tmp_path)
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize("door", DOORS)
def test_a_text_that_begins_twice_is_refused(door: str, tmp_path: Path) -> None:
    message = r"1 prompt \('<bos>user: rain'\) begins with '<bos>' twice, since the tokenizer adds"
    with pytest.raises(TokenError, match=message):
        DOORS[door](with_tokenizer(template="<bos> $A"), "<bos>user: rain", tmp_path)
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize("door", [door for door in DOORS if door != "read"])
def test_a_text_that_ends_the_sequence_is_not_continued(door: str, tmp_path: Path) -> None:
    with pytest.raises(TokenError, match=r"prompts? \('.*'\) ends? with the end-of-sequence token"):
        DOORS[door](with_tokenizer(template="$A <eos>"), "rain", tmp_path)
    assert not (tmp_path / "s.zarr").exists()


def test_all_texts_of_a_kind_are_counted() -> None:
    loaded = with_tokenizer(template="<bos> $A")
    with pytest.raises(TokenError, match=r"2000 prompts \('<bos>number 0'\) begin with"):
        tokenize(loaded, [TEXT, *(f"<bos>number {i}" for i in range(2000))])


def test_a_text_that_ends_the_sequence_is_read_and_pooled_as_it_is(tmp_path: Path) -> None:
    loaded = with_tokenizer(template="$A <eos>")
    assert tokenize(loaded, [TEXT]).tokens[-1] == 1
    extract(tmp_path / "s.zarr", pack_with(TEXT), loaded, ExtractSettings(mode="prompt"))


@pytest.mark.parametrize("template", ["<bos> $A", "<eos> $A", "$A"])
def test_a_text_with_one_first_token_is_fine(template: str) -> None:
    loaded = with_tokenizer(template=template)
    assert tokenize(loaded, [TEXT, "rain"], continued=True).lengths[0] > 1


def test_a_text_that_brings_its_only_first_token_is_fine() -> None:
    assert tokenize(with_tokenizer(), ["<bos>user: rain"], continued=True).tokens[0] == 0


def test_an_end_that_is_cut_off_is_no_end() -> None:
    loaded = with_tokenizer(template="$A <eos>")
    assert tokenize(loaded, [TEXT], 3, continued=True).lengths[0] == 3
