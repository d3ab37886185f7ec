"""Architecture search on shared weights, with and without protection, and the forgetting in it as it happens.

One epoch: the strategy proposes architectures one at a time; each trains its weights in the supernet for some batches
under the protection, its error err₁ is recorded, and it is consolidated; then all of the epoch's architectures are
evaluated again (err₂), and the strategy learns from rewards. Every arm of a seed starts from the same weights and sees
the same batches.

Four held-out texts or image sets keep the numbers apart: `importance` for the Fisher, the first half of `validation`
for rewards, its second half for err₁ and err₂, `test` for the derived architecture alone.

Sources: Pham et al. 2018 (ENAS, arXiv:1802.03268); Benyahia et al. 2019 (arXiv:1902.08232), section 4.2.
"""

from forgetless.search.arms import SearchProgress, measure_arms, reconcile, run, shared_weight_rewards
from forgetless.search.config import SearchArm, SearchConfig, search_arms
from forgetless.search.epoch import Search
from forgetless.search.folder import run_in_folder
from forgetless.search.records import check_records, read_records
from forgetless.search.setup import check_memory, fixed_sample, load_task, make_space, make_supernet, memory_bytes

__all__ = [
    # what to do
    "SearchArm",
    "SearchConfig",
    "search_arms",
    # doing it
    "Search",
    "SearchProgress",
    "measure_arms",
    "reconcile",
    "run",
    "run_in_folder",
    "shared_weight_rewards",
    # what it leaves
    "check_records",
    "read_records",
    # what it begins with
    "check_memory",
    "fixed_sample",
    "load_task",
    "make_space",
    "make_supernet",
    "memory_bytes",
]
