"""What a result may depend on besides its configuration: versions, revision, processor."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch


def environment(device: str = "cpu") -> dict[str, str | int | None]:
    """What a result may depend on besides its configuration.

    Args:
        device: The device that does the work.

    Returns:
        Versions, git revision of the source (None outside a checkout), processor or accelerator.
    """
    packages = ("forgetless", "torch", "numpy", "scipy", "scikit-learn")
    accelerator = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
        "git_revision": _git_revision(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "device": accelerator or device,
    }


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
