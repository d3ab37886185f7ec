"""The pages of results say what the committed runs say."""

import ast
import json
import re
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_pages_are_up_to_date(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "results")
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    code = runpy.run_path(str(ROOT / "results" / "tables.py"))["main"]()
    assert code == 0, f"{capsys.readouterr().out} Run `python results/tables.py`."


def test_links_of_pages_lead_to_pages():
    pages = [ROOT / "results" / "README.md", *(ROOT / "results" / "pages").glob("*.md")]
    links = {(page.parent / link).resolve() for page in pages for link in re.findall(r"\]\((.*?)\)", page.read_text())}
    assert links == {page.resolve() for page in pages}  # and every page has a link to it


def test_every_fault_that_is_listed_has_its_test():
    for fault, test in json.loads((ROOT / "results" / "faults.json").read_text()).items():
        path, _, name = test.partition("::")
        defined = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(node, "name")}
        assert name in defined, fault
