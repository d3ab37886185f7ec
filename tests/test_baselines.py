"""Rules without a search: each formula against a slow reference, what they select, and what searches beat."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import graphs
from configs import changed, judged_search, search_config
from forgetless.baselines import BASELINES, Subject
from forgetless.baselines._drawings import longest_path
from forgetless.baselines.jacob_cov import jacobian_score
from forgetless.baselines.naswot import code_score
from forgetless.evaluation.baselines import beats_of, best_proxies, judge_baselines, rows_of, summarise_baselines
from forgetless.evaluation.records import Evaluation, JudgedBy
from forgetless.evaluation.scores import baseline_scores, defined_baselines
from forgetless.evaluation.truth import Truth
from forgetless.search import load_task
from forgetless.search.setup import make_search_space, make_supernet
from forgetless.spaces.base import Edge
from forgetless.spaces.recurrent import RecurrentSpace

IMAGES = search_config(space="nas201", units=2, data="digits", batch_size=6)
CELLS_OF_BLOCKS = search_config(space="cell", nodes=1, units=2, data="digits", batch_size=6)
NODES = search_config(space="graph", units=3, batch_size=6)
WORDS = search_config(space="recurrent", nodes=2, units=4, batch_size=3, num_steps=4, vocabulary=50)
CELL = "|nor_conv_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|none~0|none~1|nor_conv_3x3~2|"


def subject_of(config, text, seed=0):
    task, space = load_task(config), make_search_space(config)
    supernet = make_supernet("cpu", task, space, seed).double().train()
    inputs, targets = next(iter(task.training_batches(1, torch.Generator().manual_seed(seed))))
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    return Subject(supernet, space.space.parse(text), task, (inputs, targets), seed)


@pytest.fixture(scope="module")
def images():
    return subject_of(IMAGES, CELL)


# The formulas


def test_grad_norm_is_that_of_finite_differences():
    """Of each tensor, by central differences of the loss along every weight."""
    subject = subject_of(WORDS, "relu(0) tanh(1)")
    weights = subject.supernet.used_parameters(subject.architecture)

    def loss():
        with torch.no_grad():
            return float(subject.task.loss_of(subject.supernet, subject.architecture)(subject.batch))

    total = 0.0
    for weight in weights.values():
        flat, squares = weight.data.view(-1), 0.0
        for place in range(len(flat)):
            before, step = float(flat[place]), 1e-5
            flat[place] = before + step
            above = loss()
            flat[place] = before - step
            squares += ((above - loss()) / (2 * step)) ** 2
            flat[place] = before
        total += math.sqrt(squares)
    assert BASELINES["grad-norm"].score(subject) == pytest.approx(total, rel=1e-5)


def test_synflow_is_the_derivative_of_the_flow_by_a_common_factor_of_each_weight(images):
    """θ ∂R/∂θ of one weight is what R grows by, relatively, as that weight does: here by a finite step."""
    state = {name: value.clone() for name, value in images.supernet.state_dict().items()}
    names = list(images.supernet.used_parameters(images.architecture))
    weights = {name: value.abs() for name, value in state.items()}

    def flow(changed):
        x = torch.ones(1, 1, 8, 8, dtype=torch.float64)
        x = F.conv2d(x, changed["stem.0.weight"], padding=1)
        for stage in range(3):
            if stage:
                start = f"reductions.{stage - 1}"
                y = F.conv2d(F.relu(x), changed[f"{start}.first.1.weight"], stride=2, padding=1)
                y = F.conv2d(F.relu(y), changed[f"{start}.second.1.weight"], padding=1)
                x = y + F.conv2d(F.avg_pool2d(x, 2, ceil_mode=True), changed[f"{start}.shortcut.weight"])
            edge = f"stages.{stage}.0.operations"
            one = F.conv2d(F.relu(x), changed[f"{edge}.0_1_nor_conv_3x3.1.weight"], padding=1)
            two = F.conv2d(F.relu(x), changed[f"{edge}.0_2_nor_conv_1x1.1.weight"]) + one
            x = F.conv2d(F.relu(two), changed[f"{edge}.2_3_nor_conv_3x3.1.weight"], padding=1)
        x = F.relu(x).mean((2, 3))
        return float((x @ changed["classifier.weight"].T + changed["classifier.bias"]).sum())

    expected, step = 0.0, 1e-4
    for name in names:
        larger, smaller = ({**weights, name: weights[name] * (1 + s)} for s in (step, -step))
        expected += (flow(larger) - flow(smaller)) / (2 * step)
    assert BASELINES["synflow"].score(images) == pytest.approx(expected, rel=1e-6)
    assert all(torch.equal(value, state[name]) for name, value in images.supernet.state_dict().items())


def test_the_code_score_is_the_logarithm_of_the_determinant_by_permutations():
    codes = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 1, 0, 1], [1, 1, 1, 0, 0]], dtype=torch.float32)
    kernel = [[sum(int(a == b) for a, b in zip(x, y, strict=True)) for y in codes.tolist()] for x in codes.tolist()]
    determinant = 0.0
    for order in itertools.permutations(range(3)):
        swaps = sum(order[i] > order[j] for i in range(3) for j in range(i + 1, 3))
        determinant += (-1) ** swaps * math.prod(kernel[i][order[i]] for i in range(3))
    assert code_score(codes) == pytest.approx(math.log(determinant))
    assert code_score(codes[[0, 0, 1]]) == -math.inf


def test_naswot_sees_every_relu_of_an_image_network(images):
    """Modules and functions: a hand-made list of the inputs of all ReLUs gives the same codes."""
    seen, function = [], F.relu

    def recorded(x, inplace=False):
        seen.append((x > 0).flatten(1).double())
        return function(x, inplace)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "relu", recorded)
        images.supernet(images.batch[0], images.architecture)
    # Three cells with two ReLUs on node 0, one on node 2; two reductions with two each; one before the classifier.
    assert len(seen) == 3 * 3 + 2 * 2 + 1
    assert BASELINES["naswot"].score(images) == pytest.approx(code_score(torch.cat(seen, 1)))


def test_the_jacobian_score_is_that_of_numpy():
    jacobian = torch.tensor(np.random.default_rng(0).normal(size=(4, 7)))
    values = np.linalg.eigvals(np.corrcoef(jacobian.numpy())).real
    assert jacobian_score(jacobian) == pytest.approx(-sum(math.log(v + 1e-5) + 1 / (v + 1e-5) for v in values))
    assert math.isnan(jacobian_score(torch.ones(2, 3)))


def test_jacob_cov_differentiates_by_pixels(images):
    """Central differences of the sum of all logits: batch normalisation couples the images of a batch."""
    pixels, step = images.batch[0].clone(), 1e-5
    jacobian, flat = torch.zeros(pixels.numel(), dtype=torch.float64), pixels.view(-1)
    with torch.no_grad():
        for place in range(len(flat)):
            before = float(flat[place])
            flat[place] = before + step
            above = images.supernet(pixels, images.architecture).sum()
            flat[place] = before - step
            jacobian[place] = (above - images.supernet(pixels, images.architecture).sum()) / (2 * step)
            flat[place] = before
    expected = jacobian_score(jacobian.view(len(pixels), -1))
    assert BASELINES["jacob-cov"].score(images) == pytest.approx(expected, rel=1e-3)


def test_counts_by_hand(images):
    scores = {name: BASELINES[name].score(images) for name in ("operations", "depth", "parameters")}
    trained = images.supernet.used_parameters(images.architecture)
    assert scores == {"operations": 3.0, "depth": 2.0, "parameters": float(sum(map(torch.numel, trained.values())))}
    long, short = [Edge("0", "1", "conv"), Edge("1", "2", "conv")], [Edge("0", "2", "conv")]
    assert longest_path([*long, *short]) == longest_path([long[0], *short, long[1]]) == 2
    cell = subject_of(WORDS, "relu(0) relu(0)")
    assert [BASELINES[name].score(cell) for name in ("relu", "depth")] == [2.0, 2.0]  # node 0 and one of the two


def test_counts_of_a_graph_network_by_hand(tmp_path):
    """Node 1 reads the 11 features, nodes 2 and 4 three units; the leaves 3 and 4 have a block each after them."""
    network = subject_of(changed(NODES, data=str(graphs.written(tmp_path))), "0112|gcn,gat,skip,fc")
    assert [BASELINES[name].score(network) for name in ("operations", "depth")] == [3.0, 3.0]
    used = network.supernet.used_parameters(network.architecture)
    assert BASELINES["parameters"].score(network) == sum(map(torch.numel, used.values()))
    heads = sum(weight.numel() for name, weight in used.items() if name.startswith(("after", "classifier")))
    assert heads == 2 * 3 * 3 + 3 + 3 * 3 + 3


# Of a space


@pytest.mark.parametrize(
    ("config", "lacking"),
    [
        (IMAGES, {"relu"}),
        (CELLS_OF_BLOCKS, {"relu"}),
        (WORDS, {"jacob-cov", "naswot", "synflow"}),
        (NODES, {"jacob-cov", "naswot", "synflow", "relu"}),
    ],
    ids=["nas201", "cell", "recurrent", "graph"],
)
def test_every_rule_has_a_score_or_a_sentence(config, lacking, tmp_path_factory, tmp_path):
    if config is NODES:
        config = changed(NODES, data=str(graphs.written(tmp_path_factory.mktemp("graph"))))
    space = make_search_space(config)
    names, reasons = defined_baselines(space)
    assert set(reasons) == lacking
    assert all(reason.endswith(".") for reason in reasons.values())
    members = [space.space.decode([0] * len(space.space.num_choices)), *itertools.islice(space.space, 7, 9)]
    found = baseline_scores(config, 3, members, tmp_path)
    assert set(found) == set(names)
    alone = baseline_scores(config, 3, members[1:])  # whatever was scored before
    for name, scores in found.items():
        np.testing.assert_array_equal(scores[1:], alone[name])
    (kept,) = tmp_path.iterdir()
    written = kept.stat().st_mtime_ns
    np.testing.assert_equal(baseline_scores(config, 3, members, tmp_path), found)
    assert kept.stat().st_mtime_ns == written
    baseline_scores(config, 4, members, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_damaged_scores_are_computed_again(tmp_path):
    members = list(itertools.islice(make_search_space(WORDS).space, 2))
    found = baseline_scores(WORDS, 0, members, tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_text(kept.read_text().replace("0", "1", 1))
    with pytest.warns(UserWarning, match="Computing the scores again"):
        assert baseline_scores(WORDS, 0, members, tmp_path) == found


# What they select

CELLS = tuple(RecurrentSpace(1))
TRUTH = Truth(RecurrentSpace(1), CELLS, np.array([0.4, 0.1, 0.3, 0.2]), np.arange(4), "test_error", "a table")


def test_a_rule_selects_what_it_scores_best_by_its_sign():
    scores = {"parameters": [1.0, 4.0, 2.0, math.nan]}
    (found,) = judge_baselines("runs/one", 0, CELLS, scores, TRUTH, 2)
    assert [value for _, value in found.found] == [0.1, 0.3]
    assert (found.found_mean, found.found_best, found.regret) == (pytest.approx(0.2), 0.1, 0.0)
    assert found.tau == pytest.approx((4 - 2) / 6)  # the last counts as the worst: two of its three pairs are wrong


def test_equal_scores_are_selected_by_chance():
    scores = {"depth": [1.0] * 4}
    firsts = {judge_baselines("r", seed, CELLS, scores, TRUTH, 1)[0].found[0].architecture for seed in range(20)}
    assert len(firsts) > 2


def brute_best_proxies(values, sign):
    found = {}
    for seed in range(5):
        totals = [(sum(sign * v for s, v in of_rule.items() if s != seed), rule) for rule, of_rule in values.items()]
        found[seed] = min(totals)[1]
    return found


@pytest.mark.parametrize("lower", [True, False])
def test_the_best_proxy_is_chosen_on_other_seeds(lower):
    numbers = np.random.default_rng(1).normal(size=(3, 5))
    values = {name: dict(enumerate(row)) for name, row in zip("abc", numbers.tolist(), strict=True)}
    found = best_proxies(values, lower_is_better=lower)
    expected = brute_best_proxies(values, 1 if lower else -1)
    assert {seed: rule for seed, (rule, _) in found.items()} == expected
    assert all(value == values[rule][seed] for seed, (rule, value) in found.items())
    assert best_proxies({"a": {0: 1.0}}, lower_is_better=True) == {}


def judged(seeds=7, gap=0.1):
    """A search that is better than parameters by `gap`, worse than depth by as much, and as good as random."""
    noise = [0.01 * seed * seed for seed in range(seeds)]
    records = [
        judged_search(run="r", seed=s, found_mean=0.5, random_mean=0.5 + (-1) ** s * (0.01 + n))
        for s, n in enumerate(noise)
    ]
    scores = {"parameters": [0.0, 0.0, 0.0, 0.0], "depth": [0.0] * 4, "random": [0.0] * 4}
    template = judge_baselines("r", 0, CELLS, scores, TRUTH, 1)[0]
    values = {"parameters": [0.5 + gap + n for n in noise], "depth": [0.5 - gap - n for n in noise], "random": noise}
    baselines = [
        dataclasses.replace(template, rule=rule, seed=seed, found_mean=value)
        for rule, of_rule in values.items()
        for seed, value in enumerate(of_rule)
    ]
    return records, baselines


def test_what_is_beaten_is_marked_after_holm():
    records, baselines = judged()
    found = {each.rule: each for each in beats_of(rows_of(records), baselines, lower_is_better=True)}
    assert {rule: each.mark for rule, each in found.items()} == {
        "random": None,
        "parameters": "better",
        "best proxy": "worse",
    }
    one = 2 * 2**-7  # every seed agrees
    assert found["parameters"].p == found["best proxy"].p == one
    assert found["parameters"].adjusted_p == pytest.approx(3 * one)
    assert found["parameters"].gain.mean == pytest.approx(0.1 + np.mean([0.01 * s * s for s in range(7)]))
    higher = {each.rule: each.mark for each in beats_of(rows_of(records), baselines, lower_is_better=False)}
    assert higher["parameters"] == "worse"


def test_records_are_read_back_and_those_of_older_versions_too():
    records, baselines = judged()
    about = JudgedBy(options={}, measure="error", description="Made up.", lower_is_better=True)
    beats = beats_of(rows_of(records), baselines, lower_is_better=True)
    found = Evaluation(about=about, searches=records, summary=[], failures=[], baselines=tuple(baselines), beats=beats)
    assert Evaluation.from_dict(found.to_dict(), "an evaluation", "memory") == found
    older = {name: value for name, value in found.to_dict().items() if name not in {"baselines", "beats", "undefined"}}
    assert Evaluation.from_dict(older, "an evaluation", "memory").beats == ()
    summaries = summarise_baselines(baselines, lower_is_better=True)
    assert [each.rule for each in summaries] == ["random", "depth", "parameters"]
