"""The ENAS recurrent supernet: a language model whose cell is any architecture of a `RecurrentSpace`.

Two paths compute the same thing. The plain path (`fused=False`) is a few lines of ordinary operations; it is the
definition, and what `torch.func` transforms go through. The fused path, the default, is about as fast as an
`nn.LSTM` of the same size on a CPU (`benchmarks/recurrent_step.py`), by three means:

- nodes that read the same node are one matrix product;
- the backward pass through time is written out. What does not depend on the incoming gradient (the derivatives of
  gates and activations) and the weights' gradients are computed for a block of steps at once, not step by step;
- logits are never written out whole. The cross entropy and its gradient are computed a few rows at a time, so that
  they stay in the cache.

Numbers near the smallest representable one (denormals) slow CPU arithmetic several times, and a saturated softmax is
full of them: call `torch.set_flush_denormal(True)` at the start of a program that trains on the CPU.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from forgetless import ranks
from forgetless.errors import InputError
from forgetless.spaces.recurrent import RecurrentArchitecture, RecurrentSpace
from forgetless.supernet import Supernet

# Logits are computed for so many numbers at a time: 8 MiB in float32, which a CPU's cache holds.
_CHUNK_NUMBERS_CPU = 2**21
_CHUNK_NUMBERS_GPU = 2**26
# The backward pass through time works on blocks of so many rows (steps × sequences).
_BLOCK_ROWS = 512

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "identity": lambda x: x,
    "sigmoid": torch.sigmoid,
}
_ACTIVATIONS_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh_,
    "relu": torch.relu_,
    "identity": lambda x: x,
    "sigmoid": torch.sigmoid_,
}


class RecurrentSupernet(Supernet[RecurrentArchitecture]):
    """A recurrent language model for every architecture of a space, with weights shared between them.

    One step with input x and previous state h, H units each, and nodes i that read node j (Pham et al. 2018,
    arXiv:1802.03268, section 2.1; σ the sigmoid, ⊙ the elementwise product):

        c₀ = σ(x Wˣᶜ + h Wʰᶜ)        h₀ = c₀ ⊙ tanh(x Wˣ + h Wʰ) + (1 − c₀) ⊙ h
        cᵢ = σ(hⱼ Wⱼᵢᶜ)              hᵢ = cᵢ ⊙ actᵢ(hⱼ Wⱼᵢ) + (1 − cᵢ) ⊙ hⱼ

    The new state and output is the mean of the nodes that no node reads. Each pair (j, i) has its own weights, used
    by every architecture with that edge, whatever its activation (the paper's rule; the code released with it has
    weights per activation as well, and batch normalisation in the search). There are no biases but the decoder's.
    The decoder's matrix is the word embedding (Press and Wolf 2017, arXiv:1608.05859).

    Dropout, in training mode only, is locked: one mask per sequence, the same at every step (Gal and Ghahramani 2016,
    arXiv:1512.05287). `weight_drop` drops single weights of the state and node matrices, one mask per call (Merity et
    al. 2018, arXiv:1708.02182).

    Weights start uniform in ±0.04 √(1000/H): the ±0.04 of the released ENAS code at the paper's 1,000 units, with
    the matrices' gain kept at other sizes (that code steps to ±0.05 at 400 and ±0.1 at 300 units).

    Args:
        num_words: V, the vocabulary; tokens are 0 … V − 1.
        num_units: H, the size of embedding, state and every node.
        space: Which architectures.
        dropout_input: Probability that a unit of the embedded word is dropped, in [0, 1).
        dropout_state: The same for h, and hⱼ, where they enter a matrix product (the highway's copy is never dropped).
        dropout_output: The same for the output on its way to the decoder.
        weight_drop: Probability that a single weight of Wʰ and Wⱼᵢ is dropped.
        fused: Use the fast path. Set it False for derivatives beyond the first; under `torch.func` transforms the
            plain path is chosen by itself.

    Raises:
        InputError: If a size is not positive or a probability lies outside [0, 1).

    >>> _ = torch.manual_seed(0)
    >>> space = RecurrentSpace(3)
    >>> supernet = RecurrentSupernet(num_words=20, num_units=8, space=space)
    >>> cell = space.parse("tanh(0) relu(1) sigmoid(1)")
    >>> logits, state = supernet(torch.zeros(2, 5, dtype=torch.long), cell)
    >>> logits.shape, state.shape
    (torch.Size([2, 5, 20]), torch.Size([2, 8]))
    >>> list(supernet.used_parameters(cell))
    ['embedding', 'decoder_bias', 'input_weight', 'state_weight', 'edges.0_1', 'edges.1_2', 'edges.1_3']
    """

    outside_cell: ClassVar[tuple[str, ...]] = ("embedding", "decoder_bias")

    def __init__(
        self,
        num_words: int,
        num_units: int,
        space: RecurrentSpace,
        *,
        dropout_input: float = 0.0,
        dropout_state: float = 0.0,
        dropout_output: float = 0.0,
        weight_drop: float = 0.0,
        fused: bool = True,
    ) -> None:
        super().__init__()
        for name, size in (("num_words", num_words), ("num_units", num_units)):
            if size < 1:
                raise InputError(f"Expected {name} to be at least 1, but got {size}. Choose a positive size.")
        self.dropouts = {
            "dropout_input": dropout_input,
            "dropout_state": dropout_state,
            "dropout_output": dropout_output,
            "weight_drop": weight_drop,
        }
        for name, probability in self.dropouts.items():
            if not 0 <= probability < 1:
                raise InputError(f"Expected {name} to be in [0, 1), but got {probability}. 0 turns it off.")
        self.space = space
        self.num_units = num_units
        self.fused = fused
        # Bare parameters, not nn.Embedding and nn.Linear: the embedding is used in two places, and a tool that hooks
        # layers would see only one of them.
        self.embedding = nn.Parameter(torch.empty(num_words, num_units))
        self.decoder_bias = nn.Parameter(torch.empty(num_words))
        self.input_weight = nn.Parameter(torch.empty(num_units, 2 * num_units))  # [gate | candidate]
        self.state_weight = nn.Parameter(torch.empty(num_units, 2 * num_units))
        self.edges = nn.ParameterDict(
            {
                _edge(source, target): nn.Parameter(torch.empty(num_units, 2 * num_units))
                for target in range(1, space.num_nodes + 1)
                for source in range(target)
            }
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew from the global random state: uniform in ±0.04 √(1000/H), the decoder's bias 0."""
        bound = 0.04 * math.sqrt(1000 / self.num_units)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)
        nn.init.zeros_(self.decoder_bias)

    @staticmethod
    def num_parameters(num_words: int, num_units: int, space: RecurrentSpace) -> int:
        """How many weights a supernet of these sizes has, without making it: V H + V + (4 + N (N + 1)) H².

        Args:
            num_words: V.
            num_units: H.
            space: The space, of N nodes.

        >>> RecurrentSupernet.num_parameters(10_000, 1_000, RecurrentSpace(12))
        170010000
        """
        edges = space.num_nodes * (space.num_nodes + 1) // 2
        return num_words * num_units + num_words + (4 + 2 * edges) * num_units**2

    @staticmethod
    def memory_bytes(
        num_words: int, num_units: int, space: RecurrentSpace, batch_size: int, num_steps: int, *, copies: int = 4
    ) -> int:
        """About how much memory training takes in float32: `copies` of the weights, and the activations of one batch.

        Args:
            num_words: V.
            num_units: H.
            space: The space, of N nodes.
            batch_size: Sequences per batch.
            num_steps: Words per sequence.
            copies: Numbers kept per weight. 4: the weight, its gradient, its anchor and its importance; Adam adds 2.

        Returns:
            Bytes; within some 10 % for models of 100 MB and more, the interpreter and PyTorch themselves (about
            250 MB) not counted.

        >>> RecurrentSupernet.memory_bytes(10_000, 1_000, RecurrentSpace(12), 64, 35) / 2**30
        3.195...
        """
        weights = copies * RecurrentSupernet.num_parameters(num_words, num_units, space)
        # Per step and unit: input, projection, output, their gradients; per node gate, candidate, state, and the
        # backward pass's share.
        activations = batch_size * num_steps * num_units * (8 + 5 * (space.num_nodes + 1))
        return 4 * (weights + activations + 2 * max(_CHUNK_NUMBERS_CPU, num_words) + num_words * num_units)

    def used_parameters(self, architecture: RecurrentArchitecture) -> dict[str, nn.Parameter]:
        """The weights that `architecture` computes with, and no others, by their names in `named_parameters()`.

        Args:
            architecture: A member of the space.

        Raises:
            InputError: If it is not a member.
        """
        _plan(self.space, architecture)
        named = dict(self.named_parameters())
        names = ["embedding", "decoder_bias", "input_weight", "state_weight"]
        names += [f"edges.{_edge(node.predecessor, index)}" for index, node in enumerate(architecture.nodes, 1)]
        return {name: named[name] for name in names}

    def forward(
        self, tokens: Tensor, architecture: RecurrentArchitecture, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The logits of the next word after each word.

        Args:
            tokens: Words (B, T), integers.
            architecture: A member of the space.
            state: The state (B, H) that an earlier call returned, to go on from; zeros by default. It carries that
                call's graph: detach it for truncated backpropagation.

        Returns:
            Logits (B, T, V) and the state (B, H) after the last word.

        Raises:
            InputError: If the architecture is not a member, or tokens or state have other shapes.
        """
        outputs, state = self._outputs(tokens, architecture, state)
        return F.linear(outputs.transpose(0, 1), self.embedding, self.decoder_bias), state

    def loss(
        self, tokens: Tensor, targets: Tensor, architecture: RecurrentArchitecture, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The mean cross entropy of the next words, as `F.cross_entropy` of `forward`, in less time and memory.

        Args:
            tokens: Words (B, T), integers.
            targets: The words after them (B, T).
            architecture: A member of the space.
            state: As in `forward`.

        Returns:
            The loss in nats per token, a scalar, and the state (B, H) after the last word.

        Raises:
            InputError: If the architecture is not a member, or tokens, targets or state do not fit together.
        """
        if targets.shape != tokens.shape:
            raise InputError(
                f"Expected one target per token, shape {tuple(tokens.shape)}, but got {tuple(targets.shape)}. "
                "Targets are the tokens shifted by one."
            )
        outputs, state = self._outputs(tokens, architecture, state)
        hidden, words = outputs.flatten(0, 1), targets.t().flatten()  # (T·B, H), (T·B,)
        if not self._takes_fused_path():
            return F.cross_entropy(F.linear(hidden, self.embedding, self.decoder_bias), words), state
        keep = torch.is_grad_enabled()
        mean: Tensor = _DecoderCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, self.embedding, self.decoder_bias, words, keep
        )
        return mean, state

    def _outputs(
        self, tokens: Tensor, architecture: RecurrentArchitecture, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Outputs after dropout (T, B, H), time first, and the last state (B, H)."""
        plan = _plan(self.space, architecture)
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.numel() == 0:
            raise InputError(
                f"Expected tokens of shape (batch, steps), integers, but got {tuple(tokens.shape)}, {tokens.dtype}. "
                "Add a batch dimension to a single sequence."
            )
        batch_size = tokens.shape[0]
        if state is None:
            state = self.embedding.new_zeros(batch_size, self.num_units)
        elif state.shape != (batch_size, self.num_units):
            raise InputError(
                f"Expected a state of shape {(batch_size, self.num_units)}, but got {tuple(state.shape)}. Carry the "
                "state between batches of one size only."
            )
        words = F.embedding(tokens.t(), self.embedding)  # (T, B, H)
        words = _dropped(words, self._mask("dropout_input", batch_size))
        projected = words @ self.input_weight  # all steps at once: (T, B, 2H)
        mask = self._mask("dropout_state", batch_size)
        weight_drop = self.dropouts["weight_drop"]
        weights = [
            F.dropout(weight, weight_drop, self.training) if weight_drop else weight
            for weight in (self.state_weight, *(self.edges[_edge(*pair)] for pair in plan.pairs))
        ]
        if self._takes_fused_path():
            keep = torch.is_grad_enabled()
            outputs: Tensor = _FusedCell.apply(  # type: ignore[no-untyped-call]
                plan, keep, projected, state, mask, weights[0], *_grouped(plan, weights[1:])
            )
        else:
            outputs = _plain_cell(plan, projected, state, mask, weights[0], weights[1:])
        return _dropped(outputs, self._mask("dropout_output", batch_size)), outputs[-1]

    def _mask(self, name: str, batch_size: int) -> Tensor | None:
        """A locked mask (B, H) with entries 0 and 1/(1 − p), or None where nothing is dropped."""
        probability = self.dropouts[name]
        if not self.training or probability == 0:
            return None

        def draw(number: int) -> Tensor:
            return F.dropout(self.embedding.new_ones(number, self.num_units), probability)

        return ranks.rows_of_all(draw, batch_size)

    def _takes_fused_path(self) -> bool:
        # vmap and grad of torch.func cannot look into an autograd.Function that is written with in-place operations.
        return self.fused and not torch._C._are_functorch_transforms_active()


def _edge(source: int, target: int) -> str:
    return f"{source}_{target}"


def _dropped(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values * mask


# ---- what to compute in which order ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """The nodes that read one node, sorted by activation: one matrix product, one call per activation."""

    source: int
    nodes: tuple[int, ...]
    runs: tuple[tuple[str, int, int], ...]  # (activation, first place, place after the last)
    loose: tuple[int, ...]  # the places of nodes that nobody reads


@dataclass(frozen=True)
class _Plan:
    """An architecture, ready to compute."""

    architecture: RecurrentArchitecture
    groups: tuple[_Group, ...]  # by source, which is an order in which they can be computed
    place: dict[int, tuple[int, int]]  # node → (group, place in it)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Edges (source, target) by target: the order of the weights."""
        return [(node.predecessor, index) for index, node in enumerate(self.architecture.nodes, 1)]


@lru_cache(maxsize=4096)
def _plan(space: RecurrentSpace, architecture: RecurrentArchitecture) -> _Plan:
    space.encode(architecture)  # refuses strangers
    loose_ends = set(architecture.loose_ends)
    groups = []
    for source in sorted({node.predecessor for node in architecture.nodes}):
        readers = sorted(
            (node.activation, index) for index, node in enumerate(architecture.nodes, 1) if node.predecessor == source
        )
        names = [activation for activation, _ in readers]
        runs = tuple((name, names.index(name), names.index(name) + names.count(name)) for name in dict.fromkeys(names))
        nodes = tuple(index for _, index in readers)
        loose = tuple(place for place, index in enumerate(nodes) if index in loose_ends)
        groups.append(_Group(source, nodes, runs, loose))
    place = {node: (number, place) for number, group in enumerate(groups) for place, node in enumerate(group.nodes)}
    return _Plan(architecture, tuple(groups), place)


# ---- the plain path ----------------------------------------------------------------------------------------------


def _plain_cell(
    plan: _Plan,
    projected: Tensor,
    state: Tensor,
    mask: Tensor | None,
    state_weight: Tensor,
    edge_weights: Sequence[Tensor],
) -> Tensor:
    """The outputs (T, B, H) of all steps, as the class docstring defines them."""
    architecture = plan.architecture
    outputs = []
    for projection in projected:
        gate, candidate = (projection + _dropped(state, mask) @ state_weight).chunk(2, -1)
        nodes = [torch.lerp(state, candidate.tanh(), gate.sigmoid())]
        for node, weight in zip(architecture.nodes, edge_weights, strict=True):
            source = nodes[node.predecessor]
            gate, candidate = (_dropped(source, mask) @ weight).chunk(2, -1)
            nodes.append(torch.lerp(source, _ACTIVATIONS[node.activation](candidate), gate.sigmoid()))
        state = torch.stack([nodes[index] for index in architecture.loose_ends]).mean(0)
        outputs.append(state)
    return torch.stack(outputs)


# ---- the fused path ----------------------------------------------------------------------------------------------


def _grouped(plan: _Plan, edge_weights: Sequence[Tensor]) -> list[Tensor]:
    """The weights of each group's k nodes side by side: (H, 2, k, H), all gates before all candidates."""
    halves = [weight.view(len(weight), 2, -1) for weight in edge_weights]
    return [
        torch.stack([halves[node - 1] for node in group.nodes], 2)
        if len(group.nodes) > 1
        else halves[group.nodes[0] - 1].unsqueeze(2)
        for group in plan.groups
    ]


class _FusedCell(torch.autograd.Function):
    """All steps of the cell, forward and backward. Shapes: T steps, B sequences, H units, k nodes in a group."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: _Plan,
        keep: bool,
        projected: Tensor,  # (T, B, 2H)
        state: Tensor,  # (B, H)
        mask: Tensor | None,  # (B, H)
        state_weight: Tensor,  # (H, 2H)
        *group_weights: Tensor,  # (H, 2, k, H)
    ) -> Tensor:
        num_steps, batch_size, width = projected.shape
        units = width // 2
        # Without a backward pass, every step overwrites the one before, which stays in the cache.
        length = num_steps if keep else 1
        outputs = projected.new_empty(num_steps, batch_size, units)
        # Gates and candidates [c | a], and states, of node 0 and of each group.
        mixes = [projected.new_empty(length, batch_size, 2, 1, units)]
        mixes += [projected.new_empty(length, batch_size, *weight.shape[1:]) for weight in group_weights]
        states = [mix.new_empty(length, batch_size, *mix.shape[3:]) for mix in mixes]
        matrices = [weight.reshape(units, -1) for weight in group_weights]
        share = 1 / sum(len(group.loose) for group in plan.groups)

        # Views are made once for all steps, here and in the backward pass: making one costs as much as a small product.
        flat = [mix.flatten(2).unbind(0) for mix in mixes]
        gates = [mix[:, :, 0].unbind(0) for mix in mixes]
        candidates = [mix[:, :, 1].unbind(0) for mix in mixes]
        runs = [
            [(_ACTIVATIONS_IN_PLACE[name], mix[:, :, 1, start:stop].unbind(0)) for name, start, stop in group.runs]
            for group, mix in zip(plan.groups, mixes[1:], strict=True)
        ]
        new_states = [group_states.unbind(0) for group_states in states]
        sources = [_node_states(plan, states, group.source).unbind(0) for group in plan.groups]
        loose = [
            states[number][:, :, place].unbind(0)
            for number, group in enumerate(plan.groups, 1)
            for place in group.loose
        ]
        initial = state
        for step, (projection, output) in enumerate(zip(projected.unbind(0), outputs.unbind(0), strict=True)):
            t = step if keep else 0
            torch.addmm(projection, _dropped(state, mask), state_weight, out=flat[0][t])
            gates[0][t].sigmoid_()
            candidates[0][t].tanh_()
            torch.lerp(state.unsqueeze(1), candidates[0][t], gates[0][t], out=new_states[0][t])
            for number, matrix in enumerate(matrices, 1):
                source = sources[number - 1][t]
                torch.mm(_dropped(source, mask), matrix, out=flat[number][t])
                gates[number][t].sigmoid_()
                for activation, candidate in runs[number - 1]:
                    activation(candidate[t])
                torch.lerp(source.unsqueeze(1), candidates[number][t], gates[number][t], out=new_states[number][t])
            torch.mul(loose[0][t], share, out=output)
            for end in loose[1:]:
                output.add_(end[t], alpha=share)
            state = output
        if keep:
            ctx.plan = plan
            ctx.num_groups = len(plan.groups)
            ctx.save_for_backward(mask, initial, outputs, state_weight, *group_weights, *mixes, *states)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """From ∂L/∂(outputs) to ∂L/∂(inputs).

        With h = lerp(s, a, c) and dh known:

            d(gate's input) = dh ⊙ (a − s) ⊙ c (1 − c)      d(candidate's input) = dh ⊙ c ⊙ act′
            ds = dh ⊙ (1 − c) + [d(gate's input) | d(candidate's input)] Wᵀ

        The loop over steps multiplies the factors of dh by dh in place, which leaves the gradients of the products,
        and the weights' gradients follow from those. Factors and weights' gradients are computed for a block of steps
        at a time: large enough for efficient products, small enough to stay in the cache.
        """
        mask, initial, outputs, state_weight, *rest = ctx.saved_tensors
        plan, num_groups = ctx.plan, ctx.num_groups
        weights = [state_weight, *rest[:num_groups]]
        mixes, states = rest[num_groups : 2 * num_groups + 1], rest[2 * num_groups + 1 :]
        num_steps, batch_size, units = outputs.shape
        block = min(num_steps, max(1, _BLOCK_ROWS // batch_size))
        sources = [torch.cat([initial.unsqueeze(0), outputs[:-1]])]
        sources += [_node_states(plan, states, group.source) for group in plan.groups]
        all_runs = [(("tanh", 0, 1),)] + [group.runs for group in plan.groups]

        products = [mix.new_empty(block, *mix.shape[1:]) for mix in mixes]  # (block, B, 2, k, H)
        kept = [mix.new_empty(block, batch_size, *mix.shape[3:]) for mix in mixes]  # (block, B, k, H)
        product_steps = [product.unbind(0) for product in products]
        flat_steps = [product.flatten(2).unbind(0) for product in products]
        kept_steps = [complement.unbind(0) for complement in kept]
        transposed = [weight.reshape(units, -1).t() for weight in weights]

        # dh of each node at one step; a node that is read has it written by its readers' group, later in the order.
        grads = [mix.new_empty(batch_size, *mix.shape[3:]) for mix in mixes]
        targets = [
            grads[0][:, 0] if group.source == 0 else _at(grads, plan.place[group.source]) for group in plan.groups
        ]
        share = 1 / sum(len(group.loose) for group in plan.groups)
        grad_projected = torch.empty_like(mixes[0])
        grad_weights = [torch.zeros_like(weight).view(units, -1) for weight in weights]
        grad_state = torch.zeros_like(initial)
        for stop in range(num_steps, 0, -block):
            start = max(0, stop - block)
            for source, mix, runs, product, complement in zip(sources, mixes, all_runs, products, kept, strict=True):
                _lerp_factors(source[start:stop], mix[start:stop], runs, product, complement)
            for t in reversed(range(stop - start)):
                grad = ((grad_outputs[start + t] + grad_state) * share).unsqueeze(1)
                for number in range(num_groups, 0, -1):
                    group, dh = plan.groups[number - 1], grads[number]
                    if len(group.loose) == len(group.nodes):
                        dh = grad.expand_as(dh)
                    else:
                        for place in group.loose:
                            dh[:, place : place + 1] = grad
                    product_steps[number][t].mul_(dh.unsqueeze(1))
                    _into_source(
                        dh,
                        kept_steps[number][t],
                        flat_steps[number][t],
                        transposed[number],
                        mask,
                        targets[number - 1],
                    )
                product_steps[0][t].mul_(grads[0].unsqueeze(1))
                _into_source(grads[0], kept_steps[0][t], flat_steps[0][t], transposed[0], mask, grad_state)
            grad_projected[start:stop] = products[0][: stop - start]
            for source, product, grad_weight in zip(sources, products, grad_weights, strict=True):
                rows = _dropped(source[start:stop], mask).reshape(-1, units)
                grad_weight.addmm_(rows.t(), product[: stop - start].view(len(rows), -1))

        grads_of_weights = [grad.view_as(weight) for grad, weight in zip(grad_weights, weights, strict=True)]
        return None, None, grad_projected.flatten(2), grad_state, None, *grads_of_weights


def _at(buffers: Sequence[Tensor], place: tuple[int, int]) -> Tensor:
    """A node's slice (…, H) of the groups' buffers; buffers[0] is node 0's."""
    return buffers[place[0] + 1][..., place[1], :]


def _node_states(plan: _Plan, states: Sequence[Tensor], node: int) -> Tensor:
    """The states (T, B, H) of one node."""
    return states[0][:, :, 0] if node == 0 else _at(states, plan.place[node])


def _lerp_factors(
    source: Tensor, mix: Tensor, runs: Sequence[tuple[str, int, int]], factors: Tensor, complement: Tensor
) -> None:
    """Write what dh is multiplied by: factors [(a − s) c (1 − c) | c act′], complement 1 − c, for the first steps."""
    gate, candidate = mix.unbind(2)
    of_gate, of_candidate = factors[: len(mix)].unbind(2)
    complement = complement[: len(mix)]
    torch.sub(1, gate, out=complement)
    torch.sub(candidate, source.unsqueeze(2), out=of_gate).mul_(gate).mul_(complement)
    for name, start, stop in runs:
        c, a, factor = (tensor[:, :, start:stop] for tensor in (gate, candidate, of_candidate))
        match name:
            case "tanh":
                torch.mul(c, a, out=factor)
                torch.addcmul(c, factor, a, value=-1, out=factor)  # c (1 − a²)
            case "sigmoid":
                torch.mul(c, a, out=factor)
                torch.addcmul(factor, factor, a, value=-1, out=factor)  # c a (1 − a)
            case "relu":
                torch.mul(c, a > 0, out=factor)
            case "identity":
                factor.copy_(c)


def _into_source(
    dh: Tensor, kept: Tensor, product: Tensor, transposed: Tensor, mask: Tensor | None, out: Tensor
) -> None:
    """Write to `out` (B, H): ds = Σ over the group's nodes of dh ⊙ (1 − c), plus d(product) Wᵀ."""
    if dh.shape[1] == 1:
        torch.mul(dh[:, 0], kept[:, 0], out=out)
    else:
        torch.sum(dh * kept, 1, out=out)
    if mask is None:
        out.addmm_(product, transposed)
    else:
        out.addcmul_(product @ transposed, mask)


class _DecoderCrossEntropy(torch.autograd.Function):
    """Mean over rows of −log softmax(x Eᵀ + b)[target], with its gradient computed on the way, a few rows at a time.

    With p the softmax of a row, ∂/∂logits = (p − onehot)/M. The gradients of hidden states, embedding and bias are
    sums over chunks of rows, so logits and p exist for one chunk only.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (M, H)
        embedding: Tensor,  # (V, H)
        bias: Tensor,  # (V,)
        targets: Tensor,  # (M,)
        keep: bool,
    ) -> Tensor:
        num_rows, num_words = len(hidden), len(embedding)
        numbers = _CHUNK_NUMBERS_CPU if hidden.device.type == "cpu" else _CHUNK_NUMBERS_GPU
        size = min(num_rows, max(1, numbers // num_words))
        weight = embedding.t()
        logits = hidden.new_empty(size, num_words)
        total = hidden.new_zeros(())
        if not keep:
            for rows, words in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
                chunk = torch.addmm(bias, rows, weight, out=logits[: len(rows)])
                total += F.cross_entropy(chunk, words, reduction="sum")
            return total / num_rows

        probabilities = torch.empty_like(logits)
        grad_hidden = torch.empty_like(hidden)
        grad_embedding = torch.zeros_like(embedding)
        grad_bias = torch.zeros_like(bias)
        chunks = zip(*(torch.split(whole, size) for whole in (hidden, targets, grad_hidden)), strict=True)
        for rows, words, grad_rows in chunks:
            chunk = torch.addmm(bias, rows, weight, out=logits[: len(rows)])
            p = torch.softmax(chunk, 1, out=probabilities[: len(rows)])
            words = words.unsqueeze(1)
            total += _negative_log(p, chunk, words)
            p.scatter_add_(1, words, p.new_full((1, 1), -1.0).expand_as(words))
            p.mul_(1 / num_rows)
            torch.mm(p, embedding, out=grad_rows)
            grad_embedding.addmm_(p.t(), rows)
            grad_bias += p.sum(0)
        ctx.save_for_backward(grad_hidden, grad_embedding, grad_bias)
        return total / num_rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_embedding, grad_bias = ctx.saved_tensors
        return grad_hidden * grad_loss, grad_embedding * grad_loss, grad_bias * grad_loss, None, None


def _negative_log(probabilities: Tensor, logits: Tensor, words: Tensor) -> Tensor:
    """Σ over rows of −log p[word]; from the logits where p is too small to be a normal number."""
    chosen = probabilities.gather(1, words)
    tiny = (chosen < torch.finfo(chosen.dtype).tiny).squeeze(1)
    losses = -chosen.log()
    if tiny.any():
        losses[tiny] = logits[tiny].logsumexp(1, keepdim=True) - logits[tiny].gather(1, words[tiny])
    return losses.sum()
