"""Import every module of the package; end with 1 where one needs what this system or Python does not have.

A module of an optional library that is not installed is named and passed over: that is what extras are for.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

import tuneloop


def main() -> int:
    """Import, and print what failed."""
    failed, left_out = [], []
    for module in pkgutil.walk_packages(tuneloop.__path__, "tuneloop."):
        if module.name.rpartition(".")[2] in ("__main__", "child", "grammar_child", "sandbox_child"):
            continue  # programs
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            missing = (error.name or "").split(".")[0]
            ours = missing == "tuneloop" or missing in sys.stdlib_module_names
            (failed if ours else left_out).append(f"{module.name}: no {error.name}")
        except Exception as error:
            failed.append(f"{module.name}: {type(error).__name__}: {error}")
    print(*left_out, *failed, f"{len(failed)} failed, {len(left_out)} left out", sep="\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
