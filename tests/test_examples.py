import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_two_heads():
    run = runpy.run_path(str(EXAMPLES / "two_heads.py"))["run"]
    (before, free, _), (same, held, b) = run(0.0), run(1e5)
    assert before == same
    assert free < held
    assert abs(before - held) < 0.005
    assert b > 0.9
