"""Prompt templates of the user's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenscache.concepts.pack import ConceptPack
from lenscache.concepts.plan import plan_samples
from lenscache.concepts.prompts import CONTRAST, KINDS, POSITIVE, concept_prompts
from lenscache.concepts.templates import parse_templates, read_templates
from lenscache.errors import PackError
from tests.packs import small_pack

TEMPLATE = KINDS.index("template")


def with_templates(*lines: str) -> ConceptPack:
    return replace(small_pack(), templates=lines)


def filled(pack: ConceptPack, concept: str, role: int = POSITIVE) -> set[str]:
    return {
        p.text
        for p in concept_prompts(pack, pack[concept])
        if p.kind == TEMPLATE and p.role == role
    }


def test_a_template_becomes_a_prompt_of_every_concept() -> None:
    pack = with_templates("Tell me about {name}.")
    assert {c.id: filled(pack, c.id) for c in pack.concepts} == {
        c.id: {f"Tell me about {c.name}."} for c in pack.concepts
    }


def test_a_field_with_several_values_gives_a_prompt_for_each() -> None:
    assert filled(with_templates("{name} is above {child}"), "craft") == {
        "craft is above boat",
        "craft is above oven",
    }


def test_a_concept_that_lacks_a_field_is_passed_over() -> None:
    pack = with_templates("{name} is a kind of {parent}", "{name}, also called {alias}")
    assert filled(pack, "bird") == {"bird is a kind of nature"}
    assert filled(pack, "nature") == set()


def test_a_contrast_template_names_the_concept_without_expressing_it() -> None:
    pack = with_templates("contrast: The van of {name} & Sons.")
    assert filled(pack, "bird", CONTRAST) == {"The van of bird & Sons."}
    assert filled(pack, "bird") == set()


def test_templates_leave_every_other_prompt_and_its_split_alone() -> None:
    plain, more = plan_samples(small_pack()), plan_samples(with_templates("Tell me about {name}."))
    added = {text: int(split) for text, split in zip(more.texts, more.split, strict=True)}
    examples = [i for i, kind in enumerate(plain.kind) if KINDS[kind] == "example"]
    assert {plain.texts[i]: int(plain.split[i]) for i in examples}.items() <= added.items()
    assert set(plain.texts) < set(more.texts)


def test_templates_change_the_digest_and_survive_the_file(tmp_path: Path) -> None:
    pack = with_templates("Tell me about {name}.")
    assert pack.digest != small_pack().digest
    pack.save(tmp_path / "p.json")
    assert ConceptPack.load(tmp_path / "p.json") == pack


def test_template_files_hold_a_template_a_line_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_text(
        "# ours\n\n  About {name}. \ncontrast: {name} Ltd\nAbout {name}.\n", encoding="utf-8-sig"
    )
    assert read_templates(file) == ("About {name}.", "contrast: {name} Ltd")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no template"),
        ("# only this\n", "holds no template"),
        ("About it.", "has no field, it would say the same of every concept"),
        ("About {nmae}.", r"unknown field \{nmae\}, expected \{name\}, \{definition\}"),
        ("About {}.", r"unknown field \{\}"),
    ],
)
def test_a_template_file_that_cannot_be_used_is_named_with_what_is_wrong(
    content: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "t.txt"
    file.write_text(content)
    with pytest.raises(PackError, match=rf"{file.name}.*{message}"):
        read_templates(file)


def test_a_missing_template_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="cannot read the templates in"):
        read_templates(tmp_path / "none.txt")


@given(
    st.text(alphabet="ab{} \\g<0>", max_size=12),
    st.text(alphabet="x{name}\\1", min_size=1, max_size=12),
)
def test_text_around_a_field_and_the_value_in_it_are_kept_as_they_are(
    around: str, value: str
) -> None:
    text = f"{around.replace('{', '').replace('}', '')}|{{name}}|"
    (template,) = parse_templates([text])
    assert template.fill({"name": [value]}) == [text.replace("{name}", value)]
