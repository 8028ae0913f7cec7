"""Control vectors in GGUF, as llama.cpp and repeng read them: one file a concept.

    general.architecture         "controlvector"
    controlvector.model_hint     name of the model; repeng asks for it, llama.cpp does not look
    controlvector.layer_count    how many directions there are, as repeng writes it; read by neither
    direction.<N>                (hidden,) float32: what is added to the output of transformer
                                 block N, counted from 0

**Numbering.** direction.N belongs to our model layer N, with the same number:

- llama.cpp puts direction.N at ``n_embd * (N - 1)`` of a buffer (``common_control_vector_load_one``
  in common/common.cpp) and takes the one of block il from ``n_embd * (il - 1)``
  (``llama_adapter_cvec::apply`` in src/llama-adapter.cpp), so il = N. The models add it
  (``build_cvec``) after the feed-forward sum, right before ``l_out``: to the residual stream after
  block il, our ``resid_post``.
- repeng adds it to the output of ``model.layers[N]`` (ControlModule in repeng/control.py) and
  learns it from ``hidden_states[N + 1]`` (repeng/extract.py).
- Block 0 has none: llama.cpp refuses a file that names direction.0 ("invalid (zero) direction
  tensor layer index").
- llama.cpp's own cvector-generator calls what it learned from the output of block i
  ``direction.(i + 1)`` (tools/cvector-generator/mean.hpp), so its files steer one block later than
  they were learned. Here the number is that of the block that a direction is added to.

**Length.** Strength 1 goes one deviation, as ``--strength`` of `lenstrain steer` does: see
`steering_vectors`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lenstrain.errors import MissingPackageError, SettingsError
from lenstrain.exchange.filenames import file_stems
from lenstrain.exchange.folder import write_export, write_sidecar
from lenstrain.live.steering import Kind, directions_of
from lenstrain.pack.lens import Lens
from lenstrain.pack.pack import LensPack

ARCHITECTURE = "controlvector"


class Written(NamedTuple):
    """What an export wrote."""

    files: dict[str, str]
    """By concept, relative to the folder."""
    left_out: dict[str, str]
    """Why a concept has no file."""


def steering_vectors(lens: Lens, kind: Kind = "mean-difference") -> dict[int, NDArray[np.float32]]:
    """What to add to the residual stream for one unit of strength: (hidden,) by model layer.

    The mean difference has the length of the deviation of activations along it. Along the weights w
    of a linear lens it is ``w * s / |w|^2``, with s the deviation of its noise floor: s is that of
    the logits ``w.x + b`` over unrelated samples, so ``s / |w|`` is that of their activations along
    w, and the vector moves the logit by s. Of an ensemble each model layer does so by itself.

    Raises
    ------
    SettingsError
        If the lens has no such direction, or its noise floor was never measured.
    """
    if kind == "weights" and "noise_floor" in (lens.metrics.unknown or ()):
        raise SettingsError(
            f"the noise floor of the lens of {lens.concept} is not known: its vector has no length"
        )
    found = directions_of(lens, kind, allow_grade_c=True)
    return {d.model_layer: np.asarray(d.vector * d.deviation, np.float32) for d in found}


def write_gguf(
    pack: LensPack,
    out: Path,
    *,
    kind: Kind = "mean-difference",
    overwrite: bool = False,
) -> Written:
    """Write a folder of control vectors, ``<concept>.gguf``, that llama.cpp and repeng read.

    Parameters
    ----------
    kind : what to steer along, as for `steering_vectors`.

    Raises
    ------
    SettingsError
        If the lenses are of a family without a direction, or none of them can be written.
    MissingPackageError
        If the package gguf is not installed.
    LensPackExistsError
        If `out` exists, and is not an earlier export or `overwrite` is off.
    """
    _check_family(pack, kind)
    gguf, left_out = _import_gguf(), {}
    vectors: dict[str, dict[int, NDArray[np.float32]]] = {}
    for lens in pack:
        try:
            vectors[lens.concept] = _vectors_of(lens, kind)
        except SettingsError as error:
            left_out[lens.concept] = str(error)
    if not vectors:
        raise SettingsError(next(iter(left_out.values()), "there is no lens to export"))
    files = {concept: f"{stem}.gguf" for concept, stem in file_stems(vectors).items()}
    hint = str(pack.provenance.model.get("id", "unknown"))

    def write(folder: Path) -> None:
        for concept, file in files.items():
            _write_file(gguf, folder / file, pack[concept].name, hint, vectors[concept])
        write_sidecar(folder, pack, files, "gguf")

    write_export(out, write, overwrite=overwrite)
    return Written(files, left_out)


def _check_family(pack: LensPack, kind: Kind) -> None:
    if pack.vocabulary is not None:
        raise SettingsError("text lenses read words, not activations: they have no control vector")
    if pack.family == "mlp" and kind == "weights":
        raise SettingsError(
            "mlp lenses have no single direction in their weights: export the mean difference, "
            "--direction mean-difference, or a pack of linear lenses"
        )


def _vectors_of(lens: Lens, kind: Kind) -> dict[int, NDArray[np.float32]]:
    found = steering_vectors(lens, kind)
    if 0 in found:
        raise SettingsError(
            f"the lens of {lens.concept} reads model layer 0, and llama.cpp refuses a control "
            "vector with a direction for it: fit the lens on model layers from 1 on"
        )
    return found


def _write_file(
    gguf: Any, path: Path, name: str, hint: str, vectors: dict[int, NDArray[np.float32]]
) -> None:
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_name(name)
    writer.add_string(f"{ARCHITECTURE}.model_hint", hint)
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors))
    for model_layer, vector in vectors.items():
        writer.add_tensor(f"direction.{model_layer}", vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _import_gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise MissingPackageError(
            "control vectors need gguf: run `pip install '.[gguf]'` in a clone of lenscache"
        ) from None
    return gguf
