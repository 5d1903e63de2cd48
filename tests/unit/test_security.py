"""No code of ours can be made to run someone else's: every Python file is read, none is run."""

import ast
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
FOLDERS = ("soup_verl", "recipe", "examples", "scripts", "benchmarks", "tests")
UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
SHELLS = {
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell",
}
LOADERS = {"SafeLoader", "CSafeLoader"}
EXCEPTIONS = {
    # verl writes its shards with torch.save, a DTensor's parts among them; the other file is the tests' own.
    ("tests/e2e/launch.py", "torch.load without weights_only=True"),
    # The sandbox runs responses, and what tests them, as code: that is what it is for.
    ("soup_verl/tasks/code/jail.py", "compile"),
    ("soup_verl/tasks/code/jail.py", "exec"),
    # Ray pickles errors and verl its platform: these tests look whether ours survive it.
    ("tests/unit/method/test_config.py", "import of pickle"),
    ("tests/unit/stack/cpu/test_platform.py", "import of pickle"),
}


def findings(source: str) -> list[str]:
    """What a module does that may run code it was not written with."""
    return [told for node in ast.walk(ast.parse(source)) for told in [_import(node) or _call(node)] if told]


def _import(node: ast.AST) -> str | None:
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
    found = UNPICKLERS & {name.split(".")[0] for name in names}
    return f"import of {found.pop()}" if found else None


def _call(node: ast.AST) -> str | None:
    if not isinstance(node, ast.Call):
        return None
    name, given = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
    last = name.rsplit(".", 1)[-1]
    if name in BUILTINS or name in SHELLS or last in ("read_pickle", "to_pickle", "unsafe_load", "full_load"):
        return name
    if name == "torch.load" and not _is(given.get("weights_only"), True):
        return "torch.load without weights_only=True"
    if name in ("yaml.load", "yaml.load_all"):
        loader = given.get("Loader") or (node.args[1] if len(node.args) > 1 else None)
        return None if loader and ast.unparse(loader).rsplit(".", 1)[-1] in LOADERS else f"{name} without SafeLoader"
    if "shell" in given and not _is(given["shell"], False):
        return "shell=True"
    return "allow_pickle=True" if "allow_pickle" in given and not _is(given["allow_pickle"], False) else None


def _is(node: ast.AST | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import pickle", "import of pickle"),
        ("from dill import loads", "import of dill"),
        ("import cloudpickle.cloudpickle as c", "import of cloudpickle"),
        ("torch.load(p)", "torch.load without weights_only=True"),
        ("torch.load(p, weights_only=False)", "torch.load without weights_only=True"),
        ("torch.load(p, weights_only=safe)", "torch.load without weights_only=True"),
        ("eval(x)", "eval"),
        ("exec(x)", "exec"),
        ("os.system(x)", "os.system"),
        ("subprocess.run(x, shell=True)", "shell=True"),
        ("subprocess.run(x, shell=anything)", "shell=True"),
        ("yaml.load(f)", "yaml.load without SafeLoader"),
        ("yaml.load(f, Loader=yaml.Loader)", "yaml.load without SafeLoader"),
        ("np.load(p, allow_pickle=True)", "allow_pickle=True"),
        ("pd.read_pickle(p)", "pd.read_pickle"),
    ],
)
def test_the_reader_sees_what_it_looks_for(source, told):
    assert findings(source) == [told]


@pytest.mark.parametrize(
    "source",
    ["torch.load(p, weights_only=True)", "re.compile(p)", "model.eval()", "np.load(p)", "yaml.safe_load(f)"]
    + ["yaml.load(f, Loader=yaml.CSafeLoader)", "yaml.load(f, SafeLoader)", "subprocess.run(x, shell=False)"],
)
def test_the_reader_leaves_the_safe_spellings_alone(source):
    assert findings(source) == []


def test_no_module_of_ours_runs_what_it_reads():
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    found = {(str(path.relative_to(ROOT)), told) for path in files for told in findings(path.read_text())}
    assert found == EXCEPTIONS  # neither more nor, when one is mended, fewer


def test_no_script_of_ours_evaluates_its_arguments():
    scripts = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.sh")] + [ROOT / ".ci" / "run"]
    assert len(scripts) > 5
    bad = re.compile(r"(?m)^[^#]*(?:\beval\b|\b(?:curl|wget)\b.*\|\s*(?:ba)?sh\b|\bbash -c\b)")
    assert [str(path) for path in scripts if bad.search(path.read_text())] == []


def test_the_cpu_platform_starts_a_cluster_of_its_own_without_a_dashboard():
    """Which is what makes `soup_verl.launch.run` keep it on the loopback interface."""
    settings = OmegaConf.load(ROOT / "recipe" / "soup" / "config" / "platform" / "cpu.yaml").ray_kwargs.ray_init
    assert settings.address == "local" and settings.include_dashboard is False


@pytest.mark.parametrize("script", ["examples/common/train.sh", "examples/smollm2_135m/run.sh"])
def test_the_examples_that_run_on_any_machine_use_that_platform(script):
    text = (ROOT / script).read_text()
    assert "platform=cpu" in text and "ray_init" not in text and "0.0.0.0" not in text
