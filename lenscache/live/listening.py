"""Listen to a model while it runs: what chosen blocks put out, pass by pass; nothing is changed.

    model.generate(...) --forward pass--> begin_pass --> take, once a model layer --> end_pass

A forward pass over a prompt has many positions, one that generates has one. Listeners are told
which positions are text, and not padding or what a finished row is still fed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from lenscache.errors import ModelError, UnsupportedModelError
from lenscache.inference.capture import Capture
from lenscache.inference.hooks import check_not_compiled, residual_stream
from lenscache.model.caches import GivenCache
from lenscache.model.loading import LoadedModel, check_model_layers, find_blocks, flat_ids
from lenscache.model.tokens import check_tokens
from lenscache.terms import Phase


class Listener(Protocol):
    """What is told of every forward pass, while the pass runs: an error that it raises ends it."""

    @property
    def model_layers(self) -> Sequence[int]:
        """Transformer blocks to listen to."""

    def begin_pass(
        self, phase: Phase, *, real: torch.Tensor, first: torch.Tensor, is_new: bool
    ) -> None:
        """A forward pass begins.

        Parameters
        ----------
        phase : "prompt" for what is given, "completion" for generated tokens that are fed back.
        real : (batch, position) whether a position is text: no padding, not at or after the end.
        first : (batch, position) whether it is the first of a row's text, often an attention sink.
        is_new : whether a text begins here rather than goes on.
        """

    def take(self, model_layer: int, hidden: torch.Tensor) -> None:
        """What a block put out, (batch, position, hidden), in the model's dtype; not to be changed.

        On the device of that block, where a model is spread over several; what `begin_pass` tells
        is where inputs go. Called in ascending order of the model layers.
        """

    def end_pass(self) -> None:
        """Every model layer was taken; deeper blocks and the head are still to run."""


@contextmanager
def listen(
    model: LoadedModel | nn.Module, listener: Listener, *, end_ids: Iterable[int] | None = None
) -> Iterator[None]:
    """Let a listener hear every forward pass of a model while the context is open.

    Works under `model.generate`, greedy or sampling, with left padding and in batches; the model's
    output stays the same bit for bit. Passes that generate need a key-value cache, or each of them
    would look like a new prompt; beam search and assisted decoding move rows and take tokens back,
    which a listener is not told.

    Parameters
    ----------
    model : a loaded model, or a transformers model; calls of a part of it are not heard.
    end_ids : tokens that end a sequence; None for the model's own, with the padding token.

    Raises
    ------
    ModelLayerError
        If the model has no such model layer.
    UnsupportedModelError
        If its transformer blocks cannot be found, put out several streams, or were compiled.
    ModelError
        While the model runs, if it generates without a cache that can be seen.

    Examples
    --------
    >>> with listen(model, monitor):  # doctest: +SKIP
    ...     model.generate(**inputs, max_new_tokens=200)
    """
    module: nn.Module = model.model if isinstance(model, LoadedModel) else model
    check_not_compiled(module)
    blocks = model.blocks if isinstance(model, LoadedModel) else find_blocks(module)
    model_layers = check_model_layers(listener.model_layers, len(blocks), "this model")
    ends = _end_ids(model) if end_ids is None else set(end_ids)
    hooks = _PassHooks(module, listener, ends, deepest=model_layers[-1])
    handles = []
    try:
        handles.append(module.register_forward_pre_hook(hooks.begin, with_kwargs=True))
        for model_layer in model_layers:
            handles.append(blocks[model_layer].register_forward_hook(hooks.hook_for(model_layer)))
        yield
        check_not_compiled(module)  # hooks of this context would stay in what was compiled
    finally:
        for handle in handles:
            handle.remove()


class TokenizedText(NamedTuple):
    """A text as a model read it."""

    tokens: tuple[str, ...]
    """The piece of the text that each token stands for; special tokens by their name."""
    n_cut: int
    """Tokens at the end that were not read: the model has no positions for them."""


@torch.inference_mode()
def read_text(loaded: LoadedModel, text: str, listener: Listener) -> TokenizedText:
    """Run a text through a model once, up to the deepest model layer that the listener wants.

    Tokenised as in `lenscache.extract`. A text beyond the model's positions is cut.

    Raises
    ------
    ModelError
        If the text has no token.
    TokenError
        If the model has no embedding for a token, or the text begins twice.
    """
    encoded = loaded.tokenizer(text, verbose=False, return_offsets_mapping=loaded.tokenizer.is_fast)
    token_ids: list[int] = encoded["input_ids"]
    check_tokens(loaded, [(text, token_ids)])
    kept = token_ids[: loaded.max_positions]
    if not kept:
        raise ModelError("the text is empty: give one with at least one token")
    ids = torch.tensor([kept], device=loaded.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    capture = Capture(loaded.blocks, listener.model_layers)
    with listen(loaded, listener):
        capture.run_to_deepest(loaded.model, **inputs, use_cache=False)
    pieces = _pieces(loaded, text, kept, encoded.get("offset_mapping"))
    return TokenizedText(pieces, len(token_ids) - len(kept))


class _PassHooks:
    """Hooks of one `listen`, and what they know of the text so far."""

    def __init__(
        self, module: nn.Module, listener: Listener, end_ids: set[int], *, deepest: int
    ) -> None:
        self._listener, self._deepest = listener, deepest
        self._names = list(inspect.signature(module.forward).parameters)
        self._end_ids = torch.tensor(sorted(end_ids))
        self._alive = torch.ones(0, dtype=torch.bool)  # (batch,) rows whose sequence has not ended
        self._cache = GivenCache()
        self._is_open, self._n_positions = False, 0

    @torch.inference_mode()
    def begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward pass."""
        given = dict(zip(self._names, args, strict=False)) | kwargs
        tokens, n_cached = given.get("input_ids"), self._cache.n_cached(given)
        inputs: Any = tokens if given.get("inputs_embeds") is None else given["inputs_embeds"]
        (n_batch, n_positions), device = inputs.shape[:2], inputs.device
        is_new = n_cached == 0
        # several positions at once are given: the next part of a prompt, or a next turn
        generates = not is_new and n_positions == 1
        if not generates:
            self._alive = torch.ones(n_batch, dtype=torch.bool, device=device)
        mask = given.get("attention_mask")
        real, first = _positions(mask, n_batch, n_positions, device, is_new=is_new)
        if generates and tokens is not None:
            self._end_ids = self._end_ids.to(device)
            self._alive = self._alive & ~torch.isin(tokens[:, 0], self._end_ids)
            real = real & self._alive[:, None]
        self._is_open, self._n_positions = True, n_positions
        phase: Phase = "completion" if generates else "prompt"
        self._listener.begin_pass(phase, real=real, first=first, is_new=is_new)

    def hook_for(self, model_layer: int) -> Any:
        """What to register with the block of a model layer."""

        def hook(_block: nn.Module, _inputs: Any, output: Any) -> None:
            if not self._is_open:
                ran = "the model's blocks ran without the model"
                raise ModelError(f"{ran}: call the model that `listen` was given")
            hidden = residual_stream(output).detach()
            if hidden.shape[1] != self._n_positions:
                raise UnsupportedModelError(
                    f"block {model_layer} ran for {hidden.shape[1]} of {self._n_positions} "
                    "positions, since not all logits were asked for: call the model, or generate, "
                    "with logits_to_keep=0"
                )
            self._listener.take(model_layer, hidden)
            if model_layer == self._deepest:
                self._is_open = False
                self._listener.end_pass()

        return hook


def _positions(
    mask: Any, n_batch: int, n_positions: int, device: torch.device, *, is_new: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, position) each: which positions of a pass are real, which are first in their row."""
    if mask is None:
        first = torch.zeros(n_batch, n_positions, dtype=torch.bool, device=device)
        first[:, 0] = is_new
        return torch.ones_like(first), first
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or mask.shape[1] < n_positions:
        raise ModelError(
            "the attention mask is not (batch, position), so padding cannot be told from text: "
            "use the default cache"
        )
    real = mask.bool()
    first = real & (real.cumsum(dim=1) == 1)
    return real[:, -n_positions:], first[:, -n_positions:]


def _end_ids(model: LoadedModel | nn.Module) -> set[int]:
    """Tokens that end a sequence, with the token that finished rows are fed while others go on."""
    own = model.eos_ids if isinstance(model, LoadedModel) else frozenset()
    module = model.model if isinstance(model, LoadedModel) else model
    config: Any = getattr(module, "generation_config", None)
    entries = (getattr(config, name, None) for name in ("eos_token_id", "pad_token_id"))
    return {*own, *flat_ids(*entries)}


def _pieces(
    loaded: LoadedModel, text: str, token_ids: Sequence[int], spans: Any
) -> tuple[str, ...]:
    """The text of each token: slices of the text, if the tokenizer has offsets, so none is lost."""
    names: list[str] = loaded.tokenizer.convert_ids_to_tokens(token_ids)
    special = set(loaded.tokenizer.all_special_ids)
    if spans is None:
        return tuple(
            name if i in special else loaded.tokenizer.decode([i])
            for i, name in zip(token_ids, names, strict=True)
        )
    pieces, shown = [], 0
    for (start, stop), token_id, name in zip(spans, token_ids, names, strict=False):
        # A character of several tokens goes to the first; spaces outside of all spans, to the next.
        pieces.append(name if token_id in special and start == stop else text[shown:stop])
        shown = max(shown, stop)
    return tuple(pieces)
