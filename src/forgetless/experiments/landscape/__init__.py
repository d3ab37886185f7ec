"""The loss landscape that B's training crosses: a plane through the shared weights, with the paths of every arm.

Figure 2 of Benyahia et al., Overcoming Multi-Model Forgetting, ICML 2019 (arXiv:1902.08232) is a drawing; this measures
it. Model A is trained, then B on the same data and on some of A's layers, once under each protection and with the loop
of the two-model experiment. Where the shared weights went is shown on a plane through A's weights, over A's and B's
loss on held-out images, with the ellipse on which the Fisher information expects A's loss to have risen by so much.
"""

from typing import TYPE_CHECKING

from forgetless.experiments.landscape.config import LandscapeConfig
from forgetless.experiments.landscape.kind import LandscapeRun
from forgetless.lazy import lazily

if TYPE_CHECKING:
    from forgetless.experiments.landscape.records import ArmRecord, SurfaceRecord
    from forgetless.experiments.landscape.result import LandscapeResult

__all__ = ["ArmRecord", "LandscapeConfig", "LandscapeResult", "LandscapeRun", "SurfaceRecord"]

__getattr__ = lazily(__name__, {"ArmRecord": "records", "LandscapeResult": "result", "SurfaceRecord": "records"})
