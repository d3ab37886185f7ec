"""Methods, spaces and data from outside the package: the files of examples/plugins, by file, package and Python."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import forgetless
from configs import search_config
from forgetless import plugins
from forgetless.cli import main
from forgetless.errors import InputError
from forgetless.experiments import load_result
from forgetless.protection import PROTECTIONS
from forgetless.runs import METRICS, RunFolder
from forgetless.spaces import SPACES

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "plugins"
FILES = sorted(map(str, FOLDER.glob("*.py")))
WORDS = (
    "search --space stacks --stacks.units 8 --data even-digits --strategy climbing --climbing.restart-every 3 "
    "--protection none magnitude --magnitude.strength 5 --protect-from 0 --epochs 2 --models-per-epoch 2 "
    "--batches-per-model 2 --strategy-steps 1 --samples-per-step 2 --final-samples 2 --final-batches 2 "
    "--batch-size 16"
)


@pytest.fixture
def forget(restored_registries):
    """A call after which this process has loaded no plugin, as a new one; also made at the end."""

    def forgetting():
        plugins._loaded.clear()
        restored_registries()

    yield forgetting
    forgetting()


def without_time(path):
    lines = (path / METRICS).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in {"seconds", "digest"}} for line in lines]


@pytest.mark.parametrize("path", FILES, ids=lambda path: Path(path).stem)
def test_each_file_is_short(path):
    assert len(Path(path).read_text().splitlines()) < 50


@pytest.mark.usefixtures("forked_workers", "without_pictures")
def test_four_files_add_four_kinds_and_nothing_else_is_edited(forget, tmp_path, capfd):
    assert main([*WORDS.split(), "--plugin", *FILES, "--output", str(tmp_path / "run")]) == 0
    assert "magnitude" in capfd.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "stacks of three layers" in page
    assert "even-digits" in page
    assert "strategy climbing" in page
    # A run folder may come from anybody: it says which code it needs, and does not run it.
    for name in ("resume", "report"):
        forget()
        assert main([name, str(tmp_path / "run")]) == 2
        assert "It was made with plugins: pass --plugin" in capfd.readouterr().err
        assert main([name, str(tmp_path / "run"), "--plugin", *FILES]) == 0
    # Other processes, in which they are not there yet, load them, too.
    assert main([*WORDS.split(), "--plugin", *FILES, "--workers", "2", "--output", str(tmp_path / "spread")]) == 0
    assert without_time(tmp_path / "run") == without_time(tmp_path / "spread")


def install(path, folder, name):
    """Put a plugin where Python looks for packages, as `pip` does: it is there without --plugin."""
    (folder / f"{name}.py").write_text(Path(path).read_text())
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[forgetless.plugins]\nmine = {name}\n")


def test_they_run_against_an_installed_wheel(tmp_path):
    """Outside of the checkout, with nothing but what `python -m build` packs; one of them is installed, too."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "site")
    install(FOLDER / "magnitude.py", tmp_path / "site", "my_methods")
    files = [shutil.copy(path, tmp_path) for path in FILES if "magnitude" not in path]

    small = "two-model --seeds 1 --iterations 2 --iterations-a 2 --width 4 --protection none wpl --output two"
    commands = [[*WORDS.split(), "--plugin", *files, "--output", "run"], small.split()]
    program = f"""
import sys, forgetless
print(forgetless.__file__)
from forgetless.__main__ import main
for words in {commands}:
    sys.argv = ["forgetless", *words]
    assert main() == 0
"""
    options = {"capture_output": True, "text": True, "check": False, "cwd": tmp_path}
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, **options)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.partition("\n")[0]).is_relative_to(tmp_path / "site")
    assert "magnitude" in done.stdout
    assert "stacks of three layers" in (tmp_path / "run" / "report.html").read_text()
    assert (tmp_path / "two" / "report.html").is_file()


def test_help_and_errors_know_what_a_plugin_adds(forget, capfd):
    assert main(["search", "--plugin", *FILES, "--help-all"]) == 0
    shown = capfd.readouterr().out
    assert all(word in shown for word in ("--magnitude.power", "--climbing.restart-every", "--stacks.units"))
    forget()
    assert main([*WORDS.split(), "--plugin", *FILES, "--magnitude.power", "-1"]) == 2
    assert "Expected power to be finite and above 0, but got -1.0." in capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("import nothing_of_this_name\n", "raised ModuleNotFoundError"),
        ("1 +\n", "raised SyntaxError"),
        (
            (
                "from forgetless.protection.l2 import L2\nfrom forgetless.protection import PROTECTIONS\n"
                "class Mine(L2):\n    name = 'wpl'\n    Options = L2.Options\n"
            ),
            "Expected a class of options of its own for Mine",
        ),
        (
            "from forgetless.data import IMAGE_DATA\n@IMAGE_DATA.named('digits')\ndef load(folder): ...\n",
            "Expected a new name for a data set of images, but 'digits' is taken",
        ),
    ],
)
def test_a_bad_plugin_is_one_sentence(forget, tmp_path, capfd, content, told):
    path = tmp_path / "mine.py"
    path.write_text(content)
    assert main(["search", "--plugin", str(path)]) == 2
    error = capfd.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_no_file_is_one_sentence(capfd):
    assert main(["search", "--plugin", "nothing.py"]) == 2
    assert "Expected a Python file for --plugin, but got nothing.py." in capfd.readouterr().err


@pytest.fixture
def as_new(forget, monkeypatch):
    """A call after which installed plugins are looked for again."""

    def looking():
        forget()
        for registry in (PROTECTIONS, SPACES):
            monkeypatch.setattr(registry, "_is_complete", False)
        monkeypatch.setattr(plugins, "_installed", [])
        monkeypatch.delitem(sys.modules, "my_methods", raising=False)

    return looking


def test_an_installed_package_adds_by_its_entry_point(as_new, tmp_path, monkeypatch, capfd):
    """What a package declares is there without --plugin, and one that cannot be imported is named."""
    install(FOLDER / "magnitude.py", tmp_path, "my_methods")
    monkeypatch.syspath_prepend(tmp_path)
    as_new()
    assert main(["search", "--help-all"]) == 0
    assert "--magnitude.strength" in capfd.readouterr().out
    (tmp_path / "my_methods.py").write_text("raise RuntimeError('broken')\n")
    as_new()
    assert main(["search", "--epochs", "1"]) == 2
    assert "Expected the installed plugin mine (my_methods) to be importable" in capfd.readouterr().err


@pytest.fixture
def loaded(forget):
    """The plugins, in this process; what they added goes afterwards."""
    plugins.load_files(FILES)


def test_the_same_from_python(loaded, tmp_path):
    config = search_config(WORDS.removeprefix("search "))
    assert config.space_name == "stacks"
    result = forgetless.run_search(config)
    main([*WORDS.split(), "--output", str(tmp_path / "run")])
    stored = load_result(RunFolder(tmp_path / "run"))
    assert [r.forgetting_mean for r in result.epochs()] == [r.forgetting_mean for r in stored.epochs()]
    assert {entry.protection for entry in result.summary()} == {"none", "magnitude"}


def test_python_takes_what_is_not_registered():
    """One's own supernet, data and protection, as objects and classes that no registry knows."""
    from forgetless.data.splits import ImageData, ImageSplit
    from forgetless.protection.l2 import L2, L2Options
    from forgetless.search.config import Schedule, SearchConfig, SelectionConfig
    from forgetless.spaces.nas201 import Nas201Options, Nas201SearchSpace
    from forgetless.tasks.images import ImageClassification

    class MyOptions(Nas201Options):
        pass

    class MySpace(Nas201SearchSpace):
        name = "my-space"
        Options = MyOptions

    class MyL2Options(L2Options):
        pass

    class MyL2(L2):
        name = "my-l2"
        label = "mine"
        Options = MyL2Options

    def split(number):
        images = torch.randn(number, 1, 8, 8)
        return ImageSplit(images, (images.mean((1, 2, 3)) > 0).long())

    data = ImageData("noise", ("dark", "bright"), split(64), split(32), split(64), split(32))
    schedule = Schedule(epochs=2, models_per_epoch=2, batches_per_model=2, strategy_steps=1, samples_per_step=2)
    config = SearchConfig(schedule=schedule, selection=SelectionConfig(final_samples=0))
    space = MySpace(MyOptions(units=2))
    result = forgetless.run_search(
        config, space=space, task=ImageClassification(data, 16), protections=[MyL2Options(strength=3.0)]
    )
    assert result.config.optimizer.learning_rate == 0.1  # what fits images, though the configuration was of text
    assert [record.protection for record in result.epochs()] == ["my-l2", "my-l2"]
    assert result.unit.name == "points of accuracy"
    assert "my-space" not in SPACES
    assert "my-l2" not in PROTECTIONS


def test_two_kinds_never_share_their_options():
    from forgetless.protection.l2 import L2, L2Options

    with pytest.raises(InputError, match="Expected a class of options of its own for Mine, but got L2Options"):

        class Mine(L2):
            name = "mine"
            Options = L2Options
