"""Rewards of the loss in place of the error."""

import math

import pytest
import torch

from configs import changed, search_config
from forgetless.errors import InputError
from forgetless.search import Search, SearchArm, load_task, run
from forgetless.search.result import SearchResult
from forgetless.tasks import Task
from forgetless.tasks.images import ImageClassification
from forgetless.tasks.text import LanguageModelling

SIZES = {"epochs": 1, "models_per_epoch": 2, "batches_per_model": 2, "strategy_steps": 1, "samples_per_step": 3}
IMAGES = search_config(space="nas201", units=2, batch_size=16, final_samples=4, final_batches=1, **SIZES)
TEXT = search_config(units=4, nodes=2, batch_size=4, num_steps=5, vocabulary=200, final_samples=0, **SIZES)


def test_the_reward_of_images_is_the_geometric_mean_of_the_right_probabilities():
    config = changed(IMAGES, score="loss")
    task = load_task(config)
    search = Search(config, task, SearchArm(0, "wpl"))
    search.one_epoch({}, lambda phase, values: None)
    supernet = search.supernet
    for seed in range(2):
        architecture = search.space.space.sample(torch.Generator().manual_seed(seed))
        reward = search.rewards.of(architecture)
        supernet.recalibrate(architecture, torch.split(task._splits["train"].images[:500], 250))
        supernet.eval()
        with torch.no_grad():
            logits = supernet(task._splits["reward"].images, architecture).double()
        right = logits.softmax(-1)[torch.arange(len(logits)), task._splits["reward"].labels]
        supernet.train()
        assert reward == pytest.approx(math.prod(right.tolist()) ** (1 / len(right)), rel=1e-5)
        assert 0 < reward <= 1


def test_the_selection_is_by_loss():
    task = load_task(IMAGES)
    config = changed(IMAGES, score="loss", protection=("none",))
    records = run(config, task=task)
    by_error = run(changed(IMAGES, protection=("none",)), task=task)
    candidates = records[-1].candidates
    rewards = [reward for _, reward in candidates]
    assert rewards == sorted(rewards, reverse=True)
    assert records[-1].reward == rewards[0] != by_error[-1].reward
    assert SearchResult(config, records).unit.reward == "exp(−loss)"
    assert SearchResult(IMAGES, by_error).unit.reward == "accuracy"


def test_the_loss_of_text_is_its_error():
    task = load_task(TEXT)
    searches = [Search(changed(TEXT, score=score), task, SearchArm(0, "wpl")) for score in ("error", "loss")]
    architecture = searches[0].space.space.sample(torch.Generator())
    first, second = (search.rewards.of(architecture) for search in searches)
    assert first == second
    assert LanguageModelling.loss_score == "80 / perplexity"


def test_what_diverged_has_no_reward(monkeypatch):
    task = load_task(IMAGES)
    assert math.isnan(task.reward_of_loss(math.nan))
    assert math.isnan(task.reward_of_loss(math.inf))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    torch.nn.init.constant_(model[1].bias, math.nan)
    assert math.isnan(task.held_out_loss(model, "reward"))
    monkeypatch.setattr(ImageClassification, "held_out_loss", Task.held_out_loss)
    with pytest.raises(InputError, match="Expected a task with a loss to score by, but images has none"):
        task.held_out_loss(model, "reward")
    with pytest.raises(InputError, match="score to be one of error, loss, but got 'rank'"):
        changed(TEXT, score="rank")
