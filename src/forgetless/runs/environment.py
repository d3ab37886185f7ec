"""What a result may depend on besides its configuration: versions, revision, processor and how it computes."""

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from forgetless import ranks

DECIDING = ("torch", "processor", "instruction_set", "blas", "onednn", "variables", "device", "processes")
"""What decides the last bits of a result, and with them, after some hundred steps, all of it."""

_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "GLIBC_TUNABLES",
)


def environment(device: str = "cpu") -> dict[str, str | int | None]:
    """What a result may depend on besides its configuration.

    Args:
        device: The device that does the work.

    Returns:
        Versions, git revision of the source (None outside a checkout), processor, the instruction set and the libraries
        that PyTorch computes with there, the environment variables that choose among these, the device, and how many
        processes of torchrun train together.
    """
    import torch

    packages = ("forgetless", "torch", "numpy", "scipy", "scikit-learn")
    is_cuda = device.startswith("cuda") and torch.cuda.is_available()
    accelerator = torch.cuda.get_device_name(device) if is_cuda else None
    return {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
        "git_revision": _git_revision(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "blas": _built_with(r"(Intel.*Math Kernel Library.*?) for |(OpenBLAS.*)"),
        "onednn": _built_with(r"MKL-DNN (\S+)"),
        "variables": ", ".join(f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ) or "none set",
        "device": accelerator or device,
        "processes": ranks.num_processes(),
    }


def differing(recorded: Mapping[str, object], present: Mapping[str, object]) -> dict[str, object]:
    """What decides the last bits of a result and is not as it was recorded.

    Args:
        recorded: From an environment.json, perhaps of a version that recorded less.
        present: From `environment`.

    Returns:
        The present values by name.
    """

    def kind(value: object) -> str:
        return re.sub(r" \(\d+ logical\)$", "", str(value))  # how many cores there are decides nothing

    return {
        name: present[name] for name in DECIDING if name in recorded and kind(recorded[name]) != kind(present[name])
    }


def _built_with(pattern: str) -> str | None:
    """What PyTorch's own description says of a library."""
    import torch

    found = re.search(pattern, torch.__config__.show())
    return None if found is None else next(filter(None, found.groups()), None)


def _git_revision() -> str | None:
    """The commit of the source, with `-dirty` where tracked files differ from it; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        # The package may lie in somebody else's repository, inside an environment: only its own source counts.
        tracked = subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name], cwd=folder, capture_output=True, check=False
        )
        if tracked.returncode:
            return None
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            check=False,
            text=True,
        )
    except OSError:
        return None
    return described.stdout.strip() or None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} logical)" if names else platform.processor()
