"""The Hugging Face Trainer in two processes (DistributedDataParallel), and compiled, with the callback."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra `transformers`")
pytest.importorskip("accelerate", reason="needs the extra `transformers`")

pytestmark = pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler, and of slow paths of the Fisher

TESTS = Path(__file__).parents[1]
SCRIPT = """
import sys
import torch
from test_transformers import NEW, PROTECTIONS, gpt2, train
torch.set_num_threads(1)
folder, rank, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
options = {name: 0.0 for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
settings = {"data": NEW(40), "per_device_train_batch_size": batch_size, "report_to": []}
for protection in PROTECTIONS:
    whole, resumed = gpt2(n_layer=1, **options), gpt2(n_layer=1, **options)
    here = f"{folder}/{protection}"
    train(whole, PROTECTIONS[protection](), here, 6, save_strategy="steps", save_steps=3, **settings)
    train(resumed, PROTECTIONS[protection](), here, 6, resume=f"{here}/checkpoint-3", **settings)
    torch.save([whole.state_dict(), resumed.state_dict()], f"{folder}/{protection}-{rank}.pt")
"""


def run(folder, processes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    started = []
    for rank in range(processes):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        own = {name: str(value) for name, value in own.items()} if processes > 1 else {}
        path = {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder), str(rank), str(4 // processes)]
        started.append(subprocess.Popen(command, env=os.environ | shared | own | path))
    assert [process.wait(timeout=300) for process in started] == [0] * processes


def test_two_processes_stay_equal_and_are_resumed(tmp_path):
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        run(tmp_path / str(number), number)
    for protection in ("alpha", "tolerance"):
        alone = torch.load(tmp_path / "1" / f"{protection}-0.pt", weights_only=True)
        ranks = [torch.load(tmp_path / "2" / f"{protection}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        for name, weight in alone[0].items():
            for whole, resumed in ranks:
                assert torch.equal(whole[name], ranks[0][0][name])
                assert torch.equal(resumed[name], whole[name])
            torch.testing.assert_close(ranks[0][0][name], weight, rtol=0, atol=1e-5)


def test_a_compiled_training_is_protected(tmp_path):
    from forgetless.integrations.transformers import PlasticityCallback
    from test_transformers import OLD, gpt2, train

    increases = []
    for options in ({}, {"torch_compile": True}):
        model = gpt2(n_layer=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        callback = PlasticityCallback(alpha=1e3, old_data=OLD(16))
        train(model, callback, tmp_path, 4, **options)
        increases.append(callback.plasticity.expected_increase())
    assert increases[1] == pytest.approx(increases[0], rel=1e-3)
