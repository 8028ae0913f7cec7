"""Names and texts that a pack may hold and that must do no harm where they are shown."""

SCRIPT = "<script>alert('x')</script>"
NAMES = (
    SCRIPT,
    r"$\frac{$",
    r"a \$5 bill, or $6$ of them",
    "long " * 2000,
    "\u202eezis ksid\u202c",
    "אבג دهو",
    "\"quoted\" & 'so'\n\ttwo lines\x1b[31m\x00",
    "_private",
)
HIDDEN = ("\u202e", "\u202c", "\x1b", "\x00")
"""What must not reach a reader as it is."""
