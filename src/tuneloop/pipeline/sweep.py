"""A search over settings: every combination is trained a little, the better ones longer, and the winner is evaluated once.

Successive halving (Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", 2016):
n settings get a small share of the passes; the best third of them three times as much; and so on up to all of it. Each begins
anew, since the learning rate falls to zero within its own passes. The validation loss decides, so that the test rows are asked
once, by the winner.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, lock_folder
from tuneloop.core.python_file import trust_code
from tuneloop.core.ray.cluster import address_of, whole_path
from tuneloop.core.ray.tune import TrialOutcome, tune_on_ray
from tuneloop.core.ui import busy, quiet, say
from tuneloop.core.units import counted
from tuneloop.pipeline.context import RunContext
from tuneloop.pipeline.prepare import prepare_stage, refuse_errors
from tuneloop.pipeline.run import run
from tuneloop.pipeline.sweep_record import SweepManifest, Trial
from tuneloop.pipeline.train import train_alone
from tuneloop.recipe import ALIASES, Recipe, make_recipe
from tuneloop.records.record import read_record, write_record
from tuneloop.records.run import RunManifest
from tuneloop.track import start_tracking

KEPT = 3  # of so many settings one goes on, with so many times the passes


@dataclass(frozen=True)
class Search:
    """What is searched.

    Args:
        axes: key -> values, as texts of the command line.
        settings: combinations, each key -> value.
    """

    axes: dict[str, list[str]]
    settings: list[dict[str, str]]


def search_of(texts: Sequence[str], trials: int, seed: int) -> tuple[Search, list[str]]:
    """The combinations that `key=a,b,c` ask for, and the settings that have one value.

    Args:
        texts: settings of the command line.
        trials: most combinations; more than that are drawn by chance. 0: all.

    Raises:
        UserError: no setting has several values, one has the same value twice, or what is searched is no training setting.
    """
    axes: dict[str, list[str]] = {}
    fixed: list[str] = []
    for text in texts:
        key, _, value = text.partition("=")
        key = ALIASES.get(key.strip(), key.strip())
        values = split_values(value)
        if len(values) < 2:
            fixed.append(text)
            continue
        if len(set(values)) < len(values):
            raise UserError(f"A value stands there twice: {text}", where=key, next_step="name each value once")
        if not key.startswith("train.") or key in ("train.epochs", "train.max_minutes"):
            raise UserError(
                f"{key} can't be searched", where=text,
                next_step="search settings of the training, as in train.learning_rate=1e-4,5e-4; for how long is what trials differ in",
            )  # fmt: skip
        axes[key] = values
    if not axes:
        raise UserError(
            "Nothing to search: no setting has several values", where="sweep",
            next_step="give them with commas: train.learning_rate=1e-4,5e-4 train.rank=8,32",
        )  # fmt: skip
    every = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if trials and trials < len(every):
        every = random.Random(seed).sample(every, trials)
    return Search(axes, every), fixed


def split_values(text: str) -> list[str]:
    """The values between commas; commas inside brackets belong to a value."""
    values, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            values.append("")
        else:
            values[-1] += letter
    return [value.strip() for value in values if value.strip()]


def rungs_of(number: int) -> list[float]:
    """Shares of the training: 1/9, 1/3 and 1 for nine settings; 1 alone for two.

    Args:
        number: of settings.
    """
    rounds = int(math.log(max(number, 1), KEPT) + 1e-9)
    return [KEPT ** -float(left) for left in range(rounds, -1, -1)]


def sweep(recipe: Recipe, search: Search, out: Path, *, on: str = "", evaluate: bool = True) -> SweepManifest:
    """Search, and do the whole job with the winner; a search that was cut short goes on.

    Args:
        recipe: with all settings that are not searched.
        out: folder of the search.
        on: a Ray cluster, where all are trained at the same time and the worse ones end early; see `_sweep_on_ray`.
        evaluate: whether the winner is evaluated on the test rows, with baselines.

    Raises:
        UserError: a recipe that is wrong, or every trial failed.
    """
    if on:
        return _sweep_on_ray(recipe, search, out, on, evaluate=evaluate)
    began = time.monotonic()
    for settings in search.settings:  # a wrong value of the last one is seen before the first is trained
        _with(recipe, settings, 1.0, out)
    with lock_folder(out):
        dataset = _shared_data(recipe, out)
        key = content_hash([recipe.model_dump(mode="json", exclude={"output_dir"}), search.settings, dataset[1]])
        found = _begun(out, key, search, dataset[1])
        left = search.settings
        for share in found.rungs:
            done = []
            for number, settings in enumerate(left, 1):
                say(f"trial     {number} of {len(left)} with {share:.0%} of the passes: {words(settings)}")
                trial = _known(found, settings, share) or _try(_on(recipe, dataset[0]), settings, share, out)
                if _known(found, settings, share) is None:
                    found = found.model_copy(update={"trials": [*found.trials, trial]})
                    write_record(out / SweepManifest.file, found)
                done.append(trial)
            left = [trial.settings for trial in _best(done)[: max(1, len(left) // KEPT)]]
        best = _best([trial for trial in found.trials if trial.share == 1.0])[0]
        folder = out / best.run
        if evaluate:
            run(_with(_on(recipe, dataset[0]), best.settings, 1.0, out))
        seconds = found.seconds or round(time.monotonic() - began, 1)
        found = found.model_copy(update={"best": best.settings, "run": str(folder), "seconds": seconds})
        write_record(out / SweepManifest.file, found)
    return found


def _sweep_on_ray(recipe: Recipe, search: Search, out: Path, on: str, *, evaluate: bool = True) -> SweepManifest:
    """As `sweep`, on a Ray cluster: trials side by side, each with all its passes unless ASHA ends it. The winner is evaluated here.

    Args:
        on: the cluster, see `deploy/on_ray.py`.
        out: folder of the search, which all machines see.

    Raises:
        UserError: as `sweep`; no cluster.
    """
    began, out = time.monotonic(), out.resolve()
    for settings in search.settings:
        _with(recipe, settings, 1.0, out)
    with lock_folder(out):
        dataset = _shared_data(recipe, out)
        key = content_hash(
            [recipe.model_dump(mode="json", exclude={"output_dir"}), search.settings, dataset[1], "asha"]
        )
        found = _begun(out, key, search, dataset[1])
        base = _on(recipe.model_copy(update={"model": whole_path(recipe.model)}), dataset[0].resolve())
        if found.best is None:
            say(f"tune      {counted(len(search.settings), 'trial')} side by side; ASHA ends the worse ones")
            values = base.model_dump(mode="json", exclude_unset=True), str(out)
            with busy("training on the cluster"):
                tried = tune_on_ray(
                    _train_trial, values, search.settings, recipe.train.evaluations, out / ".ray", address_of(on)
                )
            trials = [_came_to(base, settings, one, out) for settings, one in zip(search.settings, tried, strict=True)]
            full = [trial for trial in trials if trial.share == 1.0] or trials
            best = _best(full)[0]
            found = found.model_copy(
                update={"trials": trials, "rungs": [1.0], "best": best.settings, "run": str(out / best.run)}
            )
            found = found.model_copy(update={"seconds": round(time.monotonic() - began, 1)})
            write_record(out / SweepManifest.file, found)
        if evaluate:
            run(_with(base, found.best or {}, 1.0, out))
    return found


def _train_trial(setting: tuple[dict[str, Any], str], trial: dict[str, str], report: Callable[[float], None]) -> None:
    """A trial on a machine of a cluster: it tells each validation loss but that of the base."""
    recipe, out = setting
    trust_code(recipe)  # as the machine that sent it did
    own = _with(make_recipe(recipe), trial, 1.0, Path(out))
    folder = Path(own.output_dir or "")
    folder.mkdir(parents=True, exist_ok=True)
    tracker = start_tracking(own.model_dump(mode="json"), folder, warn=lambda line: None)
    status = "FAILED"

    def on_record(record: Mapping[str, Any]) -> None:
        if record.get("step") and record.get("val_loss") is not None:
            report(float(record["val_loss"]))

    try:
        with quiet():
            _, result = train_alone(own, on_record=on_record)
        status = "FINISHED"
    finally:
        tracker.finish(status)  # type: ignore[arg-type]
    if result.best_val_loss is not None and math.isfinite(result.best_val_loss):
        report(result.best_val_loss)


def _came_to(recipe: Recipe, settings: dict[str, str], tried: TrialOutcome, out: Path) -> Trial:
    """What the manifest says of a trial; of one that was ended early, how far it came."""
    own = _with(recipe, settings, 1.0, out)
    folder = Path(own.output_dir or "")
    place = str(folder.relative_to(out))
    if (folder / RunManifest.file).is_file():
        run = read_record(RunManifest, folder)
        loss = run.best_val_loss
        if loss is not None and math.isfinite(loss):
            return Trial(settings=settings, share=1.0, run=place, minutes=round(run.seconds / 60, 2), val_loss=loss)
    share = min(tried.reports / max(own.train.evaluations, 1), 0.99)
    return Trial(
        settings=settings,
        share=round(share, 3),
        run=place,
        val_loss=None if tried.error else tried.loss,
        error=tried.error,
    )


def words(settings: Mapping[str, Any]) -> str:
    """Settings as on the command line."""
    return " ".join(f"{key}={value}" for key, value in settings.items())


def _shared_data(recipe: Recipe, out: Path) -> tuple[Path, str]:
    """The data set that all trials read, and its id."""
    job = RunContext(recipe, out)
    with busy("preparing the data"):
        dataset = prepare_stage(job)
        refuse_errors(dataset, recipe)
    if not dataset.val:
        raise UserError(
            "There are no validation rows, and they decide", where=str(dataset.path), next_step="set data.split.val=0.1"
        )
    return Path(dataset.path), dataset.id


def _begun(out: Path, key: str, search: Search, dataset: str) -> SweepManifest:
    """The search as far as it got; an empty one where there was none.

    Raises:
        UserError: another search is in the folder.
    """
    if (out / SweepManifest.file).is_file():
        found = read_record(SweepManifest, out)
        if found.key == key:
            return found
        raise UserError("Another search is in this folder", where=str(out), next_step="name another with --out FOLDER")
    return SweepManifest(key=key, dataset=dataset, axes=search.axes, rungs=rungs_of(len(search.settings)))


def _on(recipe: Recipe, dataset: Path) -> Recipe:
    """The recipe with a prepared data set in the place of its sources."""
    values = recipe.model_dump(mode="json", exclude_unset=True, exclude={"data"})
    return make_recipe({**values, "data": {"sources": [str(dataset)]}})


def _with(recipe: Recipe, settings: Mapping[str, str], share: float, out: Path) -> Recipe:
    """The recipe of a trial."""
    texts = [f"{key}={value}" for key, value in settings.items()]
    train = recipe.train
    texts.append(f"train.epochs={train.epochs * share:.6g}")
    if train.max_minutes:
        texts.append(f"train.max_minutes={train.max_minutes * share:.6g}")
    place = out / "trials" / f"{content_hash(dict(settings))[:8]}-{share:.3f}"
    values = recipe.model_dump(mode="json", exclude_unset=True)
    return make_recipe(values, [*texts, f"output_dir={place}"])


def _known(found: SweepManifest, settings: Mapping[str, str], share: float) -> Trial | None:
    return next((trial for trial in found.trials if trial.settings == settings and trial.share == share), None)


def _try(recipe: Recipe, settings: dict[str, str], share: float, out: Path) -> Trial:
    """Train with some settings; a training that fails is a trial that lost."""
    own = _with(recipe, settings, share, out)
    folder = Path(own.output_dir or "")
    place = str(folder.relative_to(out))
    folder.mkdir(parents=True, exist_ok=True)
    tracker = start_tracking(own.model_dump(mode="json"), folder, warn=say)
    status = "FAILED"
    try:
        _, result = train_alone(own)
        status = "FINISHED"
    except UserError as error:
        say(f"          failed: {error.what}")
        return Trial(settings=settings, share=share, run=place, error=error.what)
    finally:
        tracker.finish(status)  # type: ignore[arg-type]
    loss = result.best_val_loss
    lost = loss is None or not math.isfinite(loss)
    return Trial(
        settings=settings, share=share, run=place, minutes=round(result.seconds / 60, 2),
        val_loss=None if lost else loss, error="no finite validation loss" if lost else "",
    )  # fmt: skip


def _best(trials: Sequence[Trial]) -> list[Trial]:
    """Trials by their loss, without those that failed.

    Raises:
        UserError: all failed.
    """
    found = [trial for trial in trials if trial.val_loss is not None]
    if not found:
        raise UserError(
            f"Every trial failed: {trials[0].error}", where=words(trials[0].settings),
            next_step="run one of them alone: tuneloop run RECIPE with these settings",
        )  # fmt: skip
    return sorted(found, key=lambda trial: (trial.val_loss or 0.0, words(trial.settings)))
