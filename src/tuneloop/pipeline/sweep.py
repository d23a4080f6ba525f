"""A search over settings: all combinations are trained a little, the better ones longer, the winner is evaluated once.

Successive halving (Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization",
2016): n settings get a small share of the passes; the best third of them three times as much; and so on up to all.
Each starts again, since the learning rate falls to zero within its passes. The validation loss decides, so that the
test rows are used once, by the winner.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, lock_folder
from tuneloop.core.python_file import trust_code
from tuneloop.core.ray.cluster import address_of, whole_path
from tuneloop.core.ray.tune import TrialOutcome, tune_on_ray
from tuneloop.core.ui import busy, quiet, say
from tuneloop.core.units import counted
from tuneloop.pipeline.context import RunContext
from tuneloop.pipeline.prepare import prepare_checked
from tuneloop.pipeline.run import run_job
from tuneloop.pipeline.train import train_alone
from tuneloop.recipe import ALIASES, Recipe, make_recipe, recipe_of
from tuneloop.records.record import read_record, write_record
from tuneloop.records.rows import Dataset
from tuneloop.records.run import RunManifest
from tuneloop.records.sweep import SweepManifest, Trial, as_typed
from tuneloop.track import start_tracking

KEPT = 3  # of so many settings one continues, with so many times the passes


@dataclass(frozen=True)
class Search:
    """What is searched."""

    axes: dict[str, list[str]]  # key -> values, as texts of the command line
    settings: list[dict[str, str]]  # combinations, each key -> value


def search_of(texts: Sequence[str], trials: int, seed: int) -> tuple[Search, list[str]]:
    """The combinations of `key=a,b,c`, and the settings that have one value.

    Args:
        texts: settings of the command line.
        trials: most combinations; more than that are drawn by chance. 0: all.

    Raises:
        UserError: no setting has several values, one has a value twice, or what is searched is no training setting.
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
            step = "search settings of the training other than its length, as in train.learning_rate=1e-4,5e-4"
            raise UserError(f"{key} can't be searched", where=text, next_step=step)
        axes[key] = values
    if not axes:
        step = "give them with commas: train.learning_rate=1e-4,5e-4 train.rank=8,32"
        raise UserError("Nothing to search: no setting has several values", where="sweep", next_step=step)
    every = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if trials and trials < len(every):
        every = random.Random(seed).sample(every, trials)
    return Search(axes, every), fixed


def search_settings(
    source: str, settings: Sequence[str], *, trials: int = 0, out: str = "", on: str = "", evaluate: bool = True
) -> tuple[Path, SweepManifest]:
    """`sweep` by the words of the command line: the folder of the search, and its record.

    Args:
        source: a recipe, a prepared data set or a file of examples.
        settings: `key=value`; those with several values are searched.
        trials: see `search_of`. `out`: default `sweeps/NAME-HASH`.
    """
    search, fixed = search_of(settings, trials, 0)
    recipe = recipe_of(source, fixed)
    folder = Path(out or f"sweeps/{recipe.name}-{content_hash([source, fixed, search.settings])[:8]}")
    return folder, sweep(recipe, search, folder, on=on, evaluate=evaluate)


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
    """Shares of the training for a number of settings: 1/9, 1/3 and 1 for nine; 1 alone for two."""
    rounds = int(math.log(max(number, 1), KEPT) + 1e-9)
    return [KEPT ** -float(left) for left in range(rounds, -1, -1)]


def sweep(recipe: Recipe, search: Search, out: Path, *, on: str = "", evaluate: bool = True) -> SweepManifest:
    """Search, and do the whole job with the winner; a search that was cut short continues.

    Args:
        recipe: with all settings that are not searched; `out`: folder of the search; on a cluster all machines see it.
        on: a Ray cluster (see `core/ray/cluster.py`), where trials run side by side, each with all its passes unless
            ASHA ends it. The winner is evaluated here.
        evaluate: whether the winner is evaluated on the test rows, with baselines.

    Raises:
        UserError: a recipe that is wrong, every trial failed, or there is no such cluster.
    """
    began, out = time.monotonic(), out.resolve() if on else out
    for settings in search.settings:  # a wrong value of the last one is seen before the first is trained
        _with(recipe, settings, 1.0, out)
    with lock_folder(out):
        dataset = _shared_data(recipe, out)
        parts = [recipe.model_dump(mode="json", exclude={"output_dir"}), search.settings, dataset.id]
        manifest = _begun(out, content_hash([*parts, "asha"] if on else parts), search, dataset.id)
        if on:
            recipe = recipe.model_copy(update={"model": whole_path(recipe.model)})
            base = _on(recipe, Path(dataset.path).resolve())
            if manifest.best is None:
                manifest = _decide(_tune(base, search, manifest, out, on), out, began)
        else:
            base = _on(recipe, Path(dataset.path))
            manifest = _halve(base, search, manifest, out)
        if evaluate:
            run_job(_with(base, manifest.best or _winner(manifest).settings, 1.0, out))
        return manifest if on else _decide(manifest, out, began)


def _halve(base: Recipe, search: Search, manifest: SweepManifest, out: Path) -> SweepManifest:
    """Successive halving: all trials with the first share of the passes, the best third with the next, and so on."""
    left = search.settings
    for share in manifest.rungs:
        trials = []
        for number, settings in enumerate(left, 1):
            say(f"trial     {number} of {len(left)} with {share:.0%} of the passes: {as_typed(settings)}")
            trial = manifest.trial(settings, share)
            if trial is None:
                trial = _try(base, settings, share, out)
                manifest = manifest.model_copy(update={"trials": [*manifest.trials, trial]})
                write_record(out / SweepManifest.file, manifest)
            trials.append(trial)
        left = [trial.settings for trial in _by_loss(trials)[: max(1, len(left) // KEPT)]]
    return manifest


def _tune(base: Recipe, search: Search, manifest: SweepManifest, out: Path, on: str) -> SweepManifest:
    """All trials on a Ray cluster."""
    say(f"tune      {counted(len(search.settings), 'trial')} side by side; ASHA ends the worse ones")
    setting = base.model_dump(mode="json", exclude_unset=True), str(out)
    reports, folder = base.train.evaluations, out / ".ray"
    with busy("training on the cluster"):
        results = tune_on_ray(_train_trial, setting, search.settings, reports, folder, address_of(on))
    trials = [_came_to(base, settings, trial, out) for settings, trial in zip(search.settings, results, strict=True)]
    return manifest.model_copy(update={"trials": trials, "rungs": [1.0]})


def _decide(manifest: SweepManifest, out: Path, began: float) -> SweepManifest:
    """Write the winner."""
    best, seconds = _winner(manifest), manifest.seconds or round(time.monotonic() - began, 1)
    changes = {"best": best.settings, "run": str(out / best.run), "seconds": seconds}
    manifest = manifest.model_copy(update=changes)
    write_record(out / SweepManifest.file, manifest)
    return manifest


def _winner(manifest: SweepManifest) -> Trial:
    return _by_loss([trial for trial in manifest.trials if trial.share == 1.0] or manifest.trials)[0]


def _train_trial(setting: tuple[dict[str, Any], str], trial: dict[str, str], report: Callable[[float], None]) -> None:
    """A trial on a machine of a cluster: it reports each validation loss but that of the base."""
    recipe, out = setting
    trust_code(recipe)  # as the machine that sent it did

    def on_record(record: Mapping[str, Any]) -> None:
        if record.get("step") and record.get("val_loss") is not None:
            report(float(record["val_loss"]))

    with quiet():
        result = _train_tracked(_with(make_recipe(recipe), trial, 1.0, Path(out)), lambda line: None, on_record)
    if result.best_val_loss is not None and math.isfinite(result.best_val_loss):
        report(result.best_val_loss)


def _train_tracked(
    recipe: Recipe, warn: Callable[[str], None], on_record: Callable[[Mapping[str, Any]], None] = lambda record: None
) -> RunManifest:
    """Train, with the run's trackers."""
    folder = Path(recipe.output_dir or "")
    folder.mkdir(parents=True, exist_ok=True)
    tracker = start_tracking(recipe.model_dump(mode="json"), folder, warn=warn)
    status: Literal["FINISHED", "FAILED"] = "FAILED"
    try:
        _, result = train_alone(recipe, on_record=on_record, anyway=True)  # a trial is short
        status = "FINISHED"
    finally:
        tracker.finish(status)
    return result


def _came_to(recipe: Recipe, settings: dict[str, str], tried: TrialOutcome, out: Path) -> Trial:
    """What the manifest says of a trial; of one that was ended early, how far it came."""
    recipe = _with(recipe, settings, 1.0, out)
    folder = Path(recipe.output_dir or "")
    run_name = str(folder.relative_to(out))
    if (folder / RunManifest.file).is_file():
        result = read_record(RunManifest, folder)
        loss, minutes = result.best_val_loss, round(result.seconds / 60, 2)
        if loss is not None and math.isfinite(loss):
            return Trial(settings=settings, share=1.0, run=run_name, minutes=minutes, val_loss=loss)
    share = round(min(tried.reports / max(recipe.train.evaluations, 1), 0.99), 3)
    loss = None if tried.error else tried.loss
    return Trial(settings=settings, share=share, run=run_name, val_loss=loss, error=tried.error)


def _shared_data(recipe: Recipe, out: Path) -> Dataset:
    """The data set that all trials read."""
    with busy("preparing the data"):
        dataset = prepare_checked(RunContext(recipe, out))
    if not dataset.val:
        message = "There are no validation rows, and they decide"
        raise UserError(message, where=str(dataset.path), next_step="set data.split.val=0.1")
    return dataset


def _begun(out: Path, key: str, search: Search, dataset: str) -> SweepManifest:
    """The search as far as it got; an empty one where there was none. Another search in the folder is refused."""
    if not (out / SweepManifest.file).is_file():
        return SweepManifest(key=key, dataset=dataset, axes=search.axes, rungs=rungs_of(len(search.settings)))
    manifest = read_record(SweepManifest, out)
    if manifest.key != key:
        raise UserError("Another search is in this folder", where=str(out), next_step="name another with --out FOLDER")
    return manifest


def _on(recipe: Recipe, dataset: Path) -> Recipe:
    """The recipe with a prepared data set in the place of its sources."""
    values = recipe.model_dump(mode="json", exclude_unset=True, exclude={"data"})
    return make_recipe({**values, "data": {"sources": [str(dataset)]}})


def _with(recipe: Recipe, settings: Mapping[str, str], share: float, out: Path) -> Recipe:
    """The recipe of a trial."""
    train, trial_folder = recipe.train, out / "trials" / f"{content_hash(dict(settings))[:8]}-{share:.3f}"
    texts = [f"{key}={value}" for key, value in settings.items()]
    texts.append(f"train.epochs={train.epochs * share:.6g}")
    if train.max_minutes:
        texts.append(f"train.max_minutes={train.max_minutes * share:.6g}")
    return make_recipe(recipe.model_dump(mode="json", exclude_unset=True), [*texts, f"output_dir={trial_folder}"])


def _try(recipe: Recipe, settings: dict[str, str], share: float, out: Path) -> Trial:
    """Train with some settings; a training that fails is a trial that lost."""
    recipe = _with(recipe, settings, share, out)
    run_name = str(Path(recipe.output_dir or "").relative_to(out))
    try:
        result = _train_tracked(recipe, say)
    except UserError as error:
        say(f"          failed: {error.what}")
        return Trial(settings=settings, share=share, run=run_name, error=error.what)
    loss, minutes = result.best_val_loss, round(result.seconds / 60, 2)
    if loss is None or not math.isfinite(loss):
        reason = "no finite validation loss"
        return Trial(settings=settings, share=share, run=run_name, minutes=minutes, error=reason)
    return Trial(settings=settings, share=share, run=run_name, minutes=minutes, val_loss=loss)


def _by_loss(trials: Sequence[Trial]) -> list[Trial]:
    """Trials by their loss, without those that failed; not all may have."""
    finished = [trial for trial in trials if trial.val_loss is not None]
    if not finished:
        message, where = f"Every trial failed: {trials[0].error}", as_typed(trials[0].settings)
        raise UserError(
            message, where=where, next_step="run one of them alone: tuneloop run RECIPE with these settings"
        )
    return sorted(finished, key=lambda trial: (trial.val_loss or 0.0, as_typed(trial.settings)))
