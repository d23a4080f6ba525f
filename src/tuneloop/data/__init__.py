"""Any file of rows to a data set: read, cleaned, deduplicated, split, checked, corrected and compared."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # The most likely language of a text, and its probability.
    from tuneloop.data.clean.language import detect_language as detect_language

    # Whether a text is clearly in another language.
    from tuneloop.data.clean.language import foreign as foreign

    # Settings of `data`: from files of any shape to the splits of a data set.
    from tuneloop.data.config import PrepareConfig as PrepareConfig

    # Hash of what the splits hold and of the configuration, wherever the sources are.
    from tuneloop.data.dataset import dataset_hash as dataset_hash

    # Read a prepared data set; one that is incomplete, damaged or changed is refused.
    from tuneloop.data.dataset import load_dataset as load_dataset

    # Hash of all that a prepared data set depends on.
    from tuneloop.data.dataset import prepare_key as prepare_key

    # Write rows as splits, with the facts for the manifest.
    from tuneloop.data.dataset import write_splits as write_splits

    # The rows that give no validation or test row of a data set away.
    from tuneloop.data.dedup.contamination import uncontaminated as uncontaminated

    # What changed from one data set to another.
    from tuneloop.data.diff import DatasetDiff as DatasetDiff

    # Compare two prepared data sets, row by row.
    from tuneloop.data.diff import diff_datasets as diff_datasets

    # Columns that may hold the id of a row.
    from tuneloop.data.load_eval_file import IDS as IDS

    # Read a file of any format, or of references alone, as rows to evaluate on.
    from tuneloop.data.load_eval_file import read_whole as read_whole

    # General rows that are held out of training, next to the splits.
    from tuneloop.data.mix import GENERAL_FILE as GENERAL_FILE

    # A correction of one record: where it is, what its answer was and becomes.
    from tuneloop.data.patch import PatchLine as PatchLine

    # Add corrections to a patch.
    from tuneloop.data.patch import add_to_patch as add_to_patch

    # Corrections by source and line.
    from tuneloop.data.patch import read_patch as read_patch

    # Read, parse, repair, redact, deduplicate, measure, split, check and write a data set.
    from tuneloop.data.prepare import prepare_dataset as prepare_dataset

    # The length of a rendered row: all its tokens, and those that the loss is computed on.
    from tuneloop.data.process_record import TokenCount as TokenCount

    # The format of files, and what all prompts share, from the first records.
    from tuneloop.data.table import detect_format as detect_format

    # Columns that are taken for a prompt where no task says which.
    from tuneloop.data.task import PROMPT_NAMES as PROMPT_NAMES

    # The prompt of a model: the turns before its answer, and the tools that it may call.
    from tuneloop.data.task import TaskPrompt as TaskPrompt

    # What a model was trained to answer, as `tuneloop.json` and `artifact.json` have it.
    from tuneloop.data.task import TaskSpec as TaskSpec

    # The function from a raw record to its prompt.
    from tuneloop.data.task import prompt_reader as prompt_reader

    # The task in a file.
    from tuneloop.data.task import read_task as read_task

    # The task that a prepared data set teaches.
    from tuneloop.data.task import task_spec as task_spec

__getattr__, __dir__ = door(__name__)
