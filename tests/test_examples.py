import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_two_heads():
    run = runpy.run_path(str(EXAMPLES / "two_heads.py"))["run"]
    (before, free, _), (same, held, b) = run(0.0), run(1e5)
    assert before == same
    assert free < held
    assert abs(before - held) < 0.005
    assert b > 0.9


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of transformers at its import
def test_transformer_two_heads(monkeypatch):
    pytest.importorskip("transformers", reason="needs the extra `transformers`")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = runpy.run_path(str(EXAMPLES / "transformer_two_heads.py"))["run"]
    (before, free, _), (same, held, b) = run(0.0, steps=60), run(1e5, steps=60)
    assert before == same
    assert before > 0.35  # of five parts, equally many verses each
    assert free < before - 0.03
    assert before - held < (before - free) / 2
    assert b > 0.1
