"""The identity of a store: what model, pack and settings write into its header."""

from __future__ import annotations

from lenscache.concepts.pack import ConceptPack
from lenscache.errors import PromptTooLongError, argument
from lenscache.extract.settings import ExtractSettings
from lenscache.model.loading import LoadedModel
from lenscache.store.header import StoreHeader


def make_header(loaded: LoadedModel, pack: ConceptPack, settings: ExtractSettings) -> StoreHeader:
    """The identity of the store that these would write.

    Raises
    ------
    ModelLayerError
        If the model lacks a model layer that is asked for.
    PromptTooLongError
        If a completion leaves no room for a prompt, or prompts may be longer than the model takes.
    """
    new_tokens = 0 if settings.mode == "prompt" else settings.max_new_tokens
    return StoreHeader(
        model_id=loaded.id,
        model_fingerprint=loaded.fingerprint,
        model_dtype=loaded.dtype,
        n_layers=loaded.n_layers,
        hidden=loaded.hidden,
        tokenizer_fingerprint=loaded.tokenizer_fingerprint,
        pack_name=pack.name,
        pack_version=pack.version,
        pack_digest=pack.digest,
        model_layers=loaded.check_model_layers(settings.model_layers),
        mode=settings.mode,
        max_new_tokens=new_tokens,
        max_prompt_tokens=_prompt_limit(loaded, settings.max_prompt_tokens, new_tokens),
        pooling=settings.pooling,
        pool_first_position=settings.pool_first_position,
        special_tokens=True,
        store_dtype=settings.store_dtype,
        seed=settings.seed,
    )


def _prompt_limit(loaded: LoadedModel, asked: int | None, new_tokens: int) -> int:
    """Tokens a prompt may have; 0 for no limit."""
    if loaded.max_positions is None:
        return asked or 0
    room = loaded.max_positions - new_tokens
    if room < 1:
        raise PromptTooLongError(
            f"{new_tokens} new tokens are asked for, {loaded.id} has {loaded.max_positions} "
            "positions: there is no room for a prompt, lower "
            f"{argument('max_new_tokens', None)}"
        )
    if asked is not None and asked > room:
        raise PromptTooLongError(
            f"prompts of up to {asked} tokens are asked for, the {loaded.max_positions} positions "
            f"of {loaded.id} leave room for {room} beside {new_tokens} new ones: "
            f"lower {argument('max_prompt_tokens', None)}"
        )
    return asked or room
