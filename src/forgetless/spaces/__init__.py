"""What a search chooses from. Each space is a folder of this package, with its supernet; one line registers it."""

from forgetless.spaces.base import SPACES, Architecture, Edge, SearchSpace, Space, SpaceOptions

__all__ = ["SPACES", "Architecture", "Edge", "SearchSpace", "Space", "SpaceOptions"]
