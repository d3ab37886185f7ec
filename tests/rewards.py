"""Rewards with a known optimum, for the tests of strategies."""


def share_equal(space, target):
    """A reward: the share of decisions that are the target's, of those that have several options."""
    free = [position for position, options in enumerate(space.num_choices) if options > 1]

    def reward(architecture):
        decisions = space.encode(architecture)
        return sum(decisions[position] == target[position] for position in free) / len(free)

    return reward
