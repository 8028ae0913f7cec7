"""A reading as one HTML page: no script, no network, nothing in it but what is printed there."""

from __future__ import annotations

from html import escape

from lenstrain.live.naming_rule import Finding
from lenstrain.live.reading import Reading, TokenReading

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --page: #ffffff; --card: #f4f4f2; --line: #b8b8b4;
  --mark: 0, 114, 178; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --page: #161618; --card: #26262a; --line: #55555c; --mark: 86, 180, 233; }
}
body { color: var(--ink); background: var(--page); font: 16px/2 system-ui, sans-serif;
  max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.2rem; } p, table { line-height: 1.5; } table { border-collapse: collapse; }
th, td { text-align: left; padding: 0.2rem 1rem 0.2rem 0; border-bottom: 1px solid var(--line); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.token { position: relative; unicode-bidi: isolate; border-bottom: 0 solid rgb(var(--mark)); }
.token.named { background: rgba(var(--mark), 0.15); border-bottom-width: 2px; cursor: help; }
.token.strong { background: rgba(var(--mark), 0.35); border-bottom-width: 4px; }
.token:focus { outline: 2px solid rgb(var(--mark)); }
.card { display: none; position: absolute; left: 0; top: 1.9em; z-index: 1; width: max-content;
  max-width: 20rem; padding: 0.3rem 0.6rem; font-size: 0.85rem; line-height: 1.5;
  background: var(--card); border: 1px solid var(--line); white-space: normal; }
.token:hover .card, .token:focus .card { display: block; }
.name { unicode-bidi: isolate; overflow-wrap: anywhere; }
"""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STRONG = 2.0  # deviations above the bar at which a token is marked twice as heavily


def reading_page(reading: Reading, *, title: str, notes: tuple[str, ...] = ()) -> str:
    """The page of a reading; hovering over a token, a click or the tab key shows its lenses.

    Parameters
    ----------
    title : what was read, with which pack and model.
    notes : remarks to print below it.
    """
    body = "".join(_token(token, reading.rule.min_signal) for token in reading.tokens)
    remarks = "".join(f"<p>{_shown(note)}</p>\n" for note in notes)
    name = _shown(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n"
        f'{remarks}<p>{_shown(legend(reading))}</p>\n<div class="text">{body}</div>\n'
        f"<h1>The text as a whole</h1>\n{_table(reading.whole)}\n</body>\n</html>\n"
    )


def legend(reading: Reading) -> str:
    """How to read the figures of a reading, in one paragraph."""
    rule = reading.rule
    return (
        f"{reading.n_judged} of {reading.n_lenses} lenses have grade {rule.min_grade.value} or "
        f"better. A lens is named where its score over the last {reading.window} tokens reaches "
        f"its threshold and is {rule.min_signal:g} deviations above its noise floor "
        f"({rule.min_signal - 1:g} for the whole text). Probability: as if the concept were as "
        "often there as not."
    )


def _token(token: TokenReading, bar: float) -> str:
    if not token.findings:
        return f'<span class="token">{_shown(token.text, breaks=True)}</span>'
    strong = " strong" if token.findings[0].signal >= bar + _STRONG else ""
    lines = "<br>".join(_line(found) for found in token.findings)
    text = _shown(token.text, breaks=True) or "&hellip;"
    card = f'<span class="card">{lines}</span>'
    return f'<span class="token named{strong}" tabindex="0">{text}{card}</span>'


def _line(found: Finding) -> str:
    figures = f"p {found.probability:.2f}, {found.signal:+.1f} deviations"
    name = f'<span class="name">{_shown(found.name)}</span>'
    return f"{name}: grade {found.grade_shown}, {figures}"


def _table(findings: tuple[Finding, ...]) -> str:
    if not findings:
        return "<p>No lens is sure that its concept is there.</p>"
    rows = "".join(
        f'<tr><td class="name">{_shown(f.name)}</td><td>{f.grade_shown}</td>'
        f"<td>{f.probability:.2f}</td><td>{f.signal:+.1f}</td></tr>"
        for f in findings
    )
    head = "<tr><th>concept</th><th>grade</th><th>probability</th><th>signal</th></tr>"
    return f"<table>{head}{rows}</table>"


def _shown(text: str, *, breaks: bool = False) -> str:
    """Text as HTML, with escapes for control characters and changes of the reading direction."""
    kept = "\n" if breaks else ""
    parts = [c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in text]
    return escape("".join(parts))
