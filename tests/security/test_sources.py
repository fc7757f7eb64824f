"""What the project's own code never does, held by its syntax trees: nothing that runs, or unpickles, what it is given.

A name is followed through `import x as y` and `from x import y as z`. What a tree cannot show (a name made at run time)
is not claimed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
FOLDERS = ("mulcot", "stages", "data_modules", "benchmarks")
SOURCES = sorted(path for folder in FOLDERS for path in (CHECKOUT / folder).rglob("*.py"))

PICKLES = ("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle")
ONLY_ERRORS = {"pickle.UnpicklingError"}
"""What is taken of these modules: the name of an error, to say what torch refused."""
CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "compile": "makes code of text",
    "__import__": "imports what a text names",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
    "subprocess.getoutput": "runs a shell",
    "subprocess.getstatusoutput": "runs a shell",
    "tempfile.mktemp": "names a file that another process may make first",
    "runpy.run_path": "runs a file",
    "runpy.run_module": "runs a module",
    "yaml.unsafe_load": "makes objects of any class",
    "yaml.full_load": "makes objects of some classes",
    "yaml.unsafe_load_all": "makes objects of any class",
    "yaml.full_load_all": "makes objects of some classes",
    "pandas.read_pickle": "unpickles",
    "torch.hub.load": "runs a repository's code",
    "ssl._create_unverified_context": "trusts any server",
    "xml.etree.ElementTree.parse": "expands entities",
    "tarfile.open": "unpacks members with any path",
    "shutil.unpack_archive": "unpacks members with any path",
}
ALLOWED = {
    # Batches between a run's own processes, through memory that they share: never a file, never anybody else's bytes.
    "data_modules/packing.py": {"pickle.PickleBuffer", "pickle.Pickler", "pickle.loads"},
}
LOADERS = ("yaml.SafeLoader", "yaml.CSafeLoader", "mulcot.config_files._OneOfEachKey")
"""The last one is a SafeLoader; `test_our_yaml_loader_is_a_safe_one` holds that."""


def names_of(tree: ast.AST, module: str) -> dict[str, str]:
    """Local names and the full names that they stand for."""
    known = {
        node.name: f"{module}.{node.name}" for node in ast.iter_child_nodes(tree) if isinstance(node, ast.ClassDef)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {(it.asname or it.name.split(".")[0]): (it.name if it.asname else it.name.split(".")[0])
                      for it in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom) and node.module:
            known |= {(it.asname or it.name): f"{node.module}.{it.name}" for it in node.names}
    return known


def full_name(node: ast.AST, known: dict[str, str]) -> str:
    """`torch.load` of the expression `torch.load`, or of `load` after `from torch import load`; empty for others."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        inside = full_name(node.value, known)
        return f"{inside}.{node.attr}" if inside else ""
    return ""


def given(call: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def faults_of_call(call: ast.Call, known: dict[str, str]) -> Iterator[str]:
    name = full_name(call.func, known)
    if name in CALLS:
        yield f"{name} {CALLS[name]}"
    if name == "torch.load" and not is_constant(given(call, "weights_only"), True):
        yield "torch.load without weights_only=True unpickles"
    if name in ("numpy.load", "numpy.lib.npyio.load") and not (
        given(call, "allow_pickle") is None or is_constant(given(call, "allow_pickle"), False)
    ):
        yield "numpy.load with allow_pickle unpickles"
    if name in ("yaml.load", "yaml.load_all"):
        loader = given(call, "Loader") or (call.args[1] if len(call.args) > 1 else None)
        if loader is None or full_name(loader, known) not in LOADERS:
            yield f"{name} without a safe loader makes objects of any class"
    if given(call, "shell") is not None and not is_constant(given(call, "shell"), False):
        yield "shell=... runs a shell"
    if (trust := given(call, "trust_remote_code")) is not None and isinstance(trust, ast.Constant) and trust.value:
        yield "trust_remote_code is given as true"
    if is_constant(given(call, "verify"), False):
        yield "verify=False trusts any server"


def faults_of(source: str, module: str = "module") -> list[str]:
    """What is wrong with a module, each with its line."""
    tree = ast.parse(source)
    known = names_of(tree, module)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += [(node.lineno, fault) for fault in faults_of_call(node, known)]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [it.name for it in node.names]
            parts = {module.split(".")[0] for module in modules} & set(PICKLES)
            if parts and not (parts == {"pickle"} and isinstance(node, ast.Import)):
                found.append((node.lineno, f"imports {', '.join(sorted(parts))}"))
        elif isinstance(node, ast.Attribute):
            name = full_name(node, known)
            if name.split(".")[0] in PICKLES and name not in ONLY_ERRORS:
                found.append((node.lineno, f"uses {name}"))
        elif isinstance(node, ast.arguments):
            names = [*node.posonlyargs, *node.args]
            pairs = [*zip(names[len(names) - len(node.defaults) :], node.defaults, strict=True)]
            pairs += [*zip(node.kwonlyargs, node.kw_defaults, strict=True)]
            found += [(it.lineno, "trust_remote_code is true by default") for it, default in pairs
                      if it.arg == "trust_remote_code" and not is_constant(default, False)]  # fmt: skip
    return [f"line {line}: {fault}" for line, fault in sorted(found)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_nothing_runs_or_unpickles_what_it_is_given(path: Path) -> None:
    module = ".".join(path.relative_to(CHECKOUT).with_suffix("").parts)
    faults = faults_of(path.read_text(encoding="utf-8"), module)
    allowed = ALLOWED.get(path.relative_to(CHECKOUT).as_posix(), set())
    assert [fault for fault in faults if fault.rpartition(" ")[2] not in allowed] == []
    assert {fault.rpartition(" ")[2] for fault in faults} >= allowed  # an exception that nothing needs is none


# The search itself must find what it looks for, in every spelling.
FOUND = {
    "import pickle\npickle.loads(data)": "pickle.loads",
    "import pickle as p\np.load(file)": "pickle.load",
    "from pickle import loads": "imports pickle",
    "import dill": "imports dill",
    "import marshal": "imports marshal",
    "import shelve": "imports shelve",
    "import torch\ntorch.load(path)": "weights_only",
    "import torch\ntorch.load(path, weights_only=False)": "weights_only",
    "from torch import load as read\nread(path, weights_only=given)": "weights_only",
    "import numpy as np\nnp.load(path, allow_pickle=True)": "allow_pickle",
    "from numpy import load\nload(path, allow_pickle=flag)": "allow_pickle",
    "import yaml\nyaml.load(text)": "safe loader",
    "import yaml\nyaml.load(text, yaml.Loader)": "safe loader",
    "import yaml\nyaml.load(text, Loader=yaml.FullLoader)": "safe loader",
    "import yaml as y\ny.unsafe_load(text)": "yaml.unsafe_load",
    "eval(text)": "eval runs",
    "exec(text)": "exec runs",
    "compile(text, 'a', 'exec')": "compile makes",
    "import os\nos.system(text)": "os.system",
    "import subprocess\nsubprocess.run(text, shell=True)": "shell",
    "import subprocess as s\ns.Popen(text, shell=flag)": "shell",
    "import tempfile\ntempfile.mktemp()": "mktemp",
    "load(name, trust_remote_code=True)": "trust_remote_code is given",
    "def load(name, trust_remote_code=True): ...": "by default",
    "def load(name, *, trust_remote_code: bool = True): ...": "by default",
    "client(verify=False)": "any server",
}
LEFT = [
    "import torch\ntorch.load(path, weights_only=True)",
    "import numpy as np\nnp.load(path)\nnp.load(path, allow_pickle=False)",
    "import yaml\nyaml.safe_load(text)\nyaml.load(text, yaml.SafeLoader)",
    "import pickle\ntry: ...\nexcept pickle.UnpicklingError: ...",
    "import re, torch\nre.compile('a')\ntorch.compile(layer)\nmodel.eval()",
    "import subprocess\nsubprocess.run(['git'], shell=False)",
    "def load(name, trust_remote_code=False): use(name, trust_remote_code=trust_remote_code)",
]


@pytest.mark.parametrize("source", FOUND)
def test_each_is_found(source: str) -> None:
    assert any(FOUND[source] in fault for fault in faults_of(source)), faults_of(source)


@pytest.mark.parametrize("source", LEFT)
def test_what_is_harmless_is_left(source: str) -> None:
    assert faults_of(source) == []


def test_every_package_is_looked_at() -> None:
    assert {path.relative_to(CHECKOUT).parts[0] for path in SOURCES} == set(FOLDERS)


def test_our_yaml_loader_is_a_safe_one() -> None:
    import yaml

    from mulcot.config_files import _OneOfEachKey

    assert issubclass(_OneOfEachKey, yaml.SafeLoader)
    with pytest.raises(yaml.constructor.ConstructorError, match="could not determine a constructor"):
        yaml.load("!!python/object/apply:os.getcwd []", _OneOfEachKey)


def test_no_shipped_config_trusts_code() -> None:
    configs = list((CHECKOUT / "conf").rglob("*.yaml"))
    assert len(configs) > 20
    assert [path.name for path in configs if "trust_remote_code" in path.read_text(encoding="utf-8")] == []


def test_no_csv_is_written_by_hand() -> None:
    """A cell that begins with = or + is computed by spreadsheets: whoever writes CSV has to see to that first."""
    found = []
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        known = names_of(tree, "module")
        calls = [full_name(node.func, known) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        writers = [name for name in calls if name in ("csv.writer", "csv.DictWriter") or name.endswith(".to_csv")]
        found += [(path.name, name) for name in writers]
    assert found == []
