"""Write results/README.md and results/pages from what is committed here: every number with its command.

$ python results/tables.py          # writes
$ python results/tables.py --check  # exit code 1 and the names of the pages that are not up to date
"""

import sys
from pathlib import Path

import benchmark_pages
import budget_pages
import comparisons
import frontiers
import graph_pages
import one_alpha
import peers
import practice
import published
import searches
import two_models
from page import HERE, PAGES, Page

from forgetless.runs import write_atomically

TOPICS = {
    "Two models on MNIST": two_models.pages,
    "Searches": searches.pages,
    "Searches judged by a benchmark": comparisons.pages,
    "Benchmarks": lambda: [*benchmark_pages.pages(), *graph_pages.pages()],
    "One α": one_alpha.pages,
    "Fine-tuning": lambda: [*frontiers.pages(), *budget_pages.pages()],
    "Published protocols": published.pages,
    "Practice": practice.pages,
    "Other libraries": peers.pages,
}

INTRODUCTION = """# Results

One page per experiment: question, answer, command, time, and every number. How to read the tables:

- Numbers are means over seeds with 95 % intervals: Student's t for means, percentile bootstrap for reductions. All
  arms of a seed start from the same weights and see the same batches.
- *Forgetting* of two models: the points of accuracy that A loses while B trains. In a search: the rise of a model's
  error from the end of its training (err₁) to the end of the epoch (err₂). Negative is progress.
- *Reduction*: the share of unprotected forgetting that is prevented, on the same seeds.
- *B against unprotected*: B's accuracy minus unprotected B's, on the same seeds. Positive is better.
- `wpl`: weight plasticity; `nsas`: replay.
"""

REPRODUCTION = """## Reproduce

Run a page's command; `FORGETLESS_DATA` names the folder with `mnist`, `ptb` and `cifar10`. `python results/tables.py`
writes these pages from the run folders; `forgetless report FOLDER` draws one.
"""


def index(topics: dict[str, list[Page]]) -> str:
    """The page that has a line for each of the others."""
    parts = [INTRODUCTION]
    for topic, pages in topics.items():
        if not pages:
            continue
        parts.append("\n".join([f"## {topic}\n", *(page.line() for page in pages if page.is_listed), ""]))
    return "\n".join([*parts, REPRODUCTION])


def made() -> dict[Path, str]:
    """File → what it is to say."""
    topics = {topic: pages() for topic, pages in TOPICS.items()}
    texts = {PAGES / f"{page.name}.md": page.text() for pages in topics.values() for page in pages}
    return {HERE / "README.md": index(topics), **texts}


def stale(texts: dict[Path, str]) -> list[Path]:
    """The files that say something else, and those that no script writes any more."""
    others = [path for path in texts if not path.is_file() or path.read_text(encoding="utf-8") != texts[path]]
    return others + sorted(set(PAGES.glob("*.md")) - set(texts))


def main() -> int:
    texts = made()
    found, is_check = stale(texts), "--check" in sys.argv
    for path in found:
        if not is_check and path in texts:
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, texts[path])
        elif not is_check:
            path.unlink()
        done = "is stale" if is_check else "written" if path in texts else "removed"
        print(f"{path.relative_to(HERE.parent)} {done}")
    return int(is_check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
