"""A session folder to one offline HTML file: the shell that every verb shares, and which view fills it.

The file asks the network for nothing: style, script, data and plotly.js (deflated) are in it, and its content security
policy lets exactly those scripts run, so that a name from a model stays text whatever is in it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from harness.errors import UsageError
from harness.record import Session
from reports import schema, units

if TYPE_CHECKING:
    import plotly.graph_objects as go

VIEWS = ("bisect", "printf", "ladder")
LINKED = 4  # sections; with fewer, a page is read as quickly as links to them
_SECTION = re.compile(
    r'<section class="card[^>]* aria-labelledby="(title-[^"]*)"[^>]*>\s*(?:<div class="heading">)?<h2 id="\1">(.*?)</h2>'
)
_LATER = re.compile("<noscript.*?</noscript>", re.DOTALL)  # is on the page once it is asked for
_TOLD = ("argv", "verb", "schema_version")  # of a manifest: said elsewhere, or of use to programs alone
_NAMED = ("versions", "tools")  # groups whose rows are names of packages and runs
_SMI = {
    "memory.total": "MiB",
    "clocks.sm": "MHz",
    "clocks.mem": "MHz",
    "clocks.max.sm": "MHz",
    "temperature.gpu": "°C",
    "power.draw": "W",
}  # what nvidia-smi leaves out of its numbers


@dataclass(frozen=True)
class Library:
    """plotly.js as it goes into a page: deflated, base64, and the hash of its text for the content security policy."""

    deflated: str
    digest: str


@dataclass(frozen=True)
class Drawn:
    """A figure as it goes into a page: inert JSON, and the pixels that are kept free for it until it is drawn."""

    content: Markup
    height: int


@dataclass(frozen=True)
class Facts:
    """A group of facts, flattened to (name, value) texts."""

    title: str
    rows: list[tuple[str, str]]


def render(session: Session) -> str:
    """The page of a session as HTML text; the same folder gives the same text.

    Raises ArtifactMissing or ParseError if the manifest is, UsageError if its verb has no page. Whatever else is missing
    is said on the page.
    """
    manifest = session.read_json("manifest.json")
    verb = manifest.get("verb")
    if not isinstance(verb, str) or verb not in VIEWS:
        raise UsageError(f"{session.folder / 'manifest.json'}: verb: expected one of {', '.join(VIEWS)}, got {verb!r}")
    shown = _view(verb)
    view = shown.read(session)
    return assemble(
        shown.TEMPLATE,
        view.draw(),
        view=view,
        manifest=manifest,
        command=command(manifest),
        facts=group(manifest),
    )


def assemble(
    template: str,
    figures: Mapping[str, go.Figure],
    *,
    styles: tuple[str, ...] = ("style.css",),
    scripts: tuple[str, ...] = ("page.js",),
    **content: Any,
) -> str:
    """The shell around a view: theme, script, policy, figures; `content` is what the view's template reads."""
    environment = _environment()
    script = "\n".join(('"use strict";', "(() => {", *(_source(environment, name) for name in scripts), "})();"))
    drawn = {name: _embed(figure) for name, figure in figures.items()}
    return environment.get_template(template).render(
        drawn=drawn,
        library=_library() if drawn else None,
        style=Markup("\n".join(_source(environment, name) for name in styles)),  # our own files
        script=Markup(script),  # our own files
        digest=_digest(script),
        **content,
    )


def write(session: Session, path: Path | None = None) -> Path:
    """Write report.html into the session folder, or `path`, and return its path."""
    return save(path or session.folder / "report.html", render(session))


def save(path: Path, text: str) -> Path:
    """Write a page, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # still there only if writing failed
    return path


def command(manifest: Mapping[str, Any]) -> str:
    """The command line, quoted so that a shell takes it back."""
    words = schema.texts(manifest.get("argv"))
    return shlex.join(("probe", *words))


def group(manifest: Mapping[str, Any]) -> list[Facts]:
    """What a manifest says and the page does not say elsewhere: the plain fields first, then a group for each object in it."""
    fields = {key: value for key, value in manifest.items() if key not in _TOLD and value not in ([], {}, "")}
    plain = {key: value for key, value in fields.items() if not _is_table(value)}
    nested = {key: value for key, value in fields.items() if _is_table(value)}
    groups = [_facts(key, value) for key, value in ({"run": plain} | nested).items()]
    return [facts for facts in groups if facts.rows]


def _facts(title: str, value: Any) -> Facts:
    rows = _flatten(value)
    return Facts(_titled(title), rows if title in _NAMED else [(_titled(name), text) for name, text in rows])


def _titled(name: str) -> str:
    """`weight_bytes` -> `Weight bytes`, `clocks.max.sm` -> `Clocks max sm`."""
    return "GPU" if name == "gpu" else f"{name[:1].upper()}{name[1:]}".replace("_", " ").replace(".", " ")


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [row for key, item in value.items() for row in _flatten(item, f"{prefix}.{key}" if prefix else str(key))]
    if _is_table(value) and len(value) == 1:
        return _flatten(value[0], prefix)
    if _is_table(value):
        return [(str(number), _in_line(item)) for number, item in enumerate(value, 1)]
    return [(prefix, _text(prefix, value))]


def _in_line(item: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in _flatten(item)) if isinstance(item, Mapping) else str(item)


def _text(name: str, value: Any) -> str:
    if value is None:
        return units.ABSENT
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    if name.endswith("bytes") and (number := schema.real(value)) is not None:
        return f"{units.size(number)} ({units.count(number)} bytes)"
    if isinstance(value, str) and name in _SMI:
        return f"{value} {_SMI[name]}"
    return units.moment(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def breakable(text: str) -> Markup:
    """Escaped text that may be broken after a slash; copied, it is the same text."""
    return Markup(str(escape(units.visible(text))).replace("/", "/<wbr>"))  # escaped


def linked(body: Markup) -> Markup:
    """A page's body with links to its sections behind the verdict: addresses to send on as well; a short page needs none."""
    sections = _SECTION.findall(_LATER.sub("", body))
    if len(sections) < LINKED:
        return body
    links = "\n".join(f'<a href="#{key}">{title}</a>' for key, title in sections)
    verdict, end, rest = str(body).partition("</section>")
    return Markup(
        f'{verdict}{end}\n<nav class="contents" aria-label="On this page">\n{links}\n</nav>{rest}'
    )  # escaped before


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("reports"), autoescape=True, undefined=StrictUndefined, finalize=_finalize,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals["units"] = units
    environment.filters |= {"breakable": breakable, "linked": linked}
    return environment


def _finalize(value: Any) -> Any:
    """Every text that a template shows passes here: control and reordering characters become visible escapes."""
    return units.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _source(environment: Environment, name: str) -> str:
    loader = environment.loader
    assert loader is not None
    return loader.get_source(environment, name)[0].strip()


def _embed(figure: go.Figure) -> Drawn:
    content = figure.to_json()
    assert content is not None
    return Drawn(inert(content), figure.layout.height)


def inert(content: str) -> Markup:
    """JSON that cannot end the script element around it."""
    for character in "<>&":
        content = content.replace(character, f"\\u{ord(character):04x}")
    return Markup(content)  # no character of HTML is left in it


def _view(verb: str) -> ModuleType:
    """The module with TEMPLATE and read(session) -> view with draw(); only one is wanted, and plotly is slow to import."""
    if verb == "bisect":
        from reports.pages import bisection

        return bisection
    if verb == "printf":
        from reports.pages import printed

        return printed
    from reports.pages import ladder

    return ladder


@cache
def _library() -> Library:
    from plotly.offline import get_plotlyjs

    source = get_plotlyjs().replace("\r\n", "\n")
    return Library(base64.b64encode(zlib.compress(source.encode(), 9)).decode("ascii"), _digest(source))


def _digest(script: str) -> str:
    """As a content security policy names an inline script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}"
