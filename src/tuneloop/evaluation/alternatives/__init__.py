"""What a tuned model has to beat: classifiers that train in seconds, and the strongest constant answer."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # The name of the classifier on vectors of MiniLM.
    from tuneloop.evaluation.alternatives.classifiers import MINILM as MINILM

    # Logistic regression of labels on a table.
    from tuneloop.evaluation.alternatives.classifiers import fit_labels as fit_labels

    # The same where rows have several labels: one for each label.
    from tuneloop.evaluation.alternatives.classifiers import fit_labels_apart as fit_labels_apart

    # The classifiers that fit a task, each as soon as it is trained.
    from tuneloop.evaluation.alternatives.classifiers import trained_classifiers as trained_classifiers

    # The name of the constant answer among systems.
    from tuneloop.evaluation.alternatives.constants import MAJORITY as MAJORITY

    # The strongest answer that is the same for every row.
    from tuneloop.evaluation.alternatives.constants import constant_for as constant_for

__getattr__, __dir__ = door(__name__)
