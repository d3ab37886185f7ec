"""Pages of what it takes to run this: other processors, kills and damage, and the cost of each part."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import instruction_sets
from page import HERE, Cells, Page, command_block, environment, read, table

from forgetless.report.formats import span

OUTCOMES = ("identical", "warned", "refused", "wrong")
MEANINGS = """- *Identical*: the same result after resuming, with no message.
- *Warned*: the same, and a sentence says what was lost or left out.
- *Refused*: one clear sentence, and exit code 2 or 1.
- *Wrong*: another result with no message, a traceback, a hang, or a process that is left over."""

TRAINER_LINES = """from forgetless.integrations.transformers import PlasticityCallback
callback = PlasticityCallback(alpha=1.0, old_data=old_dataset)
trainer = Trainer(model, args, train_dataset=new_dataset, callbacks=[callback])
trainer.train()
"""


def pages() -> list[Page]:
    return [
        *(processors(), same_numbers(), reliability(), faults()),
        *(fine_tunings(), speed(), sharded(), upkeep()),
    ]


def processors() -> Page:
    reductions = instruction_sets.reductions("avx2")
    operations = read(HERE / "reproducibility" / "operations.json")
    bits = [
        {
            "": name,
            "operations that differ": f"{len(found['differ'])} of {found['operations']}",
            "which": "; ".join(found["differ"]),
        }
        for name in ("without settings", "with settings")
        if (found := operations[name])
    ]
    return Page(
        name="other-processors",
        title="Other processors",
        question="The headline runs once more with the same seeds, limited to another instruction set. Do their "
        "conclusions hold?",
        answer=f"They hold: weight plasticity prevents {span(reductions)} % with AVX2.",
        more="Single seeds give other numbers, so quote means over seeds with their intervals.",
        parts=[
            command_block(
                "python results/instruction_sets.py avx2",
                "The committed runs are from another processor, whose instruction set was not recorded. Intervals are "
                "95 %, over seeds.",
            ),
            *instruction_sets.tables(),
            "## Operations of PyTorch",
            command_block(
                operations["command"],
                "The same operations, bit for bit, on this processor and on three that QEMU emulates. The settings are "
                f"`{' '.join(f'{k}={v}' for k, v in operations['settings'].items())}`. "
                f"{environment(operations['environment'])}.",
            ),
            table(bits),
        ],
    )


def same_numbers() -> Page:
    """Which records stayed as they were when the code changed."""
    found = read(HERE / "same-numbers.json")
    again = (
        "Seed 0 of committed runs, under their processor settings, compared record by record but for times. "
        f"{environment(found['environment'])}."
    )
    small = "Small runs of every space by the present code and by another checkout's, from before faults were mended."
    how = {
        "repeated": ("python results/same_numbers.py", again),
        "small": ("python results/same_numbers.py --before CHECKOUT", small),
    }
    made = {name: found[name] for name in how if name in found}
    same, apart = (sum(one[key] for runs in made.values() for one in runs.values()) for key in ("same", "apart"))
    return Page(
        name="same-numbers",
        title="Same numbers",
        question="The code was rebuilt, and faults in the importance and in shared buffers were mended. Do runs still "
        "give the numbers that are committed here?",
        answer=f"Yes: {same} records are the same to the last bit, and {apart or 'none'} differ.",
        more="No table had to be made again. The mended faults do not touch the experiments: their shared weights are "
        "given as parameters, batch normalisation keeps no running statistics there, importance is asked for by the "
        "weights, frozen or not, and where it is 0 it is taken as it is.",
        parts=[
            part
            for name, runs in made.items()
            for part in (command_block(*how[name]), table([same_row(run, one) for run, one in runs.items()]))
        ],
    )


def same_row(run: str, one: Mapping[str, Any]) -> Cells:
    same, apart = (str(one[key]) for key in ("same", "apart"))
    return {"": run, "same records": same, "other records": apart, "compared with revision": one["against"]}


def reliability() -> Page:
    """How often a run was struck in each way, and how it ended."""
    found = read(HERE / "reliability.json")
    totals: dict[str, dict[str, int]] = {}
    revisions: dict[str, set[str]] = {}
    for name, section in found["sections"].items():
        what = "decompression bombs as data" if name.startswith("bomb ") else name.partition(", part ")[0]
        what = what.replace("gone on in", "then resumed")
        total = totals.setdefault(what, dict.fromkeys(OUTCOMES, 0))
        revisions.setdefault(what, set()).add(section["revision"])
        for counts, outcome in itertools.product(section["counts"].values(), OUTCOMES):
            total[outcome] += counts[outcome]
    rows: list[Cells] = [
        {"what": what, **{o: str(n) for o, n in total.items()}, "revision": ", ".join(sorted(revisions[what]))}
        for what, total in totals.items()
    ]
    tries, wrong = sum(sum(t.values()) for t in totals.values()), sum(t["wrong"] for t in totals.values())
    return Page(
        name="reliability",
        title="Reliability",
        question="What happens to a run that is killed, meets a full disk, is started twice, gets signals, or has its "
        "files damaged?",
        answer=f"{wrong} of {tries:,} tries gave a wrong result.",
        more="All others gave the same result, warned, or were refused. [Faults that were found before](faults.md) "
        "have a test each.",
        parts=[
            command_block(found["command"], f"{found['about']} Tried were real commands of small size."),
            MEANINGS,
            table(rows),
        ],
    )


def faults() -> Page:
    found = read(HERE / "faults.json")
    return Page(
        name="faults",
        title="Faults found before, and their tests",
        question="What was found to go wrong once?",
        answer=f"{len(found)} faults; for each there is a test that fails if it comes back.",
        parts=[table([{"what": what, "test": f"`{test}`"} for what, test in found.items()])],
        is_listed=False,
    )


def fine_tunings() -> Page:
    """Runs of the Hugging Face Trainer with the callback, killed and resumed."""
    found = read(HERE / "fine-tunings.json")
    runs = found["runs"]
    protected = [run for run in runs if run["protection"] != "none"]
    same = sum(run["same_weights"] and run["same_logs"] for run in protected)
    rows: list[Cells] = [
        {
            "layout": run["layout"],
            "trained": run["trained"],
            "protection": run["protection"],
            "old text, before": f"{found['old_before'][run['layout']]:.3f}",
            "after": f"{run['old']:.3f}",
            "new text": f"{run['new']:.3f}",
            "resumed": "equal" if run["same_weights"] and run["same_logs"] else "differs",
        }
        for run in runs
    ]
    return Page(
        name="fine-tunings",
        title="The Hugging Face Trainer",
        question="Does a fine-tuning with `PlasticityCallback` that is killed and resumed end as one never stopped?",
        answer=f"{same} of {len(protected)} protected runs end with the same weights and logs, bit for bit.",
        more="A tolerance of 0.05 nats was kept in each case. Under LoRA α = 100 kept little, and nothing of GPT-2: "
        "the diagonal Fisher predicts little of what the two factors do together. Use a tolerance there.",
        parts=[
            command_block(
                found["command"],
                f"Character models (2 layers, width 64) know the King James text and learn the reference manual of "
                f"Python in {found['steps']} steps of AdamW at batch 16, GPT-2 and LoRA with dropout. Each run is a "
                f"process; it is killed (SIGKILL) after step {found['killed_after']}, in the middle of an epoch, and "
                f"resumed by another from the checkpoint of step {runs[0]['resumed_from']}. Losses are in nats per "
                f"character, on text that neither training has seen; one seed. {environment(found['environment'])}.",
            ),
            table(rows),
            f"What a user types:\n\n```python\n{TRAINER_LINES}```",
        ],
    )


def speed() -> Page:
    measured = [read(path) for path in sorted((HERE / "speed").glob("*.json"))]
    tables = {(m["benchmark"], title): timings for m in measured for title, timings in m.get("tables", {}).items()}
    sgd, adam = (ratio(tables["proximal_step", f"{name}, batch 128 of MNIST, 20 steps"], 1) for name in ("SGD", "Adam"))
    fisher = ratio(tables["fisher", "MLP 784-512-512-512-10, 10,000 examples of MNIST, batch 1000"], 1)
    return Page(
        name="speed",
        title="Speed",
        question="How much time do the parts of weight plasticity and of a search take?",
        answer=f"A training step takes {sgd} times as long under SGD, {adam} under Adam.",
        more=f"That is at batch 128. The diagonal Fisher of an MLP takes {fisher} times one forward and backward "
        "pass over the same examples. Ratios are to the first row of each table, medians of interleaved rounds.",
        parts=[
            part
            for m in measured
            for part in (
                f"## {m['benchmark'].replace('_', ' ').capitalize()}",
                command_block(m["command"], f"{rounds(m)}{environment(m['environment'])}."),
                *(f"{t}:\n\n{table([timing(row) for row in rows])}" for t, rows in m.get("tables", {}).items()),
                *(f"{t}:\n\n{table([in_words(row) for row in rows])}" for t, rows in m.get("facts", {}).items()),
            )
        ],
    )


def sharded() -> Page:
    found = read(HERE / "sharded.json")
    numeric = [row for row in found["differences"] if row["numbers"]]
    rows = [
        {
            "what": row["check"].rstrip("."),
            "numbers": str(row["numbers"]),
            "largest difference": f"{row['largest']:.0e}",
        }
        for row in numeric
    ]
    largest = max(row["largest"] for row in numeric)
    return Page(
        name="sharded",
        title="Sharded weights",
        question="Do two processes with sharded weights compute what one process with whole weights does?",
        answer=f"Yes, to {largest:.0e}.",
        more="In float64, on both processes to the bit the same; 10⁻⁶ is what the tests ask for. `make test-slow` also "
        "kills the processes at random moments and starts new ones.",
        parts=[
            command_block(
                "FORGETLESS_SHARDED=results/sharded.json python -m pytest tests/test_sharded.py -k two_processes",
                f"{environment(found['environment'])}, `fully_shard` with gloo.",
            ),
            table(rows),
        ],
    )


def in_words(row: Mapping[str, str | float]) -> Cells:
    return {name: value if isinstance(value, str) else f"{value:.4g}" for name, value in row.items()}


def rounds(measured: Mapping[str, Any]) -> str:
    return f"{measured['rounds']} rounds, " if "rounds" in measured else ""


def ratio(timings: Sequence[Mapping[str, Any]], row: int) -> str:
    return f"{timings[row]['ratio']:.2f}"


def timing(measured: Mapping[str, Any]) -> Cells:
    return {
        "": measured["name"],
        "ms": f"{1e3 * measured['seconds']:.1f}",
        "ratio": f"{measured['ratio']:.2f}",
        "quartiles": f"{measured['ratio_low']:.2f}–{measured['ratio_high']:.2f}",
    }


def upkeep() -> Page:
    """What storing the state of a run, its report, its evaluation and several processes take."""
    stored, reports = read(HERE / "checkpoints.json"), read(HERE / "report-load.json")
    judged, fanned = read(HERE / "evaluate.json"), read(HERE / "fan-out.json")
    most = max(run["share"] for run in stored["runs"].values())
    longest = max(report["seconds"] for report in reports["reports"].values())
    imports = min(report["imports_mb"] for report in reports["reports"].values())
    checkpoints: list[Cells] = [
        {
            "run": name,
            "s": f"{run['seconds']:.0f}",
            "calls": f"{run['calls']:,}",
            "s in calls": f"{run['seconds_in_calls']:.2g}",
            "longest checkpoint, s": f"{run['longest_checkpoint']:.2g}",
            "MB": f"{run['megabytes']:.1f}",
            "share, %": f"{100 * run['share']:.3f}",
        }
        for name, run in stored["runs"].items()
    ]
    pages: list[Cells] = [
        {
            "run": name,
            "records": f"{report['records']:,}",
            "s": f"{report['seconds']:.1f}",
            "peak, MB": f"{report['peak_mb']:.0f}",
            "page, MB": f"{report['page_mb']:.1f}",
        }
        for name, report in reports["reports"].items()
    ]
    ways: list[Cells] = [
        {"": name, "same numbers": f"{way['same']} of {fanned['trainings']}", "s": f"{way['seconds']:.1f}"}
        for name, way in fanned["ways"].items()
    ]
    return Page(
        name="upkeep",
        title="Checkpoints, reports, processes",
        question="What do checkpoints, reports, evaluation by a benchmark, and several processes cost?",
        answer=f"Checkpoints take at most {100 * most:.2f} % of a run's time.",
        more=f"A report of 100,000 records takes {longest:.0f} s.",
        parts=[
            "## Cost of checkpoints",
            command_block(
                stored["command"],
                f"{environment(stored['environment'])}. A checkpoint is possible at every *call*; it is stored at the "
                f"first call after `--checkpoint-every`, by default {stored['interval']}. *Share* is the part of a "
                "run's time that its calls and the longest checkpoint per such interval take.",
            ),
            table(checkpoints),
            "## Reports of long runs",
            command_block(
                reports["command"],
                f"{environment(reports['environment'])}. Each report is made by a process of its own; its imports "
                f"alone take {imports:.0f} MB.",
            ),
            table(pages),
            "## Evaluation by a shipped benchmark",
            command_block(
                judged["command"],
                f"{judged['searches']} searches of one seed, with the rank of all {judged['architectures']} "
                f"architectures on the shared weights of each, take {judged['seconds']:.1f} s. "
                f"{environment(judged['environment'])}.",
            ),
            f"## {fanned['trainings']} trainings from scratch in several processes",
            command_block(fanned["command"], f"{environment(fanned['environment'])}."),
            table(ways),
        ],
    )
