"""The structure that the design promises, read from the syntax trees: who imports whom, and who waits for how long."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rt_lrhc"
FILES = sorted(PACKAGE.rglob("*.py")) + sorted((ROOT / "interfaces").rglob("*.py"))

COMMON = {"errors", "delays", "randomness", "config", "timing", "processes"}
REAL_TIME = COMMON | {"shm", "interface", "environment"}
CLUSTER = COMMON | {"shm", "cluster"}
INTERFACES = REAL_TIME | CLUSTER | {"controllers", "simulators", "interfaces"}
DRAWING = COMMON | {"svg", "figures"}

MAY_IMPORT = {
    "errors": set(),
    "randomness": {"errors"},
    "timing": {"errors"},
    "processes": {"errors"},
    "delays": {"errors", "randomness", "timing"},
    "config": {"errors", "delays", "timing"},
    "interface": COMMON,
    "environment": REAL_TIME,
    "shm": COMMON,
    "cluster": CLUSTER,
    "controllers": CLUSTER,
    "simulators": COMMON,
    "interfaces": INTERFACES,
    "tasks": INTERFACES,
    "training": INTERFACES | {"tasks"},
    "svg": set(),
    "figures": DRAWING,
    "testing": REAL_TIME | CLUSTER,
    "commands": INTERFACES | DRAWING | {"tasks", "training", "commands", "rt_lrhc"},
    "rt_lrhc": REAL_TIME,
    "__main__": {"commands"},
}
"""The rooms of the package, and which of the others each may import; a room may always import itself."""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room(path: Path) -> str:
    """The room that a file lies in: the first folder or module within the package."""
    first = path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT).parts[0].removesuffix(".py")
    return "rt_lrhc" if first == "__init__" else first


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Yield every module that a file imports, anywhere in it, as `package.module.name`, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield from ((f"{prefix}.{alias.name}", node.lineno) for alias in node.names)


def calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield node


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_go_downwards_only(path: Path) -> None:
    here = room(path)
    assert here in MAY_IMPORT, f"{name(path)}: give room {here!r} its place in MAY_IMPORT"
    for module, line in imported(path):
        assert not module.startswith("."), f"{name(path)}:{line}: relative imports hide the layer: {module}"
        top, *rest = module.split(".")
        if top == "rt_lrhc":
            known = bool(rest) and rest[0] in MAY_IMPORT
            there = rest[0] if known else "rt_lrhc"
            assert there in MAY_IMPORT[here] | {here}, f"{name(path)}:{line}: {here} must not import {module}"
        assert top not in {"interfaces", "tests", "benchmarks", "tutorials"}, f"{name(path)}:{line}: {module}"


def test_the_rooms_can_be_built_from_the_ground_up() -> None:
    """No two rooms import each other, by whatever way."""
    left = {here: there - {here} for here, there in MAY_IMPORT.items()}
    while ready := {here for here, there in left.items() if not there & left.keys()}:
        left = {here: there for here, there in left.items() if here not in ready}
    assert not left


@pytest.mark.parametrize("path", FILES, ids=name)
def test_shared_memory_is_not_multiprocessings(path: Path) -> None:
    """In Python 3.11 a reader of that one destroys the segment as it exits; a semaphore outlives its killed holder."""
    for module, line in imported(path):
        assert not module.startswith("multiprocessing"), f"{name(path)}:{line}: {module}"
        assert module != "posix_ipc.Semaphore", f"{name(path)}:{line}: {module}"
    for call in calls(path):
        assert not ast.unparse(call.func).endswith("posix_ipc.Semaphore"), f"{name(path)}:{call.lineno}"


WAITS = {"wait", "join", "get", "acquire", "poll", "select", "result", "communicate"}
"""Methods that wait for ever when they are called without an argument."""

RUNS = {"subprocess.run", "subprocess.call", "subprocess.check_call", "subprocess.check_output"}
"""Functions that wait for ever without the keyword `timeout`."""

DO_NOT_WAIT = {
    "select.poll()": "makes a poll object",
    "process.poll()": "subprocess.Popen: asks whether the process has ended",
    "rows.wait()": "a user's callback: it tells the world to pause",
    "interface.wait()": "a user's callback: it tells the world to pause",
    "env.wait()": "the environment's pause, which is not a wait for anything",
}
"""Ends of calls that look like an endless wait, and what they are instead."""


def waits_for_ever(call: ast.Call) -> bool:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    limit = keywords.get("timeout")
    if isinstance(limit, ast.Constant) and limit.value is None:
        return True
    if ast.unparse(call.func) in RUNS:
        return "timeout" not in keywords
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in WAITS or call.args or call.keywords:
        return False
    return not ast.unparse(call).endswith(tuple(DO_NOT_WAIT))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_wait_is_unbounded(path: Path) -> None:
    for call in calls(path):
        assert not waits_for_ever(call), (
            f"{name(path)}:{call.lineno}: {ast.unparse(call)} may wait for ever; give it a timeout, "
            "or name it in DO_NOT_WAIT with the reason"
        )


@pytest.mark.parametrize(
    ("code", "unbounded"),
    [
        ("thread.join()", True),
        ("thread.join(timeout=None)", True),
        ("queue.get()", True),
        ("lock.acquire()", True),
        ("epoll.poll()", True),
        ("subprocess.run(['true'])", True),
        ("thread.join(timeout=1.0)", False),
        ("queue.get(timeout=limit)", False),
        ("''.join(words)", False),
        ("self._process.poll()", False),
        ("subprocess.run(['true'], timeout=1.0)", False),
    ],
)
def test_an_unbounded_wait_is_recognised(code: str, unbounded: bool) -> None:
    (call,) = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    assert waits_for_ever(call) == unbounded


MAY_BLOCK = (WAITS - {"get"}) | {"sleep", "recv", "recvmsg", "recv_into", "accept", "connect", "sendall"}
"""Methods that may keep a lock from others for as long as they like."""


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_that_may_block_is_done_under_a_lock(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.With) and any(
            ast.unparse(item.context_expr).lower().endswith("lock") for item in node.items
        ):
            for call in (inner for inner in ast.walk(node) if isinstance(inner, ast.Call)):
                method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
                text = isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Constant)
                assert method not in MAY_BLOCK or text, (
                    f"{name(path)}:{call.lineno}: {ast.unparse(call)} under a lock"
                )


SYSTEM = ("dev", "proc", "sys", "etc", "usr", "bin", "run", "tmp/rt_lrhc-")


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    place = re.compile(rf"(?<=[\s\"'`(=])/(?!{'|'.join(SYSTEM)})\w+/\w+")
    texts = [
        *FILES,
        *(path for folder in ("tutorials", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.*")),
    ]
    texts += [path for path in ROOT.iterdir() if path.suffix in (".md", ".cfg", ".toml", ".cff")] + [
        ROOT / "Makefile"
    ]
    for path in texts:
        if path.suffix in (".py", ".md", ".cfg", ".toml", ".cff", ".xml", ""):
            text = path.read_text()
            assert str(ROOT) not in text, f"{name(path)} names {ROOT}"
            assert (found := place.search(text)) is None, f"{name(path)} names {found and found.group()}"


def loaded_by(*modules: str) -> set[str]:
    """Return the top-level modules that importing `modules` loads into a fresh interpreter."""
    code = f"import sys, {', '.join(modules)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60.0, check=True
    )
    return set(run.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not {"torch", "casadi", "cv2", "mujoco", "tyro"} & loaded_by("rt_lrhc", "rt_lrhc.commands.main")


def modules_of(*rooms: str) -> list[str]:
    paths = [path for here in rooms for path in sorted((PACKAGE / here).glob("*.py"))]
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths
    ]


def test_what_a_worker_imports_loads_no_torch() -> None:
    assert not {"torch", "cv2", "mujoco"} & loaded_by(*modules_of("shm", "cluster", "controllers"))
