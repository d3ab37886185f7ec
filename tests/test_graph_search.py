"""A search of graph networks: it protects, goes on exactly, and is evaluated by a table."""

import json
import math

import pytest
import torch

from configs import search_config, without_time
from forgetless import InputError
from forgetless.cli import main
from forgetless.cli.folders import search_result
from forgetless.evaluation.searches import random_architectures
from forgetless.protection import PROTECTIONS
from forgetless.runs import RunFolder
from forgetless.search import Search, SearchArm, run
from forgetless.search.records import EpochRecord
from forgetless.search.setup import load_task, make_search_space, memory_bytes
from forgetless.spaces.graph import GraphSpace, published
from forgetless.spaces.graph.published import RECIPES, Recipe, recipe_of, train_as_published
from graphs import small_graph, written
from test_checkpoints import killed_at_every_point

TINY = {
    "space": "graph",
    "units": 4,
    "epochs": 2,
    "models_per_epoch": 2,
    "batches_per_model": 2,
    "batch_size": 5,
    "strategy_steps": 1,
    "samples_per_step": 2,
    "final_samples": 2,
    "final_batches": 3,
    "protect_from": 0,
}


@pytest.fixture
def graph(tmp_path):
    return str(written(tmp_path))


def test_killed_at_any_point_the_records_are_the_same(graph):
    """With dropout, whose random numbers a state has to have."""
    config = search_config(**TINY | {"epochs": 1}, data=graph, protection=("wpl",))
    assert killed_at_every_point(config, 5) > 6


@pytest.mark.parametrize("importance", ["training", "held-out"])
def test_weight_plasticity_holds_the_weights(graph, importance):
    config = search_config(
        **TINY, data=graph, protection=("none", "wpl"), importance=importance, wpl_strength=1e6, wpl_rule="sum"
    )
    epochs = [record for record in run(config) if isinstance(record, EpochRecord)]
    free, held = ([r for r in epochs if r.protection == name] for name in ("none", "wpl"))
    assert [record.is_protected for record in (*free, *held)] == [False, False, True, True]
    assert held[-1].mean_net_step < 0.7 * free[-1].mean_net_step


@pytest.mark.parametrize(
    "name", [kind.name for kind in PROTECTIONS.values() if kind.protects and not kind.replaces_layers]
)
def test_every_protection_takes_graph_networks(graph, name):
    config = search_config(**TINY | {"epochs": 1, "final_samples": 0}, data=graph, protection=(name,))
    (record,) = run(config)
    assert record.num_models == 2


def test_strengths_are_those_of_images_and_the_rate_the_benchmark_s():
    graphs, images = (search_config(space=space, protection=("wpl", "ewc")) for space in ("graph", "nas201"))
    assert [each.strength for each in graphs.protections] == [each.strength for each in images.protections]
    assert (graphs.data.name, graphs.optimizer.name, graphs.optimizer.learning_rate) == ("cora", "sgd", 0.1)
    assert (graphs.space.units, graphs.space.dropout) == (RECIPES["cora"].units, RECIPES["cora"].dropout)


def test_the_reward_may_be_the_loss_of_held_out_nodes(graph):
    config = search_config(**TINY, data=graph, protection=("none",), score="loss")
    task = load_task(config)
    search = Search(config, task, SearchArm(0, "none"))
    architecture = GraphSpace().parse("0112|gcn,gat,skip,fc")
    nodes = task.data.validation[: len(task.data.validation) // 2]
    with torch.no_grad():
        logits = search.supernet.eval()(nodes, architecture).double()
    right = logits.softmax(-1)[torch.arange(len(nodes)), task.data.labels[nodes]]
    expected = math.prod(right.tolist()) ** (1 / len(nodes))
    assert search.rewards.of(architecture) == pytest.approx(expected, rel=1e-5)
    assert 0 < run(config)[-1].reward < 1


def test_the_estimate_from_whole_batches_is_refused(graph):
    whole = TINY | {"batch_size": 1000, "data": graph}
    with pytest.raises(InputError, match="Expected importance to be held-out for batches of all 12 training examples"):
        run(search_config(**whole, protection=("wpl",)))
    run(search_config(**whole | {"epochs": 1, "final_samples": 0}, protection=("none",)))
    run(search_config(**whole | {"epochs": 1, "final_samples": 0}, protection=("wpl",), importance="held-out"))


def test_data_of_another_task_is_refused():
    with pytest.raises(InputError, match=r"Expected data that fits the space graph, but got 'digits'. Take one of cit"):
        search_config(space="graph", data="digits")


def test_memory_is_that_of_the_weights_and_of_a_pass(graph):
    config = search_config(**TINY, data=graph)
    task, space = load_task(config), make_search_space(config)
    weights = sum(weight.numel() for weight in space.make_supernet(task).parameters())
    assert memory_bytes(config, task) > 4 * weights
    assert space.memory_bytes(task, 3) - space.memory_bytes(task, 2) == 4 * weights
    assert space.size == "4 units"


@pytest.mark.usefixtures("without_pictures")
def test_a_search_is_evaluated_by_a_table(graph, tmp_path):
    folder, truth = tmp_path / "run", tmp_path / "truth.csv"
    search = (
        f"search --space graph --data {graph} --graph.units 3 --epochs 1 --models-per-epoch 2 --batches-per-model 2 "
        f"--batch-size 5 --strategy-steps 1 --samples-per-step 2 --final-samples 2 --final-batches 2 --output {folder}"
    )
    assert main(search.split()) == 0
    result = search_result(RunFolder(folder))
    selected = [architecture for architecture, _ in result.records[-1].candidates]
    drawn = map(str, random_architectures(result.config, 0, len(selected)))
    # A table in which more `gcn` is better.
    rows = {each: each.count("gcn") for each in (*selected, *drawn)}
    truth.write_text("arch,accuracy\n" + "".join(f'"{each}",{value}\n' for each, value in rows.items()))
    assert main(["evaluate", str(folder), "--truth", str(truth), "--top", "2"]) == 0
    found = json.loads((folder / "evaluation.json").read_text())
    assert f"{len(rows)} of the 26,206 architectures" in found["about"]["description"]
    assert {search["protection"] for search in found["searches"]} == {"wpl"}


# ---- as the benchmark trained ------------------------------------------------------------------------------------

SHORT = Recipe(units=8, dropout=0.3, learning_rate=0.3, weight_decay=5e-4, epochs=40)


def test_training_as_published_learns_and_follows_its_seed():
    data, architecture = small_graph(), GraphSpace().parse("0123|skip,skip,gcn,sage")
    one, again, other = (train_as_published(data, SHORT, architecture, seed) for seed in (0, 0, 1))
    assert (one.validation, one.test, one.last_test) == (again.validation, again.test, again.last_test)
    assert (one.validation, one.test, one.last_test) != (other.validation, other.test, other.last_test)
    assert one.validation > 0.5
    untrained = train_as_published(data, Recipe(**{**vars(SHORT), "epochs": 1}), architecture, 0)
    assert one.validation > untrained.validation


def test_what_is_kept_of_the_epochs(monkeypatch):
    """Validation, test and validation loss after each."""
    after = iter([(0.5, 0.1, 2.0), (0.7, 0.2, 1.5), (0.7, 0.3, 1.0), (0.6, 0.4, 1.2)])
    monkeypatch.setattr(published, "_measured", lambda *_: next(after))
    short = Recipe(**{**vars(SHORT), "epochs": 4})
    found = train_as_published(small_graph(), short, GraphSpace().parse("0123|skip,skip,skip,fc"), 0)
    assert (found.validation, found.test, found.test_by_loss, found.last_test) == (0.7, 0.2, 0.3, 0.4)


def test_weights_decay():
    """With a rate of 1 / decay, a step leaves nothing of a weight but the gradient's part."""
    data, architecture = small_graph(), GraphSpace().parse("0123|skip,skip,skip,fc")
    strong = Recipe(units=8, dropout=0.0, learning_rate=1e-3, weight_decay=1e3, epochs=30)
    assert train_as_published(data, strong, architecture, 0).last_test < 0.67


def test_a_graph_without_a_recipe_is_refused():
    assert recipe_of("citeseer").learning_rate == 0.2
    with pytest.raises(InputError, match="Expected one of cora, citeseer, whose recipe is known, but got 'pubmed'"):
        recipe_of("pubmed")


def test_records_do_not_depend_on_the_run(graph):
    config = search_config(**TINY, data=graph, protection=("none",))
    assert without_time(run(config)) == without_time(run(config))
