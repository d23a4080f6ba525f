"""Imports run one way, heavy libraries load late, and every shipped recipe parses."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from places import ROOT
from tuneloop.core.lazy import doors_of
from tuneloop.models.methods.shipped import SHIPPED
from tuneloop.recipe import load_recipe

SOURCE = ROOT / "src" / "tuneloop"
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))

# The rooms in one total order: each may import itself and those before it. "" is the package itself: its version.
ORDER = (
    "core", "records", "models", "inference", "data", "planning", "training", "evaluation", "advice", "recipe", "track",
    "registry", "report", "pipeline", "release", "combine", "serving", "improve", "imports", "deploy", "migrate", "settings", "api", "agents", "web", "cli",
    "__main__",
)  # fmt: skip
HEAVY = {"torch", "transformers", "mlflow", "sklearn", "polars", "pyarrow", "scipy", "peft", "sacrebleu", "rouge_score",
         "tokenizers", "safetensors", "gguf", "huggingface_hub", "numpy"}  # fmt: skip
OF_ONE_SYSTEM = {"fcntl", "msvcrt", "resource"}  # other systems lack them, so that they can't be imported at the top
DATA_TABLES = (
    "checks.checks",
    "checks.overview",
    "checks.drift",
    "checks.label_errors",
    "dedup.duplicates",
    "dedup.contamination",
    "prepare",
    "process_record",
    "dedup.minhash",
    "table",
)
# Modules that are nothing without their library; they are themselves imported late.
NEED = {
    **{f"data.{name}": {"numpy"} for name in DATA_TABLES},
    "models.nn.llama": {"torch"},
    "models.nn.fallback": {"torch"},
    "models.adapters.lora": {"torch"},
    "models.adapters.prefix": {"torch"},
    "models.nn.quantised": {"torch"},
    **{
        f"training.{name}": {"torch"}
        for name in ("checkpoint", "distil", "loop", "loss", "optimizers", "run", "speed", "step")
    },
    "combine.route.cascade": {"numpy"},
    "combine.route.router": {"numpy"},
    "combine.route.command": {"numpy"},
    "combine.route.features": {"numpy"},
    "combine.merge.methods": {"torch"},
    "inference.local.engine": {"torch"},
    "inference.local.answers": {"torch"},
}

MOST_LINES, MOST_PARAMETERS = 100, 8  # a function is as long as its one thought: the limit only finds what outgrew it
# Functions that are longer or take more parameters, and why.
LARGE: dict[str, str] = {"api.evaluate": "the public call: its keywords are documented one by one"}


Trees = dict[Path, ast.Module]


@pytest.fixture(scope="module")
def trees() -> Trees:
    """The syntax tree of every file of the package."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


def modules(trees: Trees) -> Iterator[tuple[str, ast.Module]]:
    for path, tree in trees.items():
        parts = path.relative_to(SOURCE).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), tree


# The names at the doors of rooms, with the modules that they come from: "tuneloop.registry.verify" -> its module.
# A part of a room may have a door of its own, as the store has.
AT_DOORS = {
    ".".join(("tuneloop", *path.parent.relative_to(SOURCE).parts, name)): module
    for path in sorted(SOURCE.glob("*/**/__init__.py"))
    for name, module in doors_of(path.read_text(encoding="utf-8")).items()
}
DOORS = {name.removeprefix("tuneloop.").rpartition(".")[0] for name in AT_DOORS}  # rooms and parts of them
MOST_AT_A_DOOR = 25


def part_of(module: str) -> str:
    return module.split(".")[0]


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of all imported modules, those inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            if node.module == "tuneloop" or (SOURCE.parent / (node.module or "").replace(".", "/")).is_dir():
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_point_down(trees: Trees) -> None:
    rank = {room: number for number, room in enumerate(ORDER)}
    upward = [
        f"{module} imports {name}"
        for module, tree in modules(trees)
        for name in (full.removeprefix("tuneloop.") for full in imported(tree) if full.startswith("tuneloop."))
        if module and rank[part_of(name)] > rank[part_of(module)]
    ]
    assert not upward, "\n".join(upward)


def test_no_module_imports_the_root(trees: Trees) -> None:
    """It names what all rooms have, so it would tie whoever imports it into a circle with them."""
    ties = [module for module, tree in modules(trees) if module for name in imported(tree) if name == "tuneloop"]
    assert not ties


def test_rooms_import_of_others_what_is_at_their_doors(trees: Trees) -> None:
    past = [
        f"{module} imports {name}: it is not at a door of {part_of(name)}"
        for module, tree in modules(trees)
        for name in (full.removeprefix("tuneloop.") for full in imported(tree) if full.startswith("tuneloop."))
        if part_of(module) != part_of(name) and name not in DOORS and f"tuneloop.{name}" not in AT_DOORS
        if any(name.startswith(f"{door}.") for door in DOORS)
    ]
    assert not past, "\n".join(past)


def test_a_door_has_few_names_each_used_by_others_and_described(trees: Trees) -> None:
    used = {
        name for module, tree in modules(trees) for name in imported(tree) if [part_of(module)] != name.split(".")[1:2]
    }
    used |= {name for file in (ROOT / "examples").rglob("*.py") for name in imported(ast.parse(file.read_text()))}
    used.add("tuneloop.models.methods.register")  # for a user's own program, see docs/methods.md
    for door in DOORS:
        room = door.replace(".", "/")
        names = [name for name in AT_DOORS if name.rpartition(".")[0] == f"tuneloop.{door}"]
        assert len(names) <= MOST_AT_A_DOOR, f"{room} has {len(names)} names at its door"
        assert not [name for name in names if name not in used], f"no other room uses these of {room}"
        files = {path.stem for path in (SOURCE / room).iterdir()}
        assert not [name for name in names if name.rpartition(".")[2] in files], "an import would give the module"
        lines = (SOURCE / room / "__init__.py").read_text(encoding="utf-8").splitlines()
        bare = [
            line for above, line in itertools.pairwise(lines) if line.startswith("    from ") and "    # " not in above
        ]
        assert not bare, "a name at a door has a sentence above it"


@pytest.mark.parametrize("room", ["core", "records"])
def test_the_rooms_that_all_share_say_what_each_of_their_modules_is(room: str) -> None:
    """Their modules are public as a whole, so the room's docstring takes the place of a door."""
    described = ast.get_docstring(ast.parse((SOURCE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    entries = [line.split(": ", 1) for line in described.splitlines()[2:]]
    assert [name for name, _ in entries] == sorted(
        path.stem for path in (SOURCE / room).iterdir() if path.name.strip("_") == path.name
    )


def test_every_room_is_in_the_order() -> None:
    rooms = {path.stem for path in SOURCE.iterdir() if path.name[0] != "_" and (path.is_dir() or path.suffix == ".py")}
    assert rooms == set(ORDER) - {"__main__"}


def module_graph(trees: Trees) -> dict[str, set[str]]:
    """What each module imports of the others when it is loaded or used; imports for type checking don't count."""
    named = dict(modules(trees))

    def names(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    whole = AT_DOORS.get(whole, whole)
                    yield whole if whole.removeprefix("tuneloop.") in named else str(child.module)
            yield from names(child)

    found = {name: {other.removeprefix("tuneloop.") for other in names(tree)} for name, tree in named.items()}
    return {name: (others & named.keys()) - {name} for name, others in found.items()}


# What every install has, and what is quick enough for anything but the help of commands.
QUICK = {*sys.stdlib_module_names, "pydantic", "pydantic_core", "typing_extensions", "yaml", "jinja2", "markupsafe", "typer", "rich"}  # fmt: skip
# Of Python's own, what is slow; readline changes how a terminal is read.
LATE_OF_PYTHON = {
    "asyncio",
    "concurrent",
    "ctypes",
    "email",
    "http",
    "logging",
    "multiprocessing",
    "readline",
    "sqlite3",
}


SLOW_PARTS = ("torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor")  # they load sympy


def when_imported(tree: ast.AST, inside: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """The imports of a module, and whether each stands in a function; those for type checking don't count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, inside
        yield from when_imported(node, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


class Loaded:
    """What importing a module loads, from the syntax trees: modules of ours by name, libraries by their first name."""

    def __init__(self, trees: Trees) -> None:
        self.named = {f"tuneloop.{name}".rstrip("."): tree for name, tree in modules(trees)}
        self.direct = {
            name: {name for node, inside in when_imported(tree) if not inside for name in self.names(node)}
            for name, tree in self.named.items()
        }

    def names(self, node: ast.Import | ast.ImportFrom) -> list[str]:
        """The modules that one statement imports."""
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        found = [f"{node.module}.{alias.name}" for alias in node.names]
        found = [AT_DOORS.get(name, name) for name in found]
        return [name if name in self.named else str(node.module) for name in found]

    def by(self, names: Iterable[str]) -> set[str]:
        """All that importing these loads, their packages too."""
        found: set[str] = set()
        left = [*names]
        while left:
            name = left.pop()
            key = name if name in self.named else next(filter(name.startswith, SLOW_PARTS), name.split(".")[0])
            if key not in found:
                found.add(key)
                left += [*self.direct.get(name, ()), *([name.rpartition(".")[0]] if "." in name else [])]
        return found


def test_an_import_inside_a_function_keeps_a_library_out_of_the_start(trees: Trees) -> None:
    loaded = Loaded(trees)
    for_help = loaded.by(name for name in loaded.named if name.startswith("tuneloop.cli."))
    needless = []
    for name, tree in loaded.named.items():
        own = loaded.by([name])
        for node, inside in when_imported(tree):
            late = loaded.by(loaded.names(node)) - own if inside else set()
            libraries = {item for item in late if item not in loaded.named}
            kept_out = libraries - QUICK
            if name in for_help:
                kept_out |= libraries - sys.stdlib_module_names | libraries & LATE_OF_PYTHON
            config = name.startswith("tuneloop.cli.") and len(late) > 1  # records of settings take long to build
            if inside and not kept_out and not config and not libraries & OF_ONE_SYSTEM:
                needless.append(f"{name}:{node.lineno} {ast.unparse(node)}")
    assert not needless, "nothing slow comes with these; import them at the top:\n" + "\n".join(needless)


def test_modules_do_not_import_each_other_in_circles(trees: Trees) -> None:
    left = module_graph(trees)
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    while needless := {name for name in left if not any(name in others for others in left.values())}:  # only lead there
        left = {name: others for name, others in left.items() if name not in needless}
    assert not left, "\n".join(f"{name} imports {', '.join(sorted(o & left.keys()))}" for name, o in left.items())


def test_heavy_libraries_are_imported_where_they_are_needed(trees: Trees) -> None:
    wrong = []
    for module, tree in modules(trees):
        for node in tree.body:  # module level; TYPE_CHECKING blocks and functions are not executed on import
            if isinstance(node, ast.Import | ast.ImportFrom):
                found = {name.split(".")[0] for name in imported(node)} & HEAVY - NEED.get(module, set())
                wrong += [f"{module} imports {name} when it is itself imported" for name in found]
    assert not wrong, "\n".join(wrong)


def functions(tree: ast.AST, name: str = "") -> Iterator[tuple[str, int, int]]:
    """Name, lines and parameters of each function, those of classes and functions too; `self` and `cls` don't count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            of = node.args
            names = [arg.arg for arg in [*of.posonlyargs, *of.args, *of.kwonlyargs, of.vararg, of.kwarg] if arg]
            yield f"{name}{node.name}", (node.end_lineno or 0) - node.lineno + 1, len({*names} - {"self", "cls"})
        deeper = f"{name}{node.name}." if isinstance(node, ast.ClassDef | ast.FunctionDef) else name
        yield from functions(node, deeper)


def test_functions_are_small_and_take_few_parameters(trees: Trees) -> None:
    large = {
        f"{module}.{name}": f"{lines} lines, {parameters} parameters"
        for module, tree in modules(trees)
        for name, lines, parameters in functions(tree)
        if lines > MOST_LINES or parameters > MOST_PARAMETERS
    }
    new = [
        f"{name}: {size}; split it, or give the reason in LARGE" for name, size in large.items() if name not in LARGE
    ]
    assert not new, "\n".join(new)
    assert not LARGE.keys() - large, "no longer large: take them out of LARGE"


def test_no_code_outside_the_methods_own_files_knows_one_by_its_name(trees: Trees) -> None:
    named, names = [], [method.name for method in SHIPPED]
    for path, tree in trees.items():
        text = path.read_text(encoding="utf-8")
        if path.is_relative_to(SOURCE / "models" / "methods") or not any(
            f'"{n}"' in text or f"'{n}'" in text for n in names
        ):
            continue
        attributes = {  # getattr(net, "prefix"): an attribute of the model, where the layers themselves are
            id(node.args[1])
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr")
        }
        for node in ast.walk(tree):
            known = isinstance(node, ast.Constant) and node.value in names and id(node) not in attributes
            log = path.is_relative_to(SOURCE / "serving")  # log.content=full keeps all of a text
            if known and not (log and node.value == "full"):  # type: ignore[attr-defined]
                named.append(f"{path.relative_to(SOURCE)}:{node.lineno} {node.value!r}")
    assert not named, "\n".join(named)


@pytest.mark.parametrize("module", ["tuneloop.cli.main", "tuneloop.core.doctor"])
def test_the_command_line_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": str(SOURCE.parent), "PATH": ""})  # fmt: skip
    assert not (HEAVY | {"pydantic", "yaml", "jinja2"}) & set(done.stdout.split())


def test_a_server_before_another_engine_loads_no_torch() -> None:
    """It would take four times the memory."""
    code = """import sys; sys.modules["torch"] = None
import tuneloop.serving.http.app, tuneloop.inference.local.engine, tuneloop.inference.openai.serving, tuneloop.inference.llamacpp.serving"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(SOURCE.parent), "PATH": ""})


def test_the_recipe_and_the_planner_work_without_torch() -> None:
    code = """import sys; sys.modules["torch"] = None; sys.modules["numpy"] = None
import tuneloop.recipe, tuneloop.planning.at_hand, tuneloop.pipeline.run
del sys.modules["numpy"]
import tuneloop.data.prepare"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(SOURCE.parent), "PATH": ""})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_parses_and_its_sources_are_there(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.data.sources
    for source in recipe.data.sources:
        assert (ROOT / source).exists(), source


def test_there_are_recipes() -> None:
    assert RECIPES


def test_the_makefile_names_tests_that_are_there() -> None:
    named = [word for word in (ROOT / "Makefile").read_text(encoding="utf-8").split() if word.startswith("tests/")]
    assert named and [name for name in named if not (ROOT / name).exists()] == []


def test_class_names_are_unique_in_the_package() -> None:
    places: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(SOURCE)))
    assert not {name: files for name, files in places.items() if len(files) > 1}


def test_only_tables_are_left_out_of_the_formatter() -> None:
    """`# fmt: skip` keeps the columns of a literal table, or of a call that holds one; all else is the formatter's."""
    displays = ast.Dict | ast.List | ast.Tuple | ast.Set
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        ends = {i for i, line in enumerate(text.splitlines(), 1) if line.endswith("# fmt: skip")}
        for node in ast.walk(ast.parse(text)) if ends else ():
            if isinstance(node, ast.stmt) and node.end_lineno in ends:
                value = getattr(node, "value", None)
                parts = (
                    [*value.args, *(keyword.value for keyword in value.keywords)]
                    if isinstance(value, ast.Call)
                    else [value]
                )
                if any(isinstance(part, displays) for part in parts):
                    ends.discard(node.end_lineno)
        wrong += [f"{path.relative_to(SOURCE)}:{line}" for line in sorted(ends)]
    assert not wrong
