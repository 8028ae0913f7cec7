"""`--adapter` puts an adapter into the model, and stores and packs are those of both together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from lenscache import open_store
from tests.cli.conftest import Run
from tests.cli.test_lenscache import assert_one_line_error

peft = pytest.importorskip("peft")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_store_of_an_adapted_model_is_read_with_the_adapter_alone(
    lenscache: Run, lenstrain: Run, extract_options: list[str], model_folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    store, lenses = tmp_path / "store.zarr", tmp_path / "lenses"
    asked = (*extract_options, "--mode", "prompt", "--level", "1")
    adapter = ("--adapter", tmp_path / "lora")
    ran = lenscache("extract", store, *asked, *adapter)
    assert ran.exit_code == 0, ran.stderr
    assert "tiny with lora: 3 transformer blocks" in ran.stderr
    assert open_store(store).header.model_id == "tiny with lora"
    assert_one_line_error(lenscache("extract", store, *asked), "tiny with lora")
    assert lenstrain("fit", store, "--out", lenses).exit_code == 0
    text = ("--model", model_folder, "--dtype", "float32", "--text", "wings over the roof")
    assert lenstrain("read", lenses, *text, *adapter).exit_code == 0
    assert_one_line_error(lenstrain("read", lenses, *text), "made with another model")
