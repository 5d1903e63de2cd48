"""Rooms of `soup_verl` by what they know: imports go down the floors only, and the method knows no engine."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLOORS = (
    ("method", "records"),
    ("tasks",),
    ("stack",),
    ("launch", "evaluation", "reporting"),
    ("rehearsal", "acceptance", "exporting", "sweeping"),
    ("soup_verl",),  # the public faces: modules that forward
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ENGINES = {"ray", "transfer_queue", "verl", "vllm"}
FACE_LINES = 10


def modules() -> dict[str, Path]:
    """By dotted name, packages by their own."""
    files = sorted((ROOT / "soup_verl").rglob("*.py"))
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def imports(file: Path, known: set[str]) -> set[str]:
    """Modules that `file` imports anywhere, ours as in `known`, others by their first name."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in known else node.module for a in node.names
            }
    return {name if name in known else name.partition(".")[0] for name in found}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR_OF else parts[0]


KNOWN = modules()
IMPORTS = {module: imports(file, set(KNOWN)) for module, file in KNOWN.items()}


def test_imports_go_down_the_floors():
    up = [
        (module, imported)
        for module, found in IMPORTS.items()
        for imported in found & KNOWN.keys()
        if room(imported) != room(module) and FLOOR_OF[room(imported)] >= FLOOR_OF[room(module)]
    ]
    assert up == [] and len(FLOORS) <= 6


def test_there_is_no_circle():
    within = {module: {i for i in found & KNOWN.keys() if i != module} for module, found in IMPORTS.items()}
    assert len(list(TopologicalSorter(within).static_order())) == len(KNOWN)  # a circle raises CycleError


def test_the_method_and_the_records_know_no_engine():
    assert [
        (m, found & ENGINES) for m, found in IMPORTS.items() if room(m) in ("method", "records") and found & ENGINES
    ] == []


def test_every_module_has_a_room_and_a_face_only_forwards():
    faces = {module: file for module, file in KNOWN.items() if room(module) == "soup_verl"}
    assert set(faces) == {
        "soup_verl",
        *(f"soup_verl.{n}" for n in ("compare", "evaluate", "export", "grade", "prepare_data", "report", "reward")),
    }
    assert all(len(file.read_text().splitlines()) <= FACE_LINES for file in faces.values())
