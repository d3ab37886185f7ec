"""A budget for what a fine-tuned model may forget: what it adds to gradients, where it ends, what it refuses."""

import copy
import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from forgetless import Budget, InputError
from forgetless.budget import Increase, Keeper, relative_entropy, share_within
from forgetless.budget.multiplier import Multiplier

CURVATURE = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
GOAL = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
NUM_TOKENS = 7


class Point(nn.Module):
    """Weights θ, which are the outputs whatever the inputs; θ̂ = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.theta.expand(len(inputs), 3)


def old_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 + ½ θᵀ H θ."""
    return 1 + (CURVATURE * (outputs - targets) ** 2).sum() / 2 / len(outputs)


OLD = [(torch.zeros(1, 1), torch.zeros(1, 3, dtype=torch.float64)) for _ in range(4)]


def constrained(nats: float) -> Tensor:
    """argmin ½ ‖θ − c‖² subject to ½ θᵀ H θ ≤ b: θ = c / (1 + λ H), with λ by bisection."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        theta = GOAL / (1 + middle * CURVATURE)
        low, high = (middle, high) if (CURVATURE * theta**2).sum() / 2 > nats else (low, middle)
    return GOAL / (1 + high * CURVATURE)


def approach(model: Point, optimizer: Any, steps: int = 400) -> None:
    """Train towards c."""
    optimizers = optimizer if isinstance(optimizer, list) else [optimizer]
    for _ in range(steps):
        model.zero_grad()
        (((model.theta - GOAL) ** 2).sum() / 2).backward()
        for each in optimizers:
            each.step()


class Bigrams(nn.Module):
    """The next token depends on the last one."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(NUM_TOKENS, NUM_TOKENS, generator=generator))
        self.dropout = nn.Dropout(0.2)
        self.num_calls = 0

    def forward(self, tokens: Tensor) -> Tensor:
        self.num_calls += 1
        logits: Tensor = self.dropout(self.table[tokens])
        return logits


def on_new_text(model: nn.Module, optimizer: Any, steps: int = 60, seed: int = 5) -> None:
    """Train on text in which every token is followed by the next one."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        tokens = torch.randint(NUM_TOKENS, (16,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens), (tokens + 1) % NUM_TOKENS).backward()
        optimizer.step()


OWN = {"samples": 64, "sample_length": 9, "batch_size": 16, "measure_every": 10}


# ---- the end is known ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nats", [0.02, 0.3])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.02),
        lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.0),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
    ],
)
def test_replay_ends_at_the_constrained_optimum(make, nats: float) -> None:
    model = Point()
    optimizer = make(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 250)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    keep = Budget(nats, on=OLD).attach(model, optimizer, loss_fn=old_loss)
    approach(model, optimizer, 250)
    report = keep.finish()
    best = constrained(nats)
    assert 0.9 * nats <= report.increase <= nats
    loss, least = (float(((theta - GOAL) ** 2).sum() / 2) for theta in (model.theta.detach(), best))
    start = float((GOAL**2).sum() / 2)
    assert loss - least <= 0.1 * (start - least)


def test_interpolation_ends_on_the_path_at_the_budget() -> None:
    model = Point()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keep = Budget(0.05, on=OLD, hold="interpolation").attach(model, optimizer, loss_fn=old_loss)
    approach(model, optimizer, 300)
    end = model.theta.detach().clone()
    assert torch.allclose(end, GOAL)  # nothing was added
    report = keep.finish()
    # ½ t² cᵀ H c = budget
    share = math.sqrt(2 * 0.05 / float((CURVATURE * GOAL**2).sum()))
    assert 0.98 * share <= report.share <= share
    assert torch.allclose(model.theta, report.share * end)
    assert report.used == pytest.approx(1, abs=0.03)
    assert report.increase_before == pytest.approx(float((CURVATURE * GOAL**2).sum()) / 2)


@pytest.mark.parametrize("hold", ["replay", "interpolation"])
def test_a_budget_that_is_never_reached_leaves_training_alone(hold) -> None:
    ends = []
    for is_held in (True, False):
        model = Point()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        keep = Budget(0.9, on=OLD, hold=hold, measure_every=1).attach(model, optimizer, loss_fn=old_loss)
        if not is_held:
            keep.leave()
        for _ in range(200):
            model.zero_grad()
            (((model.theta - 0.1 * GOAL) ** 2).sum() / 2).backward()
            optimizer.step()
        if is_held:
            report = keep.finish()
            assert report.share == 1
        ends.append(model.theta.detach().clone())
    assert torch.allclose(ends[0], ends[1], rtol=0.05 if hold == "replay" else 0.0, atol=0.0)


def test_the_way_back_is_found_where_the_increase_is_not_a_square() -> None:
    for power, scale in ((1.0, 3.0), (2.0, 50.0), (4.0, 0.3), (2.0, 1e8)):
        share, found = share_within(lambda t, p=power, s=scale: Increase(s * t**p, 0.0), 0.05)
        assert share == pytest.approx((0.05 / scale) ** (1 / power), rel=0.05)
        assert 0.04 < found.mean <= 0.05
    share, found = share_within(lambda t: Increase(math.nan if t > 0.1 else t**2, 0.0), 0.05)
    assert 0.05 < share <= 0.1
    assert share_within(lambda t: Increase(1.0 if t else 0.0, 0.0), 0.05) == (0.0, Increase(0.0, 0.0))
    # The standard error counts.
    share, found = share_within(lambda t: Increase(t**2, 0.01), 0.05)
    assert found.mean + 1.645 * 0.01 <= 0.05


# ---- own texts -------------------------------------------------------------------------------------------------------


def test_relative_entropy_is_the_mean_increase_over_what_may_be_said() -> None:
    torch.manual_seed(0)
    old, new = torch.randn(2, 4, 3, 5, dtype=torch.float64).unbind()
    log_old, log_new = old.log_softmax(-1), new.log_softmax(-1)
    expected = torch.zeros(4, 3, dtype=torch.float64)
    for c in range(5):
        expected += log_old[..., c].exp() * (-log_new[..., c] + log_old[..., c])
    assert torch.allclose(relative_entropy(new, old), expected)
    assert torch.equal(relative_entropy(old, old), torch.zeros(4, 3, dtype=torch.float64))
    old[..., 0] = new[..., 0] = -math.inf
    new.requires_grad_()
    relative_entropy(new, old).sum().backward()
    assert torch.isfinite(new.grad).all()


def test_own_texts_measure_what_the_old_model_expects_to_lose() -> None:
    model = Bigrams()
    old = model.table.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    keep = Budget(0.05, **{**OWN, "samples": 400}).attach(model, optimizer, prompts=0)
    with torch.no_grad():
        model.table += torch.randn(old.shape, generator=torch.Generator().manual_seed(1)) / 3
    kl = relative_entropy(model.table, old)
    chances = torch.zeros(NUM_TOKENS)
    chances[0], total = 1.0, 0.0
    for _ in range(OWN["sample_length"]):  # by the chances of each token at each place
        total += float(chances @ kl.detach()) / OWN["sample_length"]
        chances = chances @ old.softmax(-1)
    found = keep.measured()
    assert abs(found.mean - total) < 3 * found.error
    assert 0 < found.error < 0.1 * total
    keep.leave()


@pytest.mark.parametrize("hold", ["replay", "plasticity", "interpolation"])
def test_every_hold_keeps_the_budget_on_own_texts(hold) -> None:
    model = Bigrams()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    keep = Budget(0.03, hold=hold, **OWN).attach(model, optimizer, prompts=torch.tensor([[0], [3]]))
    on_new_text(model, optimizer)
    report = keep.finish()
    assert report.upper <= 0.03
    assert report.used > 0.5
    assert report.steps == 60
    assert "of 0.03 allowed" in str(report)
    assert model.training


def test_windows_of_one_text_are_all_for_measuring_or_all_for_holding() -> None:
    model = Bigrams()
    texts = torch.randint(NUM_TOKENS, (16, 8), generator=torch.Generator().manual_seed(0))
    keep = attached(Budget(0.1, on=texts), model, context=2)
    for_holding = torch.cat([inputs for inputs, _ in keep._past.batches(model, keep._anchors)[0]])
    others = torch.cat([texts[i::4] for i in range(3)])
    assert sorted(for_holding.flatten().tolist()) == sorted(others[:, ::2].flatten().tolist())
    assert keep._past.num_held == 4
    # An example is a text: its windows are not independent.
    with torch.no_grad():
        model.table += torch.randn(NUM_TOKENS, NUM_TOKENS, generator=torch.Generator().manual_seed(1))
    old = keep._anchors.tensors["table"]
    each = relative_entropy(model.table[texts[3::4]], old[texts[3::4]]).detach().double().mean(1)
    found = keep.measured()
    assert found.mean == pytest.approx(float(each.mean()))
    assert found.error == pytest.approx(float(each.std()) / 2)
    keep.leave()


def test_replay_leaves_random_state_modes_and_other_gradients_alone() -> None:
    model = Bigrams()
    model.other = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keep = Budget(0.03, **OWN).attach(model, optimizer, prompts=0)
    torch.manual_seed(3)
    nn.functional.cross_entropy(model(torch.arange(7)), torch.arange(7)).backward()
    before = torch.get_rng_state()
    optimizer.step()
    assert torch.equal(before, torch.get_rng_state())
    assert model.other.grad is None
    assert model.dropout.training
    keep.leave()


# ---- loops -----------------------------------------------------------------------------------------------------------


def one_gradient(step, **options: Any) -> Tensor:
    """What a step makes of θ by plain SGD, from the same start."""
    model = Point()
    with torch.no_grad():
        model.theta += 0.3
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    keep = Budget(0.05, on=OLD, **options).attach(model, optimizer, loss_fn=old_loss)
    with torch.no_grad():
        model.theta += 0.1
    step(model, optimizer, keep)
    keep.leave()
    return model.theta.detach() - 0.4


def plain(model: Point, optimizer: Any, _keep: Keeper) -> None:
    (((model.theta - GOAL) ** 2).sum() / 2).backward()
    optimizer.step()


def test_the_gradient_of_the_old_loss_is_added_times_lambda() -> None:
    start = torch.full((3,), 0.4, dtype=torch.float64)
    expected = -(start - GOAL) - CURVATURE * start  # λ = 1 at the first step, targets 0
    assert torch.allclose(one_gradient(plain), expected)


def test_accumulated_gradients_and_closures_get_it_once() -> None:
    def accumulated(model: Point, optimizer: Any, _keep: Keeper) -> None:
        for _ in range(4):
            (((model.theta - GOAL) ** 2).sum() / 8).backward()
        optimizer.step()

    def closed(model: Point, optimizer: Any, _keep: Keeper) -> None:
        def closure() -> Tensor:
            model.zero_grad()
            loss = ((model.theta - GOAL) ** 2).sum() / 2
            loss.backward()
            return loss

        assert float(optimizer.step(closure).detach()) > 0

    expected = one_gradient(plain)
    assert torch.allclose(one_gradient(accumulated), expected)
    assert torch.equal(one_gradient(closed), expected)


def test_nothing_reaches_the_hooks_of_accumulated_gradients() -> None:
    def hooked(model: Point, optimizer: Any, _keep: Keeper) -> None:
        called = []
        model.theta.register_post_accumulate_grad_hook(lambda _: called.append(1))
        plain(model, optimizer, _keep)
        assert called == [1]

    one_gradient(hooked)


def test_a_step_that_a_scaler_skips_changes_nothing_and_a_scaled_one_is_unscaled() -> None:
    def skipped(model: Point, optimizer: Any, keep: Keeper) -> None:
        optimizer.found_inf, optimizer.grad_scale = torch.tensor(1.0), torch.tensor(8.0)
        model.theta.grad = torch.full_like(model.theta, math.inf)
        keep._add(optimizer)
        assert keep.multiplier == 1
        assert torch.isinf(model.theta.grad).all()

    def scaled(model: Point, optimizer: Any, keep: Keeper) -> None:
        # A fused step takes both, and divides by the scale itself.
        optimizer.found_inf, optimizer.grad_scale = torch.tensor(0.0), torch.tensor(8.0)
        (8 * ((model.theta - GOAL) ** 2).sum() / 2).backward()
        keep._add(optimizer)
        model.theta.data -= model.theta.grad / 8

    one_gradient(skipped)
    assert torch.allclose(one_gradient(scaled), one_gradient(plain))


def test_a_gradient_scaler_that_skips_calls_nothing() -> None:
    model, scaler = Bigrams(), torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keep = Budget(0.03, **OWN).attach(model, optimizer, prompts=0)
    scaler.scale(model(torch.arange(7)).sum() * math.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert (keep.steps, keep.multiplier) == (0, 1.0)
    keep.leave()


def test_several_optimizers_share_one_pass() -> None:
    model = Bigrams()
    model.bias = nn.Parameter(torch.zeros(NUM_TOKENS))
    model.register_forward_hook(lambda m, _, out: out + m.bias)
    optimizers = [torch.optim.SGD([model.table], lr=0.5), torch.optim.SGD([model.bias], lr=0.5)]
    keep = Budget(0.03, **{**OWN, "measure_every": 1000}).attach(model, optimizers, prompts=0)
    for order in (optimizers, optimizers[::-1]):
        model.zero_grad()
        nn.functional.cross_entropy(model(torch.arange(7)), torch.arange(7)).backward()
        calls = model.num_calls
        before, biases = keep.steps, model.bias.detach().clone()
        for optimizer in order:
            optimizer.step()
        assert model.num_calls == calls + 2  # the present model and the old one
        assert keep.steps == before + 1
        assert not torch.equal(biases, model.bias)
    keep.leave()


def test_an_optimizer_whose_gradients_are_made_after_the_step_of_another_gets_it_too() -> None:
    class Two(Point):
        def __init__(self) -> None:
            super().__init__()
            self.phi = nn.Parameter(torch.full((3,), 0.3, dtype=torch.float64))

        def forward(self, inputs: Tensor) -> Tensor:
            return (self.theta + self.phi).expand(len(inputs), 3)

    def ends(made_after: bool) -> Tensor:
        model = Two()
        optimizers = [torch.optim.SGD([p], lr=0.1) for p in (model.theta, model.phi)]
        keep = Budget(0.05, on=OLD).attach(model, optimizers, loss_fn=old_loss)
        with torch.no_grad():
            model.phi += 0.1
        (model.theta.sum() + model.phi.sum()).backward()
        optimizers[0].step()
        if made_after:  # as where each optimizer has a loss of its own, or a scaler that unscales right before its step
            model.phi.grad.fill_(1.0)
        optimizers[1].step()
        keep.leave()
        return model.phi.detach()

    expected = 0.4 - 0.1 * (1 + CURVATURE * 0.4)
    assert torch.allclose(ends(made_after=False), expected)
    assert torch.allclose(ends(made_after=True), expected)


def test_a_large_learning_rate_does_not_let_lambda_run_away() -> None:
    model = Point()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)  # λ above 1 diverges with curvature 4
    keep = Budget(1e-3, on=OLD).attach(model, optimizer, loss_fn=old_loss)
    approach(model, optimizer, 300)
    assert keep.multiplier < 100
    assert torch.isfinite(model.theta).all()
    assert keep.finish().increase <= 1e-3


# ---- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hold", ["replay", "plasticity"])
def test_a_resumed_training_ends_as_a_whole_one_bit_for_bit(hold, tmp_path) -> None:
    def start(state=None, weights=None, of_optimizer=None):
        model = Bigrams()
        model.dropout.p = 0.0
        if weights is not None:
            model.load_state_dict(weights)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        if of_optimizer is not None:
            optimizer.load_state_dict(of_optimizer)
        budget = Budget(0.03, hold=hold, **OWN)
        return model, optimizer, budget.attach(model, optimizer, prompts=0, state=state)

    model, optimizer, keep = start()
    on_new_text(model, optimizer, 25, seed=1)
    on_new_text(model, optimizer, 20, seed=2)
    whole = keep.finish(), model.table.detach().clone()

    model, optimizer, keep = start()
    on_new_text(model, optimizer, 25, seed=1)
    torch.save([keep.state_dict(), model.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    keep.leave()
    model, optimizer, keep = start(*torch.load(tmp_path / "state.pt", weights_only=True))
    on_new_text(model, optimizer, 20, seed=2)
    assert (keep.finish(), True) == (whole[0], torch.equal(model.table, whole[1]))


def test_own_texts_of_a_state_go_to_the_device_of_the_model() -> None:
    class Elsewhere(Tensor):
        moved: ClassVar[list[torch.device]] = []

        def to(self, device: Any) -> Tensor:
            self.moved.append(device)
            return self.as_subclass(Tensor)

    keep = attached(Budget(0.1, **OWN), model := Bigrams(), prompts=0)
    state = keep.state_dict()
    keep.leave()
    again = attached(Budget(0.1, **OWN), model, state={**state, "texts": state["texts"].as_subclass(Elsewhere)})
    assert Elsewhere.moved == [model.table.device]
    again.leave()


def test_lambda_follows_the_logarithm_and_the_ratio_what_is_measured() -> None:
    multiplier = Multiplier(0.05)
    multiplier.follow(0.1)
    assert multiplier.value == pytest.approx(1.6**0.05)
    multiplier.follow(-1.0)
    assert multiplier.value == pytest.approx(1.6**0.05 * math.exp(-0.1))
    multiplier = Multiplier(0.05)
    multiplier.follow(0.02)
    multiplier.calibrate(0.04)
    assert multiplier.ratio == pytest.approx(1.5)
    again = Multiplier(0.05)
    again.load(multiplier.state())
    assert again == multiplier


def test_old_inputs_without_targets_are_held_by_relative_entropy() -> None:
    model = Bigrams()
    tokens = torch.arange(NUM_TOKENS).repeat(8, 1)
    batches = [(part, torch.full_like(part, -1)) for part in tokens.split(2)]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    old = model.table.detach().clone()
    keep = Budget(0.03, on=batches, by_targets=False, measure_every=10).attach(model, optimizer)
    on_new_text(model, optimizer)
    report = keep.finish()
    assert report.increase == pytest.approx(float(relative_entropy(model.table.detach(), old).mean()), rel=1e-5)
    assert 0.3 * 0.03 <= report.increase <= 0.03


def test_plasticity_on_old_inputs_holds_by_the_fisher_of_the_predictions() -> None:
    model = Bigrams()
    batches = [(tokens, None) for tokens in torch.arange(NUM_TOKENS).repeat(800, 1).split(100)]
    keep = attached(Budget(0.03, on=batches, by_targets=False, hold="plasticity"), model)
    p = model.table.detach().softmax(-1)
    # Per prediction; each token is a seventh of all.
    expected = p * (1 - p) / NUM_TOKENS
    found = keep.plasticity.state_dict()["importances"][0]
    assert torch.allclose(found.double(), expected.double(), rtol=0.5, atol=2e-3)
    keep.leave()


def test_losses_of_examples_with_several_numbers_as_target_are_per_example() -> None:
    model = Point()
    soft = [(torch.zeros(2, 1), torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64))] * 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keep = Budget(0.03, on=soft).attach(
        model, optimizer, loss_fn=lambda outputs, p: nn.functional.cross_entropy(outputs, p, reduction="none")
    )
    with torch.no_grad():
        model.theta += GOAL
    after = float(nn.functional.cross_entropy(model(soft[0][0]).detach(), soft[0][1]))
    assert keep.measured().mean == pytest.approx(after - math.log(3))
    keep.leave()


def test_the_old_loss_of_inputs_counts_each_prediction_once() -> None:
    model = Bigrams()
    tokens = torch.randint(NUM_TOKENS, (5, 4), generator=torch.Generator().manual_seed(0))
    parts = [tokens[:1], tokens[:1], tokens[:1], tokens[:3], tokens[:1], tokens[:1], tokens[:1], tokens[3:4]]
    keep = attached(Budget(0.03, on=[(part, None) for part in parts], by_targets=False), model)
    log_p = model.table.detach().log_softmax(-1)
    entropies = -(log_p.exp() * log_p).sum(-1)
    assert keep.finish().old_loss == pytest.approx(float(entropies[tokens[:4]].mean()))  # of 3 inputs and of 1


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nats", [0.0, -1.0, math.nan, math.inf, "a"])
def test_a_budget_out_of_range_is_refused(nats) -> None:
    with pytest.raises(InputError, match="Expected a budget in nats that is finite and above 0"):
        Budget(nats)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hold": "reply"}, "Expected hold to be one of .* Did you mean 'replay'"),
        ({"on": "own-texts"}, "Expected on to be 'own-samples'"),
        ({"samples": 1}, "Expected samples of at least 2, but got 1"),
        ({"measure_every": 0}, "Expected measure_every of at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        Budget(0.1, **options)


def attached(budget: Budget, model: nn.Module | None = None, **options: Any) -> Keeper:
    model = Bigrams() if model is None else model
    return budget.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)


def test_what_cannot_be_held_is_refused() -> None:
    with pytest.raises(InputError, match=r"Expected prompts to begin own texts with, .* Bigrams"):
        attached(Budget(0.1))
    with pytest.raises(InputError, match="Expected logits"):
        attached(Budget(0.1, **OWN), nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(3, 7)), prompts=0)
    with pytest.raises(InputError, match=r"Expected a budget below the old loss of 1\.\d+ nats .*, but got 2\."):
        attached(Budget(2.0, **OWN), prompts=0)
    tokens = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(InputError, match="Expected a budget below the old loss of"):
        attached(Budget(9.0, on=[(tokens, tokens)]))
    with pytest.raises(InputError, match="Expected at least one old batch"):
        attached(Budget(0.1, on=[]))
    with pytest.raises(InputError, match="Expected old batches as pairs"):
        attached(Budget(0.1, on=[torch.zeros(3)]))
    with pytest.raises(InputError, match="Expected at least 2 own texts"):
        attached(Budget(0.1, on=torch.zeros(1, 3, dtype=torch.long)))
    broken = Point()
    with torch.no_grad():
        broken.theta += math.nan
    with pytest.raises(InputError, match="Expected a finite old loss, but got nan"):
        attached(Budget(0.1, on=OLD), broken, loss_fn=old_loss)
    model = Bigrams()
    with pytest.raises(InputError, match="Expected an optimizer that trains weights of the model"):
        Budget(0.1).attach(model, torch.optim.SGD(Bigrams().parameters(), lr=0.1), prompts=0)
    with pytest.raises(InputError, match="but got LBFGS"):
        Budget(0.1).attach(model, torch.optim.LBFGS(model.parameters()), prompts=0)


def test_a_budget_is_finished_once_and_before_the_next() -> None:
    model = Bigrams()
    keep = attached(Budget(0.1, **OWN), model, prompts=0)
    with pytest.raises(InputError, match="whose budget was not finished"):
        attached(Budget(0.1, **OWN), model, prompts=0)
    assert keep.finish().share == 1
    with pytest.raises(InputError, match="Expected a budget that is not finished"):
        keep.finish()
    attached(Budget(0.1, **OWN), model, prompts=0).leave()


def test_a_training_that_is_never_finished_is_told() -> None:
    model = Bigrams()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keep = Budget(0.1, **OWN).attach(model, optimizer, prompts=0)
    on_new_text(model, optimizer, 2)
    del optimizer
    with pytest.warns(UserWarning, match=r"finish\(\) was not called"):
        keep.__del__()
    keep.leave()


def test_where_nothing_can_be_kept_the_old_weights_come_back() -> None:
    model = Bigrams()
    before = copy.deepcopy(model.state_dict())
    keep = attached(Budget(0.1, **OWN), model, prompts=0)
    with torch.no_grad():
        model.table += math.nan
    with pytest.warns(UserWarning, match="could be held only by giving the old weights back"):
        report = keep.finish()
    assert (report.share, report.increase) == (0, 0)
    assert torch.equal(before["table"], model.table)


def test_a_budget_that_the_old_weights_cannot_hold_is_told() -> None:
    model = Bigrams()
    model.bias = nn.Parameter(torch.zeros(NUM_TOKENS), requires_grad=False)
    model.register_forward_hook(lambda m, _, out: out + m.bias)
    tokens = torch.arange(NUM_TOKENS)
    keep = attached(Budget(0.1, on=[(tokens, tokens)] * 8), model)
    with torch.no_grad():
        model.bias[0] += 10  # by hand
    with pytest.warns(UserWarning, match=r"The budget of 0\.1 nats is not held: with the old weights back"):
        report = keep.finish()
    assert report.upper > 0.1


def test_weights_that_are_unfrozen_later_are_refused() -> None:
    model = Bigrams()
    model.bias = nn.Parameter(torch.zeros(NUM_TOKENS), requires_grad=False)
    model.register_forward_hook(lambda m, _, out: out + m.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keep = Budget(0.1, **OWN).attach(model, optimizer, prompts=0)
    on_new_text(model, optimizer, 2)
    model.bias.requires_grad_()
    with pytest.raises(InputError, match="Expected to train the weights that were trained at the start, but got more"):
        on_new_text(model, optimizer, 2)
    keep.leave()
