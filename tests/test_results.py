import ast
import json
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_fault_that_is_listed_has_its_test():
    for fault, test in json.loads((ROOT / "results" / "faults.json").read_text()).items():
        path, _, name = test.partition("::")
        defined = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(node, "name")}
        assert name in defined, fault
