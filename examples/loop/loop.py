"""The whole circle on one machine, offline: serve, listen, notice, retrain, try, roll back, promote.

    python examples/loop/loop.py            # `make loop`
    python examples/loop/loop.py --help

Everything is done by `tuneloop` commands in processes of their own, which are printed; customers come from `customers.py`, by
HTTP. Nothing is decided here: the script only waits, and plants what is to be found. One week takes a minute, by
`TUNELOOP_CLOCK`, which lets the clock of stored events run faster for all commands alike.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NEW_LINE = "subscription"  # the queue of the product line that appears in the second week
WEEK = 7 * 86_400.0
MONTHS = 6  # of 28 days, that the good candidate's experiment may last
INSTRUCTION = "Which queue does this ticket to Marrow & Pine belong to?"
MODEL = "queue"
IDS = re.compile(r" Requests: [^.]*\.")  # of the requests behind an alarm, which say nothing here


@dataclass
class Shop:
    """The shop that all of it is about.

    Args:
        folder: where everything is written.
        asked: the command line.
        training_seconds: that trainings took.
        spent: seconds of each kind of command, one value a call; `customers` is the time in which customers came.
    """

    folder: Path
    asked: argparse.Namespace
    training_seconds: float = 0.0
    server: subprocess.Popen[bytes] | None = None
    address: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    spent: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        speed = WEEK / self.asked.seconds
        self.environment = {
            **os.environ, "TUNELOOP_CLOCK": f"{time.time():.3f},{speed:.1f}",
            "MLFLOW_REGISTRY_URI": f"sqlite:///{self.folder / 'mlflow.db'}", "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'mlflow.db'}",
        }  # fmt: skip

    def tuneloop(self, *text: str, allowed: Sequence[int] = (0,), quiet: bool = False) -> tuple[int, dict[str, Any]]:
        """Run a command; returns its exit status and the object that it printed."""
        if not quiet:
            print(f"$ tuneloop {' '.join(text)}", flush=True)
        begun = time.monotonic()
        command = [sys.executable, "-m", "tuneloop", *text, "--json", "-q"]
        with (self.folder / "loop.log").open("ab") as log:
            done = subprocess.run(
                command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=log, check=False
            )
        seconds = time.monotonic() - begun
        self.spent.setdefault(" ".join(text[: 2 if text[0] in ("ab", "improve") else 1]), []).append(seconds)
        if text[0] == "run":
            self.training_seconds += seconds
        found: dict[str, Any] = {}
        with suppress(ValueError, IndexError):
            found = json.loads(done.stdout.decode().strip().splitlines()[-1])
        if done.returncode not in allowed:
            raise SystemExit(
                f"tuneloop {text[0]} failed: {found.get('error') or done.returncode}; see {self.folder / 'loop.log'}"
            )
        return done.returncode, found

    # --- the server

    def serve(self) -> None:
        """Start the server, or start it again so that it loads what the registry and the experiments name now."""
        self.stop()
        (self.folder / "serve" / "state.json").unlink(missing_ok=True)
        text = [
            "serve",
            f"{MODEL}@champion",
            "folder=serve",
            "port=0",
            "objective.admission=queue",
            "keys.open_rights=[users,feedback]",  # no one but these customers reaches it
            "prices.input=0.05",
            "prices.output=0.2",
        ]
        print(f"$ tuneloop {' '.join(text)} &", flush=True)
        with (self.folder / "server.log").open("ab") as log:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "tuneloop", *text, "-q"],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        state = self.folder / "serve" / "state.json"
        begun = time.monotonic()
        until = begun + 300
        while time.monotonic() < until and self.server.poll() is None:
            with suppress(OSError, ValueError, KeyError):
                self.address = json.loads(state.read_text())["address"]
                with urllib.request.urlopen(f"{self.address}/readyz", timeout=5):
                    self.spent.setdefault("serve, until it is ready", []).append(time.monotonic() - begun)
                    return
            time.sleep(0.2)
        raise SystemExit(f"The server did not start; see {self.folder / 'server.log'}")

    def stop(self) -> None:
        """Stop the server, if it runs."""
        if self.server is not None and self.server.poll() is None:
            self.server.send_signal(signal.SIGTERM)
            try:
                self.server.wait(60)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait()
        self.server = None

    # --- customers

    def week(
        self, name: str, tickets: Path, decide: Callable[[], bool] | None = None, days: float = 7.0
    ) -> dict[str, Any]:
        """Let customers come for some days; `decide` is called once a day, and ends them where it says so."""
        self.seed += 1
        customers, seconds = round(self.asked.customers * days / 7), self.asked.seconds * days / 7
        command = [sys.executable, str(HERE / "customers.py"), self.address, str(tickets), "--model", MODEL, "--customers", str(customers),
                   "--seconds", f"{seconds:.1f}", "--seed", str(self.seed)]  # fmt: skip
        running = subprocess.Popen(command, stdout=subprocess.PIPE)
        begun, ended = time.monotonic(), False
        while decide is not None and not ended and running.poll() is None:
            time.sleep(self.asked.seconds / 7)
            ended = decide()
        if ended and running.poll() is None:
            running.terminate()
            running.wait()
            self.spent.setdefault("customers come", []).append(time.monotonic() - begun)
            print(f"{name:<12}the customers of the rest of these days were not needed", flush=True)
            return {}
        out, _ = running.communicate()
        self.spent.setdefault("customers come", []).append(time.monotonic() - begun)
        found: dict[str, Any] = json.loads(out)
        if not found["sent"]:
            raise SystemExit(f"No ticket was answered; see {self.folder / 'server.log'}")
        print(
            f"{name:<12}{found['sent']} tickets of {found['careful']} careful and {found['hasty']} hasty customers: {found['right'] / found['sent']:.0%} "
            f"answered rightly, {found['thumbs']} rated, {found['label']} put right, {found['refused']} refused", flush=True,
        )  # fmt: skip
        return found

    def monitor(self) -> bool:
        """Look at the last week; returns whether something has changed."""
        status, found = self.tuneloop(
            "monitor", "serve", "--reference", "runs/first/dataset", "--window", "7d", allowed=(0, 1, 3)
        )
        for line in found["summary"][:6]:
            print(f"monitor     {IDS.sub('', line)}", flush=True)
        return status == 1


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def divide(shop: Shop) -> dict[str, Path]:
    """Divide the tickets: for the first training, and for each time of customers others, so that no model has seen them."""
    rows = [json.loads(line) for line in shop.asked.tickets.read_text(encoding="utf-8").splitlines()]
    rows = [{"text": row["text"], "queue": row["queue"]} for row in rows if len(row["text"].split()) <= 100]
    random.Random(0).shuffle(rows)
    old, new = [row for row in rows if row["queue"] != NEW_LINE], [row for row in rows if row["queue"] == NEW_LINE]
    first = shop.asked.first_rows
    rest, half = (len(old) - first) // 4, len(new) // 2
    names = sorted({row["queue"] for row in old})
    wrong = dict(zip(names, names[1:] + names[:1], strict=True))
    parts = {
        "first": old[:first],
        "planted": [{**row, "queue": wrong[row["queue"]]} for row in old[: first // 2]],
        "known": old[first : first + rest],
        "launch": old[first + rest : first + 2 * rest] + new[:half],
        "after": old[first + 2 * rest : first + 3 * rest] + new[half:],
    }
    return {name: write_lines(shop.folder / f"{name}.jsonl", part) for name, part in parts.items()}


def recipe(shop: Shop, name: str, rows: Path, share: float) -> str:
    """Write a recipe, as a user would by hand, and run it."""
    path = shop.folder / f"{name}.yaml"
    train: dict[str, Any] = {"rows_per_step": 4, **dict(shop.asked.train), "epochs": share * shop.asked.epochs}
    data = {"sources": [rows.name], "format": "text_label", "text": "text", "label": "queue", "instruction": INSTRUCTION,
            "split": {"val": 0.1, "test": 0.1}}  # fmt: skip
    settings = {"version": 1, "name": name, "model": shop.asked.model, "data": data, "train": train,
                "baselines": {"zero_shot": False, "few_shot": 0, "classical": False}, "plan": {"usd_per_hour": 0.05},
                "track": {"report_to": "none"}}  # fmt: skip
    path.write_text(json.dumps(settings, indent=2))
    shop.tuneloop("run", path.name, f"output_dir=runs/{name}", allowed=(0, 1))
    return path.name


def setting(text: str) -> tuple[str, Any]:
    """A setting of training from the command line."""
    name, _, value = text.partition("=")
    return name, json.loads(value)


def release(shop: Shop, name: str) -> str:
    """Export and register a run; returns its version."""
    shop.tuneloop("export", f"runs/{name}", "--format", "adapter", "-o", f"artifacts/{name}")
    _, found = shop.tuneloop("models", "register", f"artifacts/{name}", "--name", MODEL, "--run", f"runs/{name}")
    return str(found["version"])


def try_planted(shop: Shop, tickets: Path) -> None:
    """A candidate that someone made of mixed-up labels meets live traffic: the experiment has to take it back."""
    version = release(shop, "planted")
    print(
        f"planted     version {version} was trained on labels that were mixed up; no one asked a gate, nor began in shadow mode"
    )
    shop.tuneloop("ab", "start", "planted", "--model", MODEL, "--candidate", f"models:/{MODEL}/{version}", "--ramp", "25,50", "--effect", "0.1",
                  "--base", "0.7", "--hold-days", "2", "--maturation-hours", "12", "--no-shadow", "--missing", "one-way")  # fmt: skip
    shop.serve()

    def decide() -> bool:
        status, found = shop.tuneloop("ab", "check", "planted", allowed=(0, 1, 3), quiet=True)
        print(
            f"{'rolled back' if found['outcome'] == 'roll back' else found['outcome']:<12}{found['sentence']}",
            flush=True,
        )
        return status != 3

    shop.week("weeks 3-5", tickets, decide, days=21)


def improve(shop: Shop, tickets: Path) -> str:
    """Retrain where there is a reason, and continue until the cycle has ended; returns how."""
    project = {
        "name": "shop", "model": MODEL, "recipe": "first.yaml", "champion": "runs/first", "suite": "suite.yaml",
        "triggers": {"every_days": 91, "corrections": 30, "alarms": 1}, "usd_per_hour": 0.05,
        "budget": {"usd": 1.0}, "value": {"usd_per_answer": 0.02},
        "steps": {"experiment": ["ab", "start", "{experiment}", "--store", "{store}", "--model", "{model}", "--ramp", "25,50", "--effect", "0.1",
                                 "--base", "0.6", "--hold-days", "2", "--maturation-hours", "12", "--shadow-copies", "30",
                                 "--missing", "one-way"]},
    }  # fmt: skip
    (shop.folder / "project.yaml").write_text(json.dumps(project, indent=2))
    suite = {"version": 1, "name": "queue", "metrics": [{"metric": "accuracy", "margin": 0.25}]}
    (shop.folder / "suite.yaml").write_text(json.dumps(suite))
    begun = time.monotonic()
    last: dict[str, Any] = {}

    def one_pass() -> bool:
        nonlocal last
        status, last = shop.tuneloop("improve", "project.yaml", allowed=(0, 1, 3), quiet=True)
        print(
            f"{'promoted' if last['sentence'].startswith('promoted') else last['state']:<12}{last['sentence'].removeprefix('promoted: ')}",
            flush=True,
        )
        return status != 3

    print("$ tuneloop improve project.yaml", flush=True)
    ended = one_pass()
    shop.training_seconds += time.monotonic() - begun
    print(f"retrained   {', '.join(last['steps'])} in {(time.monotonic() - begun) / 60:.1f} minutes", flush=True)
    if not ended:  # the experiment has begun
        shop.serve()
        for month in range(1, MONTHS + 1):
            shop.week(f"month {month}", tickets, one_pass, days=28)
            if last["state"] != "waiting":
                break
    return str(last["sentence"])


def usd(amount: float | None) -> str:
    """Dollars, where they are known."""
    return "unknown" if amount is None else f"${amount:.4f}"


def summary(shop: Shop) -> None:
    """What it all came to, from the store: costs and decisions, each made again."""
    _, report = shop.tuneloop("improve", "report", "serve")
    for cycle in report["cycles"]:
        print(f"cycle {cycle['number']:<6}began because of {'; '.join(cycle['reasons'])}; expected: gain {usd(cycle['gain_usd'])}, "
              f"cost {usd(cycle['expected_usd'])}; {cycle['outcome'] or 'continues'}: {cycle['why']}")  # fmt: skip
    for line in report["experiments"]:
        word = {"promote": "promoted", "roll back": "rolled back"}.get(line["outcome"], line["outcome"] or "continues")
        print(
            f"{word:<12}{line['name']}: {line['sentence']} {line['candidate_users']} of {line['users']} users met the candidate."
        )
        status, found = shop.tuneloop("ab", "replay", line["name"], allowed=(0, 1), quiet=True)
        print(
            f"replayed    {len(found['decisions'])} decisions of {line['name']}: {'the same' if status == 0 else 'DIFFERENT'}"
        )
    status, found = shop.tuneloop("improve", "project.yaml", "--replay", allowed=(0, 1), quiet=True)
    print(
        f"replayed    {len(found['events'])} events of the controller: {'all follow' if status == 0 else 'DIFFERENT'}"
    )
    print(
        f"costs       ${report['requests_usd']:.4f} for {report['funnel'][0]['count']} requests, ${report['training_usd']:.4f} for "
        f"{report['training_hours'] * 60:.1f} minutes of retraining"
    )
    print(f"page        {report['report'] if Path(report['report']).is_absolute() else shop.folder / report['report']}")


def main() -> None:
    """Go round once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/loop"), help="where all is written; it is emptied first"
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tickets", type=Path, default=HERE.parent / "tickets" / "tickets.jsonl")
    parser.add_argument("--first-rows", type=int, default=240, help="tickets of the first training")
    parser.add_argument("--customers", type=int, default=300, help="a week")
    parser.add_argument("--seconds", type=float, default=60.0, help="that a week takes")
    parser.add_argument("--epochs", type=int, default=2, help="of all trainings but the planted one's, which has half")
    parser.add_argument("train", nargs="*", type=setting, help="settings of all trainings, as in rank=16")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    if folder.exists() and not (folder / "loop.log").exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} holds other files; name another one with --folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "loop.log").touch()
    begun, shop = time.monotonic(), Shop(folder, asked)
    try:
        parts = divide(shop)
        recipe(shop, "first", parts["first"], 1.0)
        shop.tuneloop(
            "models",
            "promote",
            MODEL,
            release(shop, "first"),
            "--force",
            "the first one: there is nothing to compare it with",
        )
        recipe(shop, "planted", parts["planted"], 0.5)
        shop.serve()
        shop.week("week 1", parts["known"])
        shop.monitor()
        print(f"launch      a new product line: tickets about its {NEW_LINE} come, which no model here knows")
        shop.week("week 2", parts["launch"])
        shop.monitor()
        try_planted(shop, parts["launch"])
        improve(shop, parts["after"])
        shop.serve()
        shop.week("last week", parts["after"])
        summary(shop)
    finally:
        shop.stop()
    whole = time.monotonic() - begun
    print(f"took        {whole / 60:.1f} minutes, {shop.training_seconds / 60:.1f} of them in trainings")
    for name, item in sorted(shop.spent.items(), key=lambda pair: -sum(pair[1]))[:8]:
        print(f"{'':<12}{sum(item):6.0f} s  {name}" + (f", {len(item)} times" if len(item) > 1 else ""))


if __name__ == "__main__":
    main()
