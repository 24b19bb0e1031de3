"""Factories: found in another process, or refused with words that name them and say what to do."""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rt_lrhc.cluster.config import ClusterConfig
from rt_lrhc.cluster.controller import RHController
from rt_lrhc.cluster.factories import FactoryName
from rt_lrhc.cluster.launcher import ControlClusterServer
from rt_lrhc.errors import (
    ClusterError,
    ClusterTimeout,
    ConfigurationError,
    ControllerError,
    EnvironmentStateError,
)
from rt_lrhc.testing.echo import EchoController
from tests.cluster_helpers import CONTROLLERS, ECHO, PERIOD, cluster, column, reader, run_script

pytestmark = pytest.mark.timeout(60)


def start(factory: Any, **rest: Any) -> None:
    with ControlClusterServer(ClusterConfig(factory, 3, 0.02, num_workers=1, **rest)):
        pass


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no_colon", r"'no_colon': expected 'package\.module:factory'"),
        ("json:", "expected 'package.module:factory'"),
        ("/nowhere/mpc.py:make", r"there is no file /nowhere/mpc\.py"),
        ("no_such_package.mpc:make", "'no_such_package.mpc:make': there is no module 'no_such_package'"),
        (
            "json:no_such_factory",
            "expected a callable 'no_such_factory' in json, found nothing; callables there:.*dumps",
        ),
        (CONTROLLERS + "not_a_factory", "expected a callable 'not_a_factory'.*found a int.*raising"),
        (
            CONTROLLERS + "raising",
            "raising' raised while it built controllers for 1 robots.*the answer is not 42",
        ),
        (CONTROLLERS + "exiting", "exiting' raised while it built.*SystemExit: 5"),
        (
            CONTROLLERS + "dying",
            "dying'.*exited with status 7; its last words were:.*these are my last words",
        ),
        (
            CONTROLLERS + "dying_in_a_batch",
            "dying_in_a_batch'.*worker 0, which built its controllers, killed by SIGABRT",
        ),
        (CONTROLLERS + "changing", "spec that the probe of one robot had"),
        (CONTROLLERS + "returning_nothing", "returning_nothing' must return an RHController, got NoneType"),
        ("json:dumps", "json:dumps' raised while it built controllers for 1 robots.*TypeError"),
    ],
)
def test_a_factory_that_fails_is_named_with_what_went_wrong(factory: str, message: str) -> None:
    with pytest.raises(ControllerError, match=f"(?s){message}"):
        start(factory)


def closure() -> Callable[..., RHController]:
    def make(num_robots: int) -> RHController:
        return EchoController(num_robots)

    return make


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda num_robots: EchoController(num_robots), "lambda.*make it a top-level function of a module"),
        (closure(), "make it a top-level function of a module"),
        (functools.partial(EchoController, num_inputs=2), "controller_kwargs, not by partial"),
    ],
)
def test_what_another_process_cannot_find_is_refused_before_anything_starts(
    factory: Any, message: str
) -> None:
    with pytest.raises(ControllerError, match=message):
        ControlClusterServer(ClusterConfig(factory, 1, 0.02))


def test_a_function_of_a_notebook_is_told_to_move(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(num_robots: int) -> RHController:
        return EchoController(num_robots)

    make.__module__, make.__qualname__ = "__main__", "make"
    monkeypatch.delattr(sys.modules["__main__"], "__file__")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(ControllerError, match=r"notebook or at a prompt.*move it to a module"):
        FactoryName.of(make)


def test_a_top_level_function_goes_by_its_modules_name() -> None:
    assert str(FactoryName.of(EchoController)) == ECHO
    with cluster(2, factory=EchoController, kwargs={"num_inputs": 2}) as (_, client):
        assert client.spec == EchoController(2, num_inputs=2).spec


SCRIPT = """
import sys
import torch_stand_in
from rt_lrhc.cluster.config import ClusterConfig
from rt_lrhc.cluster.controller import RHController
from rt_lrhc.cluster.launcher import ControlClusterServer
from rt_lrhc.testing.echo import EchoController
from tests.cluster_helpers import ClusterReader

def make(num_robots: int, name: str) -> RHController:
    assert __name__ != "__main__" and name == "echo"
    return EchoController(num_robots)

{guard}
    with ControlClusterServer(ClusterConfig(make, 2, 0.02, {{"name": "echo"}})) as server:
        print("started", server.connect().spec.backend)
"""


@pytest.mark.parametrize("guard", ['if __name__ == "__main__":', "if True:"])
def test_a_script_may_hold_its_own_factory_if_what_it_does_is_guarded(tmp_path: Path, guard: str) -> None:
    (tmp_path / "torch_stand_in.py").write_text("")
    text = "import sys\nsys.path.append(sys.argv[1])" + SCRIPT.format(guard=guard)
    script = run_script(tmp_path / "run.py", text, "TEST=1", str(Path(__file__).parent.parent))
    out, err = script.communicate(timeout=50)
    if guard == "if True:":
        assert "put that code under `if __name__ == '__main__':`" in err and script.returncode == 1
    else:
        assert (out, script.returncode) == ("started echo\n", 0), err


def test_a_module_that_imports_torch_is_warned_about(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    path = tmp_path / "mpc.py"
    path.write_text(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import torch\n"
        "from rt_lrhc.testing.echo import EchoController\n"
    )
    with pytest.warns(RuntimeWarning, match=r"mpc\.py:EchoController' imports torch"):
        start(f"{path}:EchoController")


def test_a_worker_loads_neither_torch_nor_the_callers_modules_and_uses_one_blas_thread() -> None:
    with cluster(2, factory=CONTROLLERS + "confessing") as (server, client), reader(server) as looking:
        client.trigger(0, PERIOD, column(0, 0), column(0, 0))
        client.collect(PERIOD, wait=True)
        assert looking.workers[0].iterations[1].tolist() == [0, 0] and looking.workers[0].cost[
            1
        ].tolist() == [2.0, 2.0]


def test_a_factory_that_does_not_end_is_given_up() -> None:
    with pytest.raises(ClusterTimeout, match="hanging' did not build one controller within boot_timeout"):
        start(CONTROLLERS + "hanging", boot_timeout=0.5)


def test_an_import_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "slow.py"
    path.write_text("import time; time.sleep(3600)")
    with pytest.raises(ClusterTimeout, match=r"importing .*slow\.py' may hang"):
        start(f"{path}:make", boot_timeout=0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_robots": 0}, "num_robots must be an integer of at least 1, got 0"),
        ({"num_workers": 1.5}, "num_workers"),
        ({"control_period": 0.0}, "control_period must be a time"),
        ({"hang_limit": float("inf")}, "hang_limit"),
        ({"nominal_age": 2}, "nominal_age must be 0"),
        ({"namespace": "a/b"}, "namespace"),
        (
            {"controller_kwargs": {"a": {"b": [1, {2}]}}},
            r"controller_kwargs\['a'\]\['b'\]\[1\] must be a number",
        ),
        ({"controller_kwargs": {"a": {1: 2}}}, r"controller_kwargs\['a'\]: keys must be strings, got 1"),
        ({"controller_kwargs": {"num_robots": 2}}, "must not hold 'num_robots'"),
    ],
)
def test_a_wrong_configuration_names_what_is_wrong(wrong: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {"factory": ECHO, "num_robots": 1, "control_period": 0.02}
    with pytest.raises(ConfigurationError, match=message):
        ClusterConfig(**{**right, **wrong})


def test_more_arguments_than_a_message_holds_are_refused_in_words() -> None:
    with pytest.raises(ConfigurationError, match="pass its path"):
        start(ECHO, controller_kwargs={"big": list(range(100_000))})


def test_arguments_arrive_as_they_were_sent(tmp_path: Path) -> None:
    arguments = {
        "flag": True,
        "none": None,
        "text": "ä",
        "values": [1, 2.5, [float("inf")]],
        "nested": {"a": {}},
    }
    path = tmp_path / "mpc.py"
    path.write_text(
        "import json\nfrom rt_lrhc.testing.echo import EchoController\n"
        f"def make(num_robots, **rest):\n    json.dump(rest, open({str(tmp_path / 'seen')!r}, 'w'))\n"
        "    return EchoController(num_robots)\n"
    )
    start(f"{path}:make", controller_kwargs=arguments)
    assert json.loads((tmp_path / "seen").read_text()) == arguments


def test_a_cluster_is_started_once_and_asked_for_a_client_while_it_runs() -> None:
    server = ControlClusterServer(ClusterConfig(ECHO, 1, 0.02))
    with pytest.raises(EnvironmentStateError, match="not running"):
        server.connect()
    with server, pytest.raises(ClusterError, match="started already"):
        server.start()
    with pytest.raises(EnvironmentStateError, match="not running"):
        server.connect()
