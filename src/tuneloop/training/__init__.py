"""Training. The package is also what it does: `tuneloop.train(dataset, epochs=1)`."""

from tuneloop.core.callable_package import make_callable

make_callable(__name__, "tuneloop.api")
