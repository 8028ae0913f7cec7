"""The report as one HTML file: the data, the libraries that draw it, and our scripts.

It fetches nothing, and no text of a pack is ever read as HTML: data is carried compressed, reaches
the page as text, and a content security policy lets only the scripts run that are written here.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lenstrain.errors import MissingPackageError
from lenstrain.report.data import Report

# In this order they are one script.
_SCRIPTS = (
    *("text.js", "charts.js", "overview.js", "tree.js", "table.js"),
    *("layers.js", "concept.js", "compare.js", "main.js"),
)


def render_page(report: Report) -> str:
    """The page of a report.

    Raises
    ------
    MissingPackageError
        If plotly or itables is not installed.
    """
    plotly, tables, table_style = _libraries()
    glue = "".join(_asset(name) for name in _SCRIPTS)
    scripts = [_inline(script) for script in (plotly, tables, glue)]
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    # Styles are allowed, since both libraries write them; they can neither run nor fetch anything.
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": escape(f"{report.label[:80]}: lens report"),
        "style": table_style.replace("</", "<\\/") + _asset("page.css"),
        "overview": _packed(_json(report.overview())),
        "rest": _packed(_json(report.rest())),
        "plotly": _packed(scripts[0]),
        "tables": _packed(scripts[1]),
        "glue": scripts[2],
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("page.html"))


def require_report_packages() -> None:
    """Raise MissingPackageError unless plotly and itables are there, before a store is read."""
    for package in ("plotly", "itables"):
        if find_spec(package) is None:
            raise MissingPackageError(
                f"a report needs {package}: run `pip install '.[report]'` in a clone of lenscache"
            )


def _libraries() -> tuple[str, str, str]:
    """plotly.js, DataTables as a script that defines a global class, and its style."""
    require_report_packages()
    tables = _shipped("itables", "html/dt_bundle.js")
    # A module inside a page cannot be imported: its export becomes a global variable.
    found = re.search(r"export\s*\{([^{}]*)\};?", tables)
    exported = re.search(r"([\w$]+) as default\b", found[1]) if found else None
    if found is None or exported is None:
        raise MissingPackageError(
            "this itables ships DataTables in a form that is not known here: "
            "run `pip install 'itables<3'`"
        )
    leave = f"globalThis.DataTable={exported[1]};"
    tables = f"(()=>{{'use strict';{tables[: found.start()]}{leave}{tables[found.end() :]}}})();"
    style = _shipped("itables", "html/dt_bundle.css")
    return _shipped("plotly", "package_data/plotly.min.js"), tables, style


def _shipped(package: str, path: str) -> str:
    # Found rather than imported: both packages load half of scientific Python, for one file.
    spec = find_spec(package)
    (folder, *_) = (spec and spec.submodule_search_locations) or [""]
    try:
        return (Path(folder) / path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingPackageError(
            f"this {package} does not ship {path}: run `pip install --upgrade plotly 'itables<3'`"
        ) from None


def _asset(name: str) -> str:
    return files("lenstrain.report").joinpath("assets", name).read_text(encoding="utf-8")


def _inline(script: str) -> str:
    """A script as it may stand in HTML: without what would end it there, and with line ends that do
    not change its hash."""
    safe = re.sub(r"<(?=/script|script|!--)", r"\\x3C", script, flags=re.IGNORECASE)
    return re.sub(r"\r\n?", "\n", safe)


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _packed(text: str) -> str:
    # Texts may hold half a surrogate pair, which is no UTF-8. A fixed time makes the file the same.
    return base64.b64encode(gzip.compress(text.encode(errors="replace"), 6, mtime=0)).decode()
