"""deploy/: the script, the compose file, the manifests and the proxies agree with the code and with each other."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from api.flags import DEFAULT_PORT
from api.flags.table import ROWS
from api.http.operations import OPERATIONS

DEPLOY: Final = Path(__file__).parents[1] / "deploy"
ROUTER_PORT: Final = 39290
SECONDS: Final = 60.0
NODES: Final = {"node1": ROUTER_PORT + 1, "node2": ROUTER_PORT + 2}
FLAGS: Final = [line for line in (DEPLOY / "smg.flags").read_text().splitlines() if not line.startswith("#")]
SMG_SECONDS: Final = next(int(line.split()[1]) for line in FLAGS if line.startswith("--health-check-interval-secs "))
"""Between two questions to a node. SMG leaves a node out after two failures."""
GETS: Final = {operation.path for operation in OPERATIONS if operation.method == "GET"}


def manifests() -> Iterator[dict[str, Any]]:
    for file in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        yield from yaml.safe_load_all(file.read_text())


def manifest(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in manifests() if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def template(kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = manifest(kind, name)["spec"]["template"]
    return found


def container(kind: str, name: str) -> dict[str, Any]:
    (found,) = template(kind, name)["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def options(arguments: list[str]) -> set[str]:
    return {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}


# -- one set of flags for SMG -----------------------------------------------------------------------------------------


def test_each_line_has_one_flag_of_smg() -> None:
    names = [line.split()[0] for line in FLAGS]
    assert len(set(names)) == len(names)
    for line in FLAGS:
        assert re.fullmatch(r"--[a-z0-9-]+( [\w./]+)?", line), line


def test_smg_asks_for_a_route_that_nodes_have() -> None:
    (endpoint,) = [line.split()[1] for line in FLAGS if line.startswith("--health-check-endpoint ")]
    assert endpoint in GETS


def test_kubernetes_has_the_same_flags() -> None:
    assert manifest("ConfigMap", "smg-flags")["data"]["smg.flags"].splitlines() == FLAGS


def test_the_docs_explain_every_flag() -> None:
    text = (DEPLOY.parent / "docs" / "cluster.md").read_text()
    assert [line.split()[0] for line in FLAGS if f"`{line.split()[0]}" not in text] == []


# -- the compose file -------------------------------------------------------------------------------------------------


def test_the_compose_file_starts_smg_in_front_of_two_nodes() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"smg", *NODES}
    arguments = services["smg"]["command"]
    assert [each for each in arguments if each.startswith("http:")] == [f"http://{n}:{DEFAULT_PORT}" for n in NODES]
    assert arguments[arguments.index("--port") + 1] == str(ROUTER_PORT)
    assert services["smg"]["ports"] == [f"127.0.0.1:{ROUTER_PORT}:{ROUTER_PORT}"]
    assert services["smg"]["depends_on"] == {name: {"condition": "service_healthy"} for name in NODES}
    for name in NODES:
        assert options(services[name]["command"]) <= {row.option for row in ROWS.values()}
        volumes = dict(each.split(":")[:2] for each in services[name]["volumes"])
        assert volumes[name] == "/data"  # a $CORTEX_HOME of its own
        assert name in compose["volumes"]
    assert (DEPLOY / services["smg"]["build"]["dockerfile"]).exists()


# -- Kubernetes -------------------------------------------------------------------------------------------------------


def test_every_manifest_has_a_name_of_its_own() -> None:
    found = [(each["apiVersion"], each["kind"], each["metadata"]["name"]) for each in manifests()]
    assert len(set(found)) == len(found) > 8


def test_nodes_take_the_flags_that_cortex_has() -> None:
    arguments = container("StatefulSet", "cortex")["args"]
    assert options(arguments) <= {row.option for row in ROWS.values()}
    mounted = {each["mountPath"] for each in container("StatefulSet", "cortex")["volumeMounts"]}
    (keys,) = [each.partition("=")[2] for each in arguments if each.startswith("--keys-file=")]
    assert str(Path(keys).parent) in mounted
    assert "/data" in mounted  # the image's $CORTEX_HOME


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes_of_nodes_ask_for_routes_that_exist(probe: str) -> None:
    node = container("StatefulSet", "cortex")
    (port,) = node["ports"]
    request = node[probe]["httpGet"]
    assert (port["containerPort"], request["port"]) == (DEFAULT_PORT, port["name"])
    assert request["path"] in GETS
    # A node that loads or drains must not be killed for it: /health and the like say 503 then.
    unhealthy = {operation.path for operation in OPERATIONS if operation.unhealthy}
    assert (request["path"] in unhealthy) == (probe != "livenessProbe")


def test_a_pod_has_time_to_drain() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["node1"]
    for arguments, seconds in (
        (" ".join(container("StatefulSet", "cortex")["args"]).replace("=", " ").split(),
         template("StatefulSet", "cortex")["spec"]["terminationGracePeriodSeconds"]),
        (compose["command"], int(compose["stop_grace_period"].removesuffix("s"))),
    ):  # fmt: skip
        delay, grace = (int(arguments[arguments.index(flag) + 1]) for flag in ("--drain-delay", "--grace"))
        assert delay > 2 * SMG_SECONDS
        assert seconds >= max(delay, grace) + 20


def test_selectors_and_ports_agree() -> None:
    labels = template("StatefulSet", "cortex")["metadata"]["labels"]
    assert manifest("StatefulSet", "cortex")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("PodDisruptionBudget", "cortex")["spec"]["selector"]["matchLabels"] == labels
    nodes = manifest("Service", "cortex-nodes")
    assert nodes["spec"]["selector"] == labels
    assert manifest("StatefulSet", "cortex")["spec"]["serviceName"] == nodes["metadata"]["name"]
    arguments = container("Deployment", "smg")["args"]
    ((label, value),) = labels.items()
    assert arguments[arguments.index("--selector") + 1] == f"{label}={value}"
    assert f"--service-discovery-port={DEFAULT_PORT}" in arguments
    assert f"--port={ROUTER_PORT}" in arguments
    router = manifest("Service", "cortex")["spec"]
    assert router["selector"] == template("Deployment", "smg")["metadata"]["labels"]
    assert [port["port"] for port in router["ports"]] == [ROUTER_PORT]


def test_smg_may_watch_pods() -> None:
    account = template("Deployment", "smg")["spec"]["serviceAccountName"]
    binding = manifest("RoleBinding", "smg")
    assert [each["name"] for each in binding["subjects"]] == [manifest("ServiceAccount", account)["metadata"]["name"]]
    (rule,) = manifest("Role", binding["roleRef"]["name"])["rules"]
    assert (rule["resources"], set(rule["verbs"])) == (["pods"], {"get", "list", "watch"})


def test_nodes_are_added_while_requests_wait() -> None:
    spec = manifest("ScaledObject", "cortex")["spec"]
    assert spec["scaleTargetRef"]["name"] == manifest("StatefulSet", "cortex")["metadata"]["name"]
    (trigger,) = spec["triggers"]
    assert "vllm:num_requests_waiting" in trigger["metadata"]["query"]
    assert spec["minReplicaCount"] <= manifest("StatefulSet", "cortex")["spec"]["replicas"] <= spec["maxReplicaCount"]


# -- HAProxy and nginx ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["haproxy.cfg", "nginx.conf"])
def test_proxies_have_the_ports_of_the_script(file: str) -> None:
    text = (DEPLOY / file).read_text()
    ports = [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", text)]
    assert sorted(ports) == [ROUTER_PORT, *NODES.values()]


def test_haproxy_asks_for_a_route_that_nodes_have() -> None:
    (path,) = re.findall(r"option httpchk GET (\S+)", (DEPLOY / "haproxy.cfg").read_text())
    assert path in GETS


@pytest.mark.parametrize(
    "command", [["haproxy", "-c", "-f", "haproxy.cfg"], ["nginx", "-t", "-p", "{folder}", "-c", "{deploy}/nginx.conf"]]
)
def test_the_proxies_accept_their_configurations(command: list[str], tmp_path: Path) -> None:
    program = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip(f"{command[0]} is not installed here")
    words = [word.format(folder=tmp_path, deploy=DEPLOY) for word in command[1:]]
    done = subprocess.run([program, *words], cwd=DEPLOY, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr


# -- the script -------------------------------------------------------------------------------------------------------


class Script:
    """deploy/cluster.sh with commands that only write down how they were called."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self._calls = folder / "calls"
        self._calls.touch()
        for name, rest in (("cortex", ""), ("smg", "exec sleep 600")):
            program = folder / name
            program.write_text(f'#!/bin/sh\necho {name} "${{CORTEX_HOME##*/}}" "$@" >> "{self._calls}"\n{rest}\n')
            program.chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if name != "CORTEX_HOME"}
        environment |= {"CORTEX": f"{folder}/cortex", "SMG": f"{folder}/smg", "CLUSTER": f"{folder}/homes", **variables}
        self._process = subprocess.Popen(
            [DEPLOY / "cluster.sh", "--max-seqs", "4"], env=environment, stdout=subprocess.DEVNULL
        )

    def started(self) -> list[str]:
        """The calls until SMG has started."""
        deadline = time.monotonic() + SECONDS
        while not (calls := self.calls()) or not calls[-1].startswith("smg"):
            assert time.monotonic() < deadline
            assert self._process.poll() is None
            time.sleep(0.02)
        return calls

    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines()

    def end(self, number: int) -> int:
        self._process.send_signal(number)
        return self._process.wait(SECONDS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_script_starts_nodes_then_smg_and_ends_all(tmp_path: Path, number: int) -> None:
    script = Script(tmp_path)
    *nodes, smg = script.started()
    assert [node.split(" --")[0] for node in nodes] == [f"cortex {name} run -d smollm2:135m" for name in NODES]
    for node, port in zip(nodes, NODES.values(), strict=True):
        assert f" --port {port} " in node
        assert node.endswith(" --max-seqs 4")
        assert options(node.split()) <= {row.option for row in ROWS.values()}
    assert smg.split()[1:].index("launch") == 0
    assert " ".join(FLAGS) in smg
    assert smg.endswith(" ".join(f"http://127.0.0.1:{port}" for port in NODES.values()))
    assert script.end(number) == 0
    assert sorted(script.calls()[3:]) == [f"cortex {name} stop" for name in NODES]


def test_the_script_gives_one_keys_file_to_all_nodes(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.touch()
    script = Script(tmp_path, KEYS=str(keys), NODES="3", PORT="40000")
    *nodes, _ = script.started()
    assert len(nodes) == 3
    for number, node in enumerate(nodes, 1):
        assert f" --port {40000 + number} " in node
        assert f" --auth --keys-file {keys} " in node
    script.end(signal.SIGTERM)
