"""Runs spread over processes: the same records, from wherever they were interrupted."""

import dataclasses
import json
import shutil

import pytest

from configs import fine_tune_config, landscape_config, search_config, two_model_config
from forgetless.cli import main
from forgetless.experiments import RUN_KINDS
from forgetless.experiments.pieces import PIECES, Piece, run_piece
from forgetless.records import plain
from forgetless.runs import METRICS, RunFolder

SEARCH = (
    "--space nas201 --nas201.units 2 --protection matched-lr none wpl --seeds 2 --epochs 2 --models-per-epoch 2 "
    "--batches-per-model 2 --strategy-steps 1 --samples-per-step 2 --final-samples 2 --final-batches 2 --batch-size 16 "
    "--protect-from 0"
)
TWO_MODEL = (
    "--seeds 2 --convergence 1 0.5 --protection none wpl matched-lr si --wpl.strength 10 1e3 --iterations 10 "
    "--iterations-a 20 --width 8 --evaluate-every 5"
)
LANDSCAPE = (
    "--seeds 2 --protection none ewc freeze wpl --iterations 10 --iterations-a 20 --width 8 --evaluate-every 5 "
    "--points 3"
)
FINE_TUNE = (
    "--old {texts}/old --to {texts}/new --seeds 2 --protection none wise-ft replay --wise-ft.strength 0.2 0.5 "
    "--layers 1 --width 16 --heads 2 --context 8 --num-tokens 200 --steps 5 --pretraining 8 --batch-size 4 "
    "--evaluate-every 4 --samples 8"
)
pytestmark = pytest.mark.usefixtures("forked_workers", "without_pictures")
RUNS = {
    "search": (search_config, SEARCH),
    "two-model": (two_model_config, TWO_MODEL),
    "landscape": (landscape_config, LANDSCAPE),
    "fine-tune": (fine_tune_config, FINE_TUNE),
}


def records_of(path):
    lines = (path / METRICS).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in {"seconds", "digest"}} for line in lines]


@pytest.fixture(scope="module", params=list(RUNS))
def whole(request, tmp_path_factory, forked_workers, without_pictures, two_texts):
    """A run that one process made: its experiment, the words of its command, its folder."""
    path = tmp_path_factory.mktemp("whole") / "run"
    words = RUNS[request.param][1].format(texts=two_texts)
    assert main([request.param, *words.split(), "--output", str(path)]) == 0
    return request.param, words, path


def test_two_processes_make_the_records_of_one(whole, tmp_path):
    name, words, path = whole
    assert main([name, *words.split(), "--workers", "2", "--output", str(tmp_path / "run")]) == 0
    assert records_of(tmp_path / "run") == records_of(path)
    assert not (tmp_path / "run" / PIECES).exists()
    assert {file.name for file in (tmp_path / "run").glob("*.pt")} >= {file.name for file in path.glob("trained-*.pt")}


def test_pieces_are_disjoint_and_make_everything(whole):
    name, words, path = whole
    kind, config = RUN_KINDS[name], RUNS[name][0](words)
    pieces = kind.pieces(config)
    records = kind.read(config, RunFolder(path))
    for record in records:
        assert sum(kind.belongs(piece, record) for piece in pieces.values()) == 1
    assert sum(map(kind.num_records, pieces.values())) == kind.num_records(config) == len(records)
    assert kind.ordered(config, records if name == "search" else records[::-1]) == records


def test_a_piece_that_was_begun_is_gone_on_with_and_put_in_its_place(whole, tmp_path):
    """Killed after a piece was made and before it was put together: resume does that, with any number of processes."""
    name, words, path = whole
    kind, config = RUN_KINDS[name], RUNS[name][0](words)
    folder = RunFolder.create(tmp_path / "run", {"experiment": name, **config.to_dict()})
    last = list(kind.pieces(config).items())[-1]
    run_piece(Piece(folder.path / PIECES / last[0], name, last[1]))
    assert main(["resume", str(folder.path)]) == 0
    assert records_of(folder.path) == records_of(path)
    assert not (folder.path / PIECES).exists()


def test_what_one_process_began_several_go_on_with(whole, tmp_path):
    """Records and checkpoint of a run that was begun without --workers go to the piece that they are of."""
    name, words, path = whole
    copy = tmp_path / "run"
    shutil.copytree(path, copy)
    folder = RunFolder(copy)
    kind, config = RUN_KINDS[name], RUNS[name][0](words)
    kept = kind.read(config, folder)[:5]
    with folder.writing():
        folder.replace_records(plain(kept))
    (copy / "checkpoint.pt").unlink(missing_ok=True)
    (copy / "checkpoint-before.pt").unlink(missing_ok=True)
    assert main(["resume", str(copy), "--workers", "2"]) == 0
    assert records_of(copy) == records_of(path)


def test_a_piece_that_fails_is_named_and_the_others_are_done(tmp_path, capfd):
    config = search_config(SEARCH)
    name = next(iter(RUN_KINDS["search"].pieces(config)))
    folder = RunFolder.create(tmp_path / "run", {"experiment": "search", **config.to_dict()})
    (folder.path / PIECES / name).mkdir(parents=True)
    (folder.path / PIECES / name / "config.toml").write_text("no = [toml")
    assert main(["resume", str(folder.path)]) == 1
    assert f"{name} failed" in capfd.readouterr().err
    kept = RUN_KINDS["search"].read(config, RunFolder(folder.path))
    assert {(r.seed, r.protection) for r in kept} == {
        *((0, "none"), (1, "none"), (1, "wpl"), (1, "matched-lr")),
        *(((0, "wpl"), (0, "matched-lr")) if name != "seed-0-wpl" else ()),
    } - ({(0, "none")} if name == "seed-0-none" else set())


def test_workers_decide_no_number():
    config = search_config(SEARCH)
    other = config.changed({"resources.workers": 2})
    assert RUN_KINDS["search"].pieces(config) == RUN_KINDS["search"].pieces(other)
    assert dataclasses.replace(other, resources=config.resources) == config
