"""What the rules have in common that need images."""

from forgetless.spaces.base import SearchSpace


def why_no_images(space: SearchSpace, reason: str) -> str:
    """A sentence for spaces whose task is another; empty for images.

    Args:
        space: With its supernet.
        reason: How the sentence begins.
    """
    return "" if space.task == "images" else f"{reason}, which the task of this space ({space.task}) does not have."
