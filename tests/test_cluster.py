"""Runs whose pieces are made on a Ray cluster, whose machines share no folder with the one that began them."""

import dataclasses
import importlib.util
import json
import pickle
from pathlib import Path

import pytest

from configs import comparison_config, search_config, two_model_config
from forgetless import InputError
from forgetless.cli import main
from forgetless.cluster import ray_pool
from forgetless.comparison.run import _run_unit, is_finished, read_evaluation, units
from forgetless.experiments import RUN_KINDS
from forgetless.experiments.carried import ArrivedPiece, CarriedPiece, read_files, run_arrived, write_files
from forgetless.experiments.pieces import PIECES, Piece, run_piece
from forgetless.runs import CHECKPOINT, CONFIG, METRICS, RunFolder

TWO_MODEL = (
    "--seeds 2 --convergence 0.5 --protection none wpl --iterations 10 --iterations-a 20 --width 8 --evaluate-every 5"
)
SEARCH = (
    "--space nas201 --nas201.units 2 --protection none --seeds 1 --epochs 3 --models-per-epoch 2 --batches-per-model 2 "
    "--strategy-steps 1 --samples-per-step 2 --final-samples 2 --final-batches 2 --batch-size 16"
)
COMPARISON = (
    "--space nas201 --nas201.units 2 --nas201.operations none skip_connect nor_conv_3x3 --strategy random --seeds 1 "
    "--allow-few-seeds --final-samples 2 --final-batches 1 --truth nas201-digits --top 1 --batch-size 16"
)
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
pytestmark = pytest.mark.usefixtures("without_pictures")


def records_of(path):
    lines = (path / METRICS).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in {"seconds", "digest"}} for line in lines]


@pytest.fixture(scope="module")
def config():
    return search_config(SEARCH)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A piece that was made here."""
    piece = Piece(tmp_path_factory.mktemp("whole") / "piece", "search", config)
    run_piece(piece)
    return piece.path


def sent(piece):
    """As it arrives on another machine."""
    return pickle.loads(pickle.dumps(CarriedPiece(piece, run_piece)))


class Home:
    """What the machine that began a piece hears, and answers."""

    def __init__(self, path, is_over=lambda _: False):
        self.path, self._is_over = path, is_over

    def tell(self, files):
        write_files(self.path, files)
        return self._is_over(self.path)


def test_a_piece_is_made_elsewhere_and_comes_back(config, whole, tmp_path):
    piece = Piece(tmp_path / "piece", "search", config)
    arrived = sent(piece)
    assert arrived == ArrivedPiece(piece, {}, run_piece)
    files = run_arrived(arrived, Home(tmp_path / "told").tell)
    assert not piece.path.exists()
    write_files(piece.path, files)
    assert records_of(piece.path) == records_of(whole)
    assert RUN_KINDS["search"].read(config, RunFolder(piece.path))  # its seals and digests hold
    assert {name for name in files if name.endswith(".pt")} == {file.name for file in whole.glob("*.pt")}


def test_a_piece_that_is_asked_to_stop_sends_what_it_has_and_goes_on_elsewhere(config, whole, tmp_path, monkeypatch):
    """The same records as without an interruption, from a checkpoint that was stored because of it."""
    monkeypatch.setattr("forgetless.experiments.carried._SECONDS_BETWEEN_LOOKS", 0.01)
    piece = Piece(tmp_path / "piece", "search", config)
    home = Home(piece.path, lambda path: (path / CONFIG).is_file())
    with pytest.raises(RuntimeError, match="it was asked to stop"):
        run_arrived(sent(piece), home.tell)
    begun = records_of(piece.path)
    assert len(begun) < len(records_of(whole))
    assert (piece.path / CHECKPOINT).is_file()
    write_files(piece.path, run_arrived(sent(piece), Home(tmp_path / "told").tell))
    assert records_of(piece.path) == records_of(whole)


def test_what_changes_is_sent_back_while_it_is_made(config, tmp_path, monkeypatch):
    monkeypatch.setattr("forgetless.experiments.carried._SECONDS_BETWEEN_LOOKS", 0.01)
    told = []
    run_arrived(sent(Piece(tmp_path / "piece", "search", config)), lambda files: told.append(set(files)))
    # Nothing that was not delivered (None) counts as sent.
    assert any({CONFIG, METRICS, CHECKPOINT} <= names for names in told)


def test_files_are_read_as_they_were_together(tmp_path, monkeypatch):
    """A writer replaces both files after the first of them was read: both are read again."""
    read, reads = Path.read_bytes, []

    def write(content):
        write_files(tmp_path, {METRICS: content, CHECKPOINT: content})

    def read_bytes(path):
        content = read(path)
        reads.append(path.name)
        if len(reads) == 1:
            write(b"newer")
        return content

    write(b"old")
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert read_files(tmp_path) == {METRICS: b"newer", CHECKPOINT: b"newer"}
    assert sorted(reads) == sorted([METRICS, CHECKPOINT] * 2)


def test_a_cluster_decides_no_number(config):
    other = config.changed({"resources.cluster": "local"})
    assert RUN_KINDS["search"].pieces(config) == RUN_KINDS["search"].pieces(other)
    assert dataclasses.replace(other, resources=config.resources) == config


def test_the_searches_of_a_comparison_are_made_elsewhere_and_judged_there(tmp_path):
    config = comparison_config(COMPARISON)
    (unit,) = units(RUN_KINDS["compare"].create(tmp_path / "run", config), config)
    files = run_arrived(pickle.loads(pickle.dumps(CarriedPiece(unit, _run_unit))), Home(tmp_path / "told").tell)
    assert not unit.path.exists()
    write_files(unit.path, files)
    assert is_finished(unit)
    assert [judged.run for judged in read_evaluation(unit).searches] == ["random/seed-0"]


@needs_ray
def test_a_job_on_cuda_has_a_gpu_of_its_own(monkeypatch):
    """As Ray is told; there is none here."""
    resources, asked = {"CPU": 4.0}, []
    monkeypatch.setattr("ray.init", lambda **_: None)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.cluster_resources", lambda: resources)
    monkeypatch.setattr("ray.remote", lambda **options: lambda _: asked.append(options))

    def begin(device):
        with ray_pool(1, "local", lambda job: job, print, device=device, tells=False):
            pass

    with pytest.raises(InputError, match="Expected a cluster with GPUs for the device cuda, but local has none"):
        begin("cuda")
    with pytest.raises(InputError, match="Expected the device cuda without a number on a cluster"):
        begin("cuda:1")
    resources["GPU"] = 2.0
    begin("cuda")
    begin("cpu")
    assert [options["num_gpus"] for options in asked] == [1, 0]


@needs_ray
@pytest.mark.parametrize(
    ("cluster", "message"),
    [("127.0.0.1:1", "answers within 10 s at 127.0.0.1:1, but got"), ("nonsense", "Expected HOST:PORT")],
)
def test_a_cluster_that_is_not_there_is_one_sentence_and_no_folder(tmp_path, capfd, cluster, message):
    command = ["two-model", *TWO_MODEL.split(), "--cluster", cluster, "--output", str(tmp_path / "run")]
    assert main(command) == 2
    error = capfd.readouterr().err
    assert message in " ".join(error.split())
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_without_ray_it_is_one_sentence(tmp_path, capfd, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    assert main(["search", *SEARCH.split(), "--cluster", "local", "--output", str(tmp_path / "run")]) == 2
    assert "Expected Ray for --cluster, but it is not installed." in " ".join(capfd.readouterr().err.split())


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_ray_makes_the_records_of_one_process(tmp_path):
    """And goes on with what this machine began; `make test-slow` tries every kind, and an interruption."""
    here, there = tmp_path / "here", tmp_path / "there"
    assert main(["two-model", *TWO_MODEL.split(), "--output", str(here)]) == 0
    config = two_model_config(TWO_MODEL)
    kind = RUN_KINDS["two-model"]
    folder = kind.create(there, config)
    kept = kind.read(config, RunFolder(here))[:1]
    with folder.writing():
        folder.replace_records([record.to_dict() for record in kept])
    assert main(["resume", str(there), "--cluster", "local", "--workers", "1"]) == 0
    assert records_of(there) == records_of(here)
    assert not (there / PIECES).exists()
