"""What MkDocs does beside its own: pages from outside docs/, links that work on a forge as well, and mathematics.

A page may link to any file of the repository by a relative path. Pages outside of docs/ (README.md, CONTRIBUTING.md,
CHANGELOG.md, results/*.md) become pages of the site; every other file that is linked is copied beside them.
Formulas become SVG, which needs neither a script nor a font.
"""

import html
import os
import posixpath
import re
import warnings
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # ziamath 0.13 reads its font by importlib.resources.path
    import ziamath

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
_INLINE_SIZE, _DISPLAY_SIZE = 16, 18  # pixels; the text has 16
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def _pages() -> dict[str, str]:
    """The pages from outside docs/: where each is in the repository, and where on the site."""
    results = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "results").glob("**/*.md"))
    return {name: name for name in ("README.md", *results, "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")}


def on_config(config: MkDocsConfig) -> None:
    """Add the pages from outside to the navigation."""
    results = [name for name in _pages() if name.startswith("results/")]
    overview = [{"Overview": name} for name in results if name == "results/README.md"]
    config.nav += [
        {"Results": [*overview, *(name for name in results if name != "results/README.md")]},
        {"Project": [{"Contributing": "CONTRIBUTING.md"}, {"Changelog": "CHANGELOG.md"}, {"Security": "SECURITY.md"}]},
    ]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages from outside, and the files that pages link to."""
    for name in _pages():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for page in list(files.documentation_pages()):
        text = Path(page.abs_src_path).read_text(encoding="utf-8")
        for _, link, _ in _LINK.findall(text):
            name = _target(page.src_uri, link)
            is_file = name is not None and (ROOT / name).is_file()
            if is_file and not name.startswith("docs/") and files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between files of the site."""

    def replaced(found: re.Match[str]) -> str:
        text, link, anchor = found.groups()
        if (name := _target(page.file.src_uri, link)) is None:
            return found[0]
        if (ROOT / name).is_dir():
            return text  # a forge lists a folder, a site does not
        here = posixpath.dirname(page.file.src_uri) or "."
        return f"[{text}]({posixpath.relpath(name.removeprefix('docs/'), here)}{anchor or ''})"

    return _LINK.sub(replaced, markdown)


def _target(page: str, link: str) -> str | None:
    """The file of the repository that a relative link names, from the page's place on the site; None if none."""
    folder = posixpath.dirname(page if page in _pages() else f"docs/{page}")
    name = posixpath.normpath(posixpath.join(folder, link))
    if (ROOT / name / "README.md").is_file():
        name = f"{name}/README.md"
    return name if not name.startswith("..") and os.path.lexists(ROOT / name) else None


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draw formulas when the site is built."""
    return _FORMULA.sub(lambda found: _drawn(found[1], html.unescape(found[2]).strip()), content)


def _drawn(tag: str, latex: str) -> str:
    is_inline = tag == "span"
    size = _INLINE_SIZE if is_inline else _DISPLAY_SIZE
    formula = ziamath.Latex(latex, size=size, color="currentColor", inline=is_inline)
    height = f"style='vertical-align: {formula.getyofst():.1f}px' " if is_inline else ""
    label = html.escape(latex, quote=True).replace("\n", " ")
    picture = formula.svg().replace("<svg ", f'<svg {height}role="img" aria-label="{label}" ', 1)
    return f'<{tag} class="formula">{picture}</{tag}>'
