"""`benchmarks/names.py --quick`: the bounds that grades have to keep on a real ontology."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lenscache.concepts.pack import ConceptPack

ROOT = Path(__file__).parents[1]


def test_the_sentences_that_lenses_are_judged_by_do_not_name_their_concept() -> None:
    pack = ConceptPack.load(ROOT / "data" / "packs" / "foundation.json")
    given = json.loads((ROOT / "benchmarks" / "data" / "unnamed.json").read_text())
    assert set(given) == {concept.id for concept in pack.concepts if concept.level <= 3}
    in_pack = {text for concept in pack.concepts for text in concept.examples}
    sentences = [text for texts in given.values() for text in texts]
    assert len(set(sentences)) == len(sentences)
    assert not set(sentences) & in_pack
    for concept, texts in given.items():
        assert len(texts) == 8
        assert not any(pack[concept].is_named_in(text) for text in texts), concept


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_grades_hold_where_a_lens_could_read_the_name(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "benchmarks/names.py", "--quick", "--json", str(figures)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(figures.read_text())
    assert found["overgraded_share"] <= 0.02
    assert found["overgraded_share"] < found["overgraded_share_old"]
    assert found["undergraded_share"] <= 0.20
    assert found["noise_a"] == 0
    assert found["noise_b_share"] <= 0.01
    assert 0 < found["ungraded_share"] < 1
