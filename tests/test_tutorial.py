"""The pages that teach run as they stand, from top to bottom, and what they claim is so."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def run_page(name, monkeypatch, tmp_path, smaller=()):
    """Runs the Python blocks of a page in one namespace, in an empty working folder; returns the namespace.

    Args:
        name: Of the page.
        monkeypatch: For the working folder.
        tmp_path: It.
        smaller: Pairs of what the page says and what is said instead, to save time.
    """
    text = (DOCS / name).read_text(encoding="utf-8")
    for said, instead in smaller:
        assert said in text
        text = text.replace(said, instead)
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert blocks
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, name, "exec"), names)
    return names


def test_tutorial(monkeypatch, tmp_path):
    names = run_page("tutorial.md", monkeypatch, tmp_path)
    assert names["unprotected"] > 0.1
    assert names["kept"] < names["unprotected"] / 2
    assert names["scores"][0] < names["scores"][names["best"]] > names["scores"][1000]
    assert names["increase"] <= 0.05 + 0.03  # between two measurements it may be passed a little
    assert names["accuracy"](names["model_b"], names["digits"].test, names["odd"]) > 0.85


# Two processes run sharded.md in test_sharded.py; fine-tuning.md needs a model, below.
@pytest.mark.parametrize("page", sorted(path.name for path in (DOCS / "how-to").glob("*.md")))
def test_how_to(page, restored_registries, monkeypatch, tmp_path):
    if page not in {"sharded.md", "fine-tuning.md"} and "```python" in (DOCS / "how-to" / page).read_text(
        encoding="utf-8"
    ):
        run_page(f"how-to/{page}", monkeypatch, tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:'pin_memory' argument")
def test_how_to_fine_tune(monkeypatch, tmp_path):
    for package in ("transformers", "accelerate"):
        pytest.importorskip(package, reason="needs the extra `transformers`")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from small_gpt import pretrained_gpt

    pretrained_gpt(tmp_path / "my-model", tmp_path / "new.txt")
    smaller = [("sample_length=64", "sample_length=24"), ("i : i + 64", "i : i + 24")]  # own texts and the new one
    names = run_page("how-to/fine-tuning.md", monkeypatch, tmp_path, smaller)
    report = names["callback"].report
    assert report.steps == 40
    assert report.increase <= report.upper <= 0.05 + 1e-9
    assert (tmp_path / "fine-tuned" / "model.safetensors").is_file()
