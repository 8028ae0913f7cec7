"""A lens pack that listens to a model while it reads or generates.

A lens is trained on activations pooled over a whole prompt or completion. So a monitor scores
activations pooled over all positions so far, and over a window of the last few. Of each text it
keeps only those sums and that window, so its memory does not grow with the text, and nothing leaves
the device before somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch

from lenstrain.errors import SettingsError
from lenstrain.live.device_lenses import LensScorer, hidden_size
from lenstrain.live.naming_rule import Finding, Presence, Rule, choose_lenses
from lenstrain.live.running_pool import Phase, Trail
from lenstrain.pack.pack import LensPack

WINDOW = 8
"""Positions that a token's score is pooled over; see `lenstrain.live.reading`."""


class Firing(NamedTuple):
    """A lens that says its concept is there."""

    row: int
    """Row of the batch."""
    position: int
    """Token of the row that was read last, counted from 0 without padding."""
    finding: Finding


class Monitor:
    """Scores of all lenses of a pack for every token, while a model runs.

    It is a listener of `lenscache.live.listening.listen`; a new text begins when the model is
    called without a cache. Positions are pooled as the pack's store has them: mean, max or last,
    and without the first one of a text where the store is without it.

    Parameters
    ----------
    concepts : whose lenses to use; None for all.
    window : positions that a token's score is pooled over, itself included; 1 for the bare token.
    keep : scores are kept of so many of the last positions; None for all, as for reading a text.
    rule : what a lens needs for being named by `firing`; None for the default.
    device : where to compute; None for where the activations are.
    on_scores : called with the monitor after every forward pass, before the model's next token is
        known. The model waits while it reads from the device.

    Raises
    ------
    SettingsError
        If the lenses read text, there is none, a concept is unknown, or a count is below 1.

    Examples
    --------
    >>> monitor = Monitor(LensPack.load("lenses"))  # doctest: +SKIP
    >>> with listen(model, monitor):  # doctest: +SKIP
    ...     model.generate(**tokenizer("Once upon a time", return_tensors="pt"), max_new_tokens=200)
    >>> [(said.row, said.finding.name) for said in monitor.firing("completion")]  # doctest: +SKIP
    [(0, 'poem')]

    Asked after every token, by a stopping criterion:

    >>> class Stop(StoppingCriteria):  # doctest: +SKIP
    ...     def __call__(self, input_ids, scores, **kwargs):
    ...         rows = [said.row for said in monitor.firing() if said.finding.concept == "weapon"]
    ...         stops = [row in rows for row in range(len(input_ids))]
    ...         return torch.tensor(stops, device=input_ids.device)
    """

    def __init__(
        self,
        pack: LensPack,
        *,
        concepts: Sequence[str] | None = None,
        window: int = WINDOW,
        keep: int | None = 1,
        rule: Rule | None = None,
        device: str | torch.device | None = None,
        on_scores: Callable[[Monitor], None] | None = None,
    ) -> None:
        if window < 1 or (keep is not None and keep < 1):
            raise SettingsError(f"window is {window} and keep is {keep}: expected 1 or more")
        lenses = choose_lenses(pack, concepts)
        settings = pack.provenance.store.get("settings", {})
        self._pooling = str(settings.get("pooling", "mean"))
        self._with_first = bool(settings.get("pool_first_position", False))
        self.presence = Presence(lenses, rule or Rule())
        self.concepts = tuple(lens.concept for lens in lenses)
        """Of the columns of scores."""
        self.model_layers = tuple(sorted({layer for lens in lenses for layer in lens.model_layers}))
        """Transformer blocks that the lenses read, ascending."""
        self.window = Trail(self._pooling, window).window
        self._keep, self._on_scores, self._hidden = keep, on_scores, hidden_size(lenses[0])
        self._device = None if device is None else torch.device(device)
        self._scorer: LensScorer | None = None
        self._forget()

    def __repr__(self) -> str:
        read = f"{int(self._n_read.max())} positions read" if self._kept else "nothing read yet"
        layers = ", ".join(map(str, self.model_layers))
        return (
            f"Monitor({len(self.concepts)} lenses, model layers {layers}, window {self.window}, "
            f"{read})"
        )

    def _forget(self) -> None:
        self._trail = Trail(self._pooling, self.window)
        self._kept: list[torch.Tensor] = []  # (batch, position, lenses)
        self._n_read = torch.zeros((), dtype=torch.long)  # (batch,)

    def begin_pass(
        self, phase: Phase, *, real: torch.Tensor, first: torch.Tensor, is_new: bool
    ) -> None:
        """A forward pass begins: see `lenscache.live.listening.Listener`."""
        with torch.inference_mode():
            if is_new:
                self._forget()
            real, first = (each.to(self._device or real.device) for each in (real, first))
            self._n_read = self._n_read.to(real.device) + real.sum(dim=1)
            n_scored = min(real.shape[1], self._keep or real.shape[1])
            self._counted = real if self._with_first else real & ~first
            self._trail.begin(phase, self._counted, n_scored)
            self._skipped = ~self._counted[:, -n_scored:, None]
            self._waiting: list[torch.Tensor] = []
            self._products: list[torch.Tensor] = []

    def take(self, model_layer: int, hidden: torch.Tensor) -> None:
        """What a block put out, (batch, position, hidden): see `lenscache.live.listening.Listener`.

        Raises
        ------
        SettingsError
            If its size is not that of the activations that the lenses were trained on.
        """
        if hidden.shape[2] != self._hidden:
            raise SettingsError(
                f"the lenses read activations of size {self._hidden}, this model's have size "
                f"{hidden.shape[2]}: give the model that the pack was made for"
            )
        self._waiting.append(hidden)
        # Of one token all model layers are pooled at once; of a long prompt each, to free memory.
        if hidden.shape[1] > 1 or model_layer == self.model_layers[-1]:
            with torch.inference_mode():
                self._work_off()

    def _work_off(self) -> None:
        device = self._counted.device
        if self._scorer is None or self._scorer.device != device:
            self._scorer = LensScorer(self.presence.lenses, device)
            self._bars = torch.from_numpy(self.presence.bars).to(device)
            self._whole_bars = torch.from_numpy(self.presence.whole_bars).to(device)
        windows = self._trail.add([hidden.to(device) for hidden in self._waiting])
        self._waiting = []
        for window in windows:
            model_layer = self.model_layers[len(self._products)]
            X = window.reshape(-1, self._hidden)
            self._products.append(self._scorer.product(model_layer, X))

    def end_pass(self) -> None:
        """All model layers were taken: see `lenscache.live.listening.Listener`."""
        with torch.inference_mode():
            self._trail.end()
            scores = self._combine(self._products).view(*self._skipped.shape[:2], -1)
            self._products = []
            self._kept.append(scores.masked_fill_(self._skipped, torch.nan))
            keep = self._keep or torch.inf
            while sum(each.shape[1] for each in self._kept[1:]) >= keep:
                del self._kept[0]
        if self._on_scores is not None:
            self._on_scores(self)

    def _combine(self, products: Sequence[torch.Tensor]) -> torch.Tensor:
        assert self._scorer is not None  # noqa: S101 - there are products
        return self._scorer.combine(products)

    @property
    def latest(self) -> torch.Tensor:
        """(batch, lenses) logits of the window that ends with the last position, on the device.

        NaN in rows that have ended, and all NaN in a text of one position that is not pooled.

        Raises
        ------
        SettingsError
            If nothing was read yet.
        """
        self._check_read()
        return self._kept[-1][:, -1]

    @property
    def scores(self) -> torch.Tensor:
        """(batch, position, lenses) logits of the last positions, in order; NaN where none is
        counted.

        Raises
        ------
        SettingsError
            If nothing was read yet.
        """
        self._check_read()
        return torch.cat(self._kept, dim=1)[:, -(self._keep or 0) :]

    def pooled(self, phase: Phase = "completion") -> torch.Tensor:
        """(batch, lenses) logits of a whole phase so far, pooled as a stored activation.

        NaN in rows without a position, and before the phase began.

        Raises
        ------
        SettingsError
            If nothing was read yet.
        """
        self._check_read()
        with torch.inference_mode():
            values = self._trail.pooled(phase)
            if values is None or self._scorer is None:
                return torch.full_like(self.latest, torch.nan)
            product, layers = self._scorer.product, self.model_layers
            return self._combine([product(*each) for each in zip(layers, values, strict=True)])

    def firing(self, over: Literal["window", "prompt", "completion"] = "window") -> list[Firing]:
        """The lenses that say their concept is there, in each row the strongest signal first.

        Only these come from the device, after one comparison there.

        Parameters
        ----------
        over : the last positions, or a phase as a whole so far.

        Raises
        ------
        SettingsError
            If nothing was read yet.
        """
        logits = self.latest if over == "window" else self.pooled(over)
        places = (logits >= (self._bars if over == "window" else self._whole_bars)).nonzero()
        values, positions = logits[places[:, 0], places[:, 1]].tolist(), (self._n_read - 1).tolist()
        found = [
            Firing(row, positions[row], self.presence.finding(lens, value))
            for (row, lens), value in zip(places.tolist(), values, strict=True)
        ]
        return sorted(found, key=lambda f: (f.row, -f.finding.signal, f.finding.concept))

    def _check_read(self) -> None:
        if not self._kept:
            raise SettingsError(
                "nothing was read yet: run the model while `listen(model, monitor)` is open"
            )
