"""Which operations of PyTorch give the same bits on different x86-64 processors, and under which settings.

$ python results/operations.py                       # this processor; prints a digest per operation as JSON
$ python results/operations.py --settings            # the same, told to use no instruction newer than SSE4.1
$ python results/operations.py --write               # both, and both again on three processors that QEMU emulates

`--write` needs `qemu-x86_64`, which has no AVX-512, and writes results/reproducibility/operations.json.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

PROCESSORS = ("Nehalem", "Haswell", "EPYC")
SETTINGS = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX",
}
RESULT = Path(__file__).parent / "reproducibility" / "operations.json"


def digests() -> dict[str, str]:
    """Operation → digest of its result, on the same random numbers."""
    import torch
    from torch import Tensor
    from torch.nn import functional

    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    found: dict[str, str] = {}

    def add(name: str, result: Tensor) -> None:
        found[name] = hashlib.sha256(result.detach().contiguous().numpy().tobytes()).hexdigest()[:12]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=draw)

    add("rand", uniform(1000))
    add("randn", torch.randn(1000, generator=draw))
    add("randperm", torch.randperm(1000, generator=draw))
    add("multinomial", torch.multinomial(uniform(5, 7), 3, generator=draw))
    wide, weight = uniform(128, 784), uniform(100, 784)
    add("matmul", uniform(64, 100) @ uniform(100, 30))
    add("linear", functional.linear(wide, weight, torch.ones(100)))
    add("matrix by vector", wide @ weight[0])
    add("dot", torch.dot(wide[0], weight[0]))
    add("bmm", torch.bmm(uniform(4, 8, 9), uniform(4, 9, 7)))
    signed, positive = uniform(1003) * 4 - 2, uniform(1003) + 1e-3
    for name in ("exp", "tanh", "sigmoid", "sin"):
        add(name, getattr(torch, name)(signed))
    for name in ("log", "log1p", "sqrt", "rsqrt", "reciprocal"):
        add(name, getattr(torch, name)(positive))
    add("pow", positive**0.3)
    add("div", signed / positive)
    add("lerp", torch.lerp(signed, positive, positive))
    add("addcmul", torch.addcmul(signed, signed, positive, value=0.3))
    add("addcdiv", torch.addcdiv(signed, signed, positive, value=0.3))
    table = uniform(50, 60)
    for name, result in (
        ("sum", positive.sum()),
        ("mean", table.mean(0)),
        ("var", table.var(0)),
        ("norm", table.norm()),
    ):
        add(name, result)
    logits = uniform(64, 10)
    add("softmax", torch.softmax(logits, 1))
    add("log_softmax", torch.log_softmax(logits, 1))
    add("cross_entropy", functional.cross_entropy(logits, torch.arange(64) % 10))
    images, kernel = uniform(8, 3, 16, 16).requires_grad_(), uniform(5, 3, 3, 3).requires_grad_()
    convolved = functional.conv2d(images, kernel, padding=1)
    gradients = torch.autograd.grad(convolved.square().sum(), (images, kernel))
    add("conv2d", convolved)
    add("conv2d, gradient of images", gradients[0])
    add("conv2d, gradient of weights", gradients[1])
    add("batch_norm", functional.batch_norm(images, None, None, training=True))
    add("avg_pool2d", functional.avg_pool2d(images, 3, 1, 1))
    embedding = uniform(20, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(functional.embedding(torch.arange(60) % 20, embedding).tanh().sum(), embedding)
    add("embedding, gradient", gradient)
    for optimizer in (torch.optim.SGD, torch.optim.Adam):
        stepped = uniform(30).requires_grad_()
        chosen = optimizer([stepped], lr=0.1)
        for step in range(2):
            stepped.grad = signed[30 * step : 30 * step + 30].clone()
            chosen.step()
        add(f"two steps of {optimizer.__name__}", stepped)
    return found


def measured(processor: str | None, settings: dict[str, str]) -> dict[str, str]:
    """The digests in a process of its own, on an emulated processor or this one."""
    emulator = [] if processor is None else ["qemu-x86_64", "-cpu", processor]
    ended = subprocess.run(
        [*emulator, sys.executable, __file__],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **settings},
    )
    return dict(json.loads(ended.stdout))


def write() -> None:
    """Compare all, and say which operations agree."""
    from forgetless.runs import environment

    here = environment()
    emulated = subprocess.run(["qemu-x86_64", "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, object] = {
        "command": "python results/operations.py --write",
        "environment": {name: here[name] for name in ("torch", "processor", "instruction_set", "blas", "onednn")},
        "emulator": emulated.splitlines()[0],
        "settings": SETTINGS,
    }
    for name, settings in (("without settings", {}), ("with settings", SETTINGS)):
        found = {"this processor": measured(None, settings)}
        found |= {f"{processor}, emulated": measured(processor, settings) for processor in PROCESSORS}
        operations = list(found["this processor"])
        others = [digests_ for where, digests_ in found.items() if where != "this processor"]
        result[name] = {
            "differ": [o for o in operations if len({each[o] for each in found.values()}) > 1],
            "differ between emulated processors": [o for o in operations if len({each[o] for each in others}) > 1],
            "operations": len(operations),
            "digests": found,
        }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if "--write" in sys.argv:
        write()
    elif "--settings" in sys.argv:
        print(json.dumps(measured(None, SETTINGS), indent=1))
    else:
        print(json.dumps(digests(), indent=1))
