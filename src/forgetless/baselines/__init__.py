"""Scores of architectures that need no search, behind one interface: what a search must select better than.

Each is a file of this package: its class with formula, source and sign, and one line that registers it.
"""

from forgetless.baselines.base import BASELINES, Baseline, Subject

__all__ = ["BASELINES", "Baseline", "Subject"]
