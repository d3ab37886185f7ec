"""What tests of figures, pages and tables look at."""

import base64
import io
import re
import typing
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
from rich.console import Console


def line(ax, gid):
    """The lines that a panel draws under a name, end to end."""
    found = [drawn for drawn in ax.lines if drawn.get_gid() == gid]
    assert found, f"no line {gid!r}"
    return tuple(np.concatenate([drawn.get_data()[i] for drawn in found]) for i in (0, 1))


def expect_readable(figure):
    """No text covers another or leaves the figure."""
    figure.draw_without_rendering()
    hidden = hidden_labels(figure)
    texts = [t for t in figure.findobj(mpl.text.Text) if t.get_text().strip() and t.get_visible()]
    texts = [t for t in texts if t not in hidden]
    boxes = [t.get_window_extent() for t in texts]
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 - 1 <= box.x0, texts[i]
        assert box.x1 <= figure.bbox.x1 + 1, texts[i]
        assert figure.bbox.y0 - 1 <= box.y0, texts[i]
        assert box.y1 <= figure.bbox.y1 + 1, texts[i]
        for j in range(i):
            assert not box.padded(-2).overlaps(boxes[j].padded(-2)), (texts[i], texts[j])


def hidden_labels(figure):
    """Tick labels that matplotlib keeps but does not draw: those of the other side, beyond the axis, or without one."""
    hidden = []
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            is_drawn = axis.axes.axison and low <= tick.get_loc() <= high
            hidden += [tick.label2] if is_drawn else [tick.label1, tick.label2]
    return hidden


class Page(HTMLParser):
    """Collects what a test asks about: links, tags left open, text."""

    VOID: typing.ClassVar = {"meta", "img", "br", "link", "input", "hr"}

    def __init__(self, html):
        super().__init__()
        self.links, self.open, self.ids, self.tags, self.words = [], [], [], [], []
        self.feed(html)
        assert not self.open, f"left open: {self.open}"
        assert len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href", "srcset", "data", "action", "poster"}]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"style", "script"}:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def expect_whole(html):
    """The page needs nothing from outside of it; returns it."""
    page = Page(html)
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "script" not in page.tags
    assert not re.search(r"@import|url\(", html)
    for link in page.links:
        if link.startswith("data:"):
            svg = ET.fromstring(base64.b64decode(link.removeprefix("data:image/svg+xml;base64,")))
            hrefs = [v for e in svg.iter() for k, v in e.attrib.items() if k.endswith("href")]
            assert all(href.startswith("#") for href in hrefs)
    return page


def printed(table, width=80):
    """What the terminal shows, line by line."""
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    return [text.rstrip() for text in console.file.getvalue().splitlines()]
