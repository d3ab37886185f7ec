"""What the report calls what is selected of a two-model run: panels, models and arms."""

from collections.abc import Sequence
from functools import cached_property

from forgetless.experiments.two_model.selection import Group, Panel, Selection, panels_of
from forgetless.options import number
from forgetless.report.formats import arm_label, counted, listed
from forgetless.report.sentences import diverged


class Shown(Selection):
    """A result, as figures, tables and sentences show it."""

    @cached_property
    def names(self) -> dict[Panel, str]:
        """The panels that have runs, and what distinguishes each from the others."""
        return {panel: panel_name(panel, self.panels) for panel in self.panels}

    @property
    def later(self) -> str:
        """Those of the models trained after A: `B`, `B to F`."""
        return listed(self.letters[1:])

    @property
    def is_chain(self) -> bool:
        """Whether there are more than two models."""
        return self.result.config.chain.models > 2

    @property
    def labels(self) -> dict[str, str]:
        """Protection → its name and strength, of all that is shown."""
        return {group.protection: label_of(group) for group in self.groups()}

    @property
    def diverged(self) -> list[str]:
        """Which arms diverged, in one sentence; none if none did."""
        lost = self.result.diverged
        where = " ({0.shared} shared, convergence {1})" if len(panels_of(self.result, lost)) > 1 else ""
        return diverged(
            [(run.arm.label + where.format(run.arm, number(run.arm.convergence)), run.arm.seed) for run in lost]
        )


def label_of(group: Group) -> str:
    """Name and strength."""
    return arm_label(group.protection, group.strength)


def panel_name(panel: Panel, among: Sequence[Panel]) -> str:
    """What distinguishes a panel from the others, such as `A stopped at 43 %`; everything, if it is the only one.

    >>> panel_name(Panel(3, 0.43), [Panel(3, 1.0), Panel(3, 0.43)])
    'A stopped at 43 %'
    >>> panel_name(Panel(1, 1.0), [Panel(1, 1.0)])
    '1 shared layer, A trained to convergence'
    """
    shared = counted(panel.shared, "shared layer")
    percent = number(round(100 * panel.convergence, 6))
    trained = "A trained to convergence" if panel.convergence == 1 else f"A stopped at {percent} %"
    varies_shared = len({other.shared for other in among}) > 1
    varies_convergence = len({other.convergence for other in among}) > 1
    if varies_shared == varies_convergence:
        return f"{shared}, {trained}"
    return shared if varies_shared else trained
