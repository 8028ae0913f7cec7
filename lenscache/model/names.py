"""What the name of a model stands for: a folder, a built-in model, or one of the Hugging Face hub.

A name that is none of them is answered at once, with the names that are near: transformers asks the
hub again and again, for a minute, where there is no network.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, errors

from lenscache.errors import ModelNotFoundError
from lenscache.model.builtin import BUILT_IN

_PATIENCE_S = 3.5  # for the first answer of the hub; with the start of the program, below 5 s
_MOST_NAMES = 3


def local_folder(name: str) -> Path | None:
    """Where the files of a model are, as far as it is here; None if it is not."""
    if Path(name).is_dir():
        return Path(name)
    try:
        found = huggingface_hub.try_to_load_from_cache(name, "config.json")
    except (errors.HFValidationError, ValueError):
        return None
    return Path(found).parent if isinstance(found, str) else None


def check_name(name: str) -> None:
    """Raise ModelNotFoundError unless something may be loaded under a name.

    A name of the hub that is not in the cache is asked for there, once.
    """
    path = Path(name)
    if path.is_file():
        raise ModelNotFoundError(_file_said(path))
    if name in BUILT_IN or local_folder(name) is not None:
        return
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        reason = "there is no such folder"
    elif constants.is_offline_mode():
        reason = "there is no such folder, it is not in the cache, and HF_HUB_OFFLINE is set"
    else:
        reason = _asked(name)
    if reason:
        near = difflib.get_close_matches(name, sorted({*_known(path)}), _MOST_NAMES)
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ModelNotFoundError(
            f"cannot load the model {name!r}: {reason}.{meant} Give a model folder, a Hugging Face "
            f"id, or one of: {', '.join(BUILT_IN)}"
        )


def _file_said(file: Path) -> str:
    if file.suffix.lower() != ".gguf":
        return f"cannot load the model {str(file)!r}: it is a file; give the folder that it is in"
    where = f"{str(file.parent)!r}, gguf_file={file.name!r}"
    return (
        f"{file} is a GGUF file, and models are loaded from folders. Convert it once, with gguf "
        "installed, in Python: from transformers import AutoModelForCausalLM, AutoTokenizer; "
        f"AutoModelForCausalLM.from_pretrained({where}).save_pretrained('model'); "
        f"AutoTokenizer.from_pretrained({where}).save_pretrained('model'). Then give the folder "
        "model"
    )


def _asked(name: str) -> str:
    """Why the hub cannot give a model; "" if it can, or says something else than that."""
    try:
        said = _in_time(lambda: huggingface_hub.HfApi().model_info(name, timeout=_PATIENCE_S))
    except (errors.HFValidationError, errors.RepositoryNotFoundError):
        return "there is no such folder, and no such model on the Hugging Face hub"
    except errors.HfHubHTTPError:
        return ""  # that it is gated, say: loading tells more
    except Exception as error:  # noqa: BLE001 - of the client that the hub's library uses
        said = str(error)
    if isinstance(said, str):
        return (
            "there is no such folder, it is not in the cache, and the Hugging Face hub cannot be "
            f"reached ({(said.strip().splitlines() or ['no answer'])[0]})"
        )
    return ""


def _in_time(ask: Callable[[], Any]) -> Any:
    """What a question gives, or that there was no answer: looking up an address has no limit."""
    found: list[Any] = ["no answer"]
    raised: list[Exception] = []

    def run() -> None:
        try:
            found[0] = ask()
        except Exception as error:  # noqa: BLE001 - raised again by who waits
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    if raised:
        raise raised[0]
    return found[0]


def _known(path: Path) -> Iterator[str]:
    """Names that could be meant: built-in models, folders beside, and what the cache holds."""
    yield from BUILT_IN
    parent = path.parent
    if parent.is_dir():
        yield from (str(config.parent) for config in parent.glob("*/config.json"))
    for folder in Path(constants.HF_HUB_CACHE).glob("models--*"):
        yield folder.name.removeprefix("models--").replace("--", "/")
