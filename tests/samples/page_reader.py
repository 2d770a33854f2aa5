"""A page taken apart as a browser would, and what every page must hold to."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser


class Reader(HTMLParser):
    """A page as a browser would take it apart: elements, the text to be read, the content of its scripts."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.words, self.scripts, self.inside = [], [], [], {}, None
        self.feed(source)
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self.inside = dict(attributes).get("id", tag)

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.inside = None

    def handle_data(self, data):
        if self.inside is None:
            self.words.append(data)
        else:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data


def check_structure(elements):
    """Ids are there once, whatever refers to one finds it, and what can be reached by keyboard has a name."""
    ids = Counter(found["id"] for _, found in elements if "id" in found)
    assert max(ids.values()) == 1
    for tag, found in elements:
        references = [
            found[name]
            for name in ("aria-labelledby", "aria-describedby", "data-copy", "data-filter", "data-figure")
            if name in found
        ]
        references += [found["href"].removeprefix("#")] if "href" in found else []
        assert set(references) <= set(ids), (tag, found)
        if tag in ("table", "nav", "aside", "canvas") or found.get("role") in ("group", "figure"):
            assert found.get("aria-label") or found.get("aria-labelledby"), (tag, found)
        if tag == "th":
            assert found.get("scope") == "col"
    assert [tag for tag, _ in elements].count("h1") == 1
