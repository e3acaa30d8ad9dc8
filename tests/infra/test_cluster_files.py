"""The files for Kubernetes: what its own schemas say of them, and whether they fit each other and the code.

No cluster is asked. Kubernetes' schemas come with a package; KubeRay's are in none, so its fields are listed here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import hcl2
import kubernetes_validate
import pytest
import yaml

from infra.prefect_server import HOSTS, KEY
from m2m.settings import TELEMETRY_OFF, Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "cluster"
KUBERNETES = ("1.33", "1.37")
"""The oldest and the newest version that the files are for."""
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
SERVICES = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())["services"]
Object = dict[str, Any]


class Pod(NamedTuple):
    file: str
    name: str
    metadata: Object
    spec: Object

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def rendered(template: Any, values: Mapping[str, Any]) -> Any:
    """As Prefect does it: a variable that stands alone keeps its type."""
    if isinstance(template, dict):
        return {key: rendered(value, values) for key, value in template.items()}
    if isinstance(template, list):
        return [rendered(value, values) for value in template]
    if isinstance(template, str) and (alone := re.fullmatch(r"{{ (\w+) }}", template)):
        return values[alone[1]]
    return re.sub(r"{{ (\w+) }}", lambda one: str(values[one[1]]), template) if isinstance(template, str) else template


def flow_job() -> Object:
    """The Job of a flow run for which nothing was changed, with the environment that Prefect adds."""
    command = ["prefect", "flow-run", "execute"]
    values = {"name": "run", "labels": {}, "command": command} | {
        name: part["default"] for name, part in TEMPLATE["variables"]["properties"].items() if "default" in part
    }
    job = rendered(TEMPLATE["job_configuration"]["job_manifest"], values)
    spec = job["spec"]["template"]["spec"]
    # Prefect asks for them there, where Kubernetes knows none.
    assert {spec.pop("parallelism"), spec.pop("completions")} == {1}
    spec["containers"][0]["env"] += [{"name": name, "value": value} for name, value in values["env"].items()]
    return job


TEMPLATE = json.loads((FOLDER / "prefect-job.json").read_text())
OBJECTS = [
    (path.name, one) for path in sorted(FOLDER.glob("*.yaml")) for one in yaml.safe_load_all(path.read_text()) if one
] + [("prefect-job.json", flow_job())]


def named(kind: str, name: str | None = None) -> Object:
    (found,) = (one for _, one in OBJECTS if one["kind"] == kind and name in (None, one["metadata"].get("name")))
    return found


RAY, RAY_JOB, FLOW_JOB = named("RayCluster")["spec"], named("RayJob")["spec"], flow_job()
GROUPS = {group["groupName"]: group for group in RAY["workerGroupSpecs"]}
CLUSTER = named("RayCluster")["metadata"]["name"]
SETTINGS = named("ConfigMap", "m2m")["data"]
JOB_ENVIRONMENT = yaml.safe_load(RAY_JOB["runtimeEnvYAML"])["env_vars"]
FLOW_ENVIRONMENT = TEMPLATE["variables"]["properties"]["env"]["default"]


def pods() -> Iterator[Pod]:
    for file, one in OBJECTS:
        spec = one.get("spec", {})
        match one["kind"]:
            case "Deployment" | "Job":
                templates = {one["metadata"].get("name", "flow"): spec["template"]}
            case "RayJob":
                templates = {"submitter": spec["submitterPodTemplate"]}
            case "RayCluster":
                # KubeRay puts the autoscaler beside the head.
                scaler = {"name": "autoscaler", "image": IMAGE, "envFrom": TELEMETRY}
                scaler |= {key: spec["autoscalerOptions"][key] for key in ("resources", "securityContext")}
                head = spec["headGroupSpec"]["template"]
                inner = head["spec"] | {"containers": [*head["spec"]["containers"], scaler]}
                templates = {"head": head | {"spec": inner}} | {name: one["template"] for name, one in GROUPS.items()}
            case _:
                templates = {}
        for name, template in templates.items():
            yield Pod(file, name, template.get("metadata", {}), template["spec"])


IMAGE = f"registry.example.org/m2m:{VERSION}"
TELEMETRY = [{"configMapRef": {"name": "telemetry"}}]
PODS = {pod.name: pod for pod in pods()}
CONTAINERS = [
    pytest.param(pod, container, id=f"{pod.name}-{container['name']}")
    for pod in PODS.values()
    for container in pod.containers
]


def values(container: Object) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in container.get("env", [])}


def walk(value: Any) -> Iterator[Any]:
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(inner)


# What Kubernetes says


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_every_object_and_every_pod(version: str) -> None:
    core = [one for _, one in OBJECTS if not one["apiVersion"].startswith("ray.io/")]
    bare = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.name} | pod.metadata, "spec": pod.spec}
        for pod in PODS.values()
        if pod.file in ("ray.yaml", "job.yaml")  # Kubernetes has no schema for what these are in
    ]
    assert len(core) > 15
    assert set(PODS) == {"head", "gpu", "driver", "submitter", "prefect", "mlflow", "flows", "flow"}
    for one in (*core, *bare):
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            place = "/".join(map(str, error.path))
            pytest.fail(f"{one['kind']} {one['metadata']}: {place}: {error.message[:300]}")


def test_kuberay_knows_every_field() -> None:
    """Those of ray.io/v1 since KubeRay 1.5.1."""
    cluster = {"authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "headGroupSpec", "rayVersion"}
    group = {"labels", "rayStartParams", "resources", "template"}
    counts = {"groupName", "idleTimeoutSeconds", "maxReplicas", "minReplicas", "replicas"}
    scaler = {"env", "envFrom", "idleTimeoutSeconds", "resources", "securityContext", "upscalingMode", "version"}
    job = {"activeDeadlineSeconds", "clusterSelector", "entrypoint", "entrypointResources", "runtimeEnvYAML"}
    assert RAY.keys() <= cluster | {"workerGroupSpecs"}
    assert RAY["headGroupSpec"].keys() <= group
    assert RAY["autoscalerOptions"].keys() <= scaler
    assert RAY_JOB.keys() <= job | {"submitterConfig", "submitterPodTemplate"}
    for worker in GROUPS.values():
        assert worker.keys() <= group | counts
        assert 0 <= worker["minReplicas"] < worker["maxReplicas"]
        # Of the two, KubeRay takes one.
        assert not (worker["rayStartParams"] and worker.get("resources"))


def test_every_object_is_in_the_namespace_or_is_it() -> None:
    for _, one in OBJECTS:
        where = one["metadata"]["name"] if one["kind"] == "Namespace" else one["metadata"]["namespace"]
        assert where == "m2m"


# Pods


@pytest.mark.parametrize(("pod", "container"), CONTAINERS)
def test_a_container_has_no_rights_and_a_share(pod: Pod, container: Object) -> None:
    of_pod, own = pod.spec["securityContext"], container["securityContext"]
    assert named("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert of_pod["runAsNonRoot"] is True
    assert of_pod["runAsUser"] == of_pod["runAsGroup"] == user_of_the_image()
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys()
    assert not any("hostPath" in volume for volume in pod.spec.get("volumes", []))
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    assert requests["cpu"]
    assert requests["memory"]
    assert limits["memory"], "else one takes a node's"
    assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu")
    assert all(re.fullmatch(r"\d+(m|[MG]i)?", amount) for amount in (*requests.values(), *limits.values()))


@pytest.mark.parametrize(("pod", "container"), CONTAINERS)
def test_a_container_runs_the_one_image_in_the_package_s_version(pod: Pod, container: Object) -> None:
    assert container["image"] == IMAGE
    assert container.get("imagePullPolicy", "IfNotPresent") == "IfNotPresent"


def user_of_the_image() -> int:
    (number,) = re.findall(r"useradd .*--uid (\d+)", (ROOT / "infra" / "Dockerfile").read_text())
    return int(number)


SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|AUTH_STRING|ACCESS_KEY|API_KEY")
NAME_OF_A_SECRET = re.compile(r"_SECRET_(NAME|KEY)$")
SECRETS = {"m2m": {"auth_token"}, "postgres": {"host", "mlflow", "prefect"}, "prefect": {"key"}}
"""KubeRay makes the first, of its cluster's name; servers.yaml says how the others are made."""


@pytest.mark.parametrize(("pod", "container"), CONTAINERS)
def test_secrets_are_named_and_not_held(pod: Pod, container: Object) -> None:
    for one in container.get("env", []):
        is_secret = SECRET_NAME.search(one["name"]) and not NAME_OF_A_SECRET.search(one["name"])
        if "valueFrom" in one:
            asked = one["valueFrom"]["secretKeyRef"]
            assert asked["key"] in SECRETS[asked["name"]]
            assert "value" not in one
        else:
            assert not is_secret, one


def test_no_file_holds_a_secret() -> None:
    assert not [one for _, one in OBJECTS if one["kind"] == "Secret"]
    for _, one in OBJECTS:
        for key in one.get("data", {}) if one["kind"] == "ConfigMap" else ():
            assert not SECRET_NAME.search(key)
    for path in FOLDER.iterdir():
        text = path.read_text()
        assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|://[^\s/@$]+:[^\s/@]+@", text), path.name
        assert set(re.findall(r"arn:aws:iam::(\d+)", text)) <= {"123456789012"}, "Amazon's own example"
    told = (FOLDER / "servers.yaml").read_text()
    assert "postgres: host; prefect, mlflow (the passwords)" in told
    assert "prefect:  key" in told
    assert CLUSTER in SECRETS


def test_what_a_pod_refers_to_is_there() -> None:
    there = {(one["kind"], one["metadata"].get("name")) for _, one in OBJECTS}
    for pod in PODS.values():
        account = pod.spec.get("serviceAccountName")
        assert account is None or ("ServiceAccount", account) in there
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in there
            if settings := volume.get("configMap"):
                assert ("ConfigMap", settings["name"]) in there
        for container in pod.containers:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes.keys()
            for source in container.get("envFrom", []):
                assert ("ConfigMap", source["configMapRef"]["name"]) in there


def test_only_who_asks_kubernetes_has_a_token_for_it() -> None:
    kept, switch = {"default": True}, "automountServiceAccountToken"
    kept |= {one["metadata"]["name"]: one.get(switch, True) for _, one in OBJECTS if one["kind"] == "ServiceAccount"}
    holders = {
        pod.name for pod in PODS.values() if pod.spec.get(switch, kept[pod.spec.get("serviceAccountName", "default")])
    }
    assert holders == {"head", "flows"}, "the autoscaler, and what starts flow runs"
    for rule in named("Role")["rules"]:
        assert not {"*", "secrets", "pods/exec"} & {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}


# Settings


def known_names(container: Object) -> set[str]:
    """Of variables that somebody reads."""
    ray, asyncpg = (Path(find_spec(name).submodule_search_locations[0]) for name in ("ray", "asyncpg"))
    readers = [
        ROOT / "m2m" / "settings.py",
        ray / "dashboard" / "consts.py",
        ray / "_private" / "authentication" / "authentication_token_setup.py",
        ray / "exceptions.py",  # names the variable of the token
        asyncpg / "connect_utils.py",
    ]
    read = {name for path in readers for name in re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*\b", path.read_text())}
    of_compose = {name for service in SERVICES.values() for name in service["environment"]}
    in_arguments = {name for text in container.get("args", []) for name in re.findall(r"\$\((\w+)\)", text)}
    of_prefects_worker = {
        "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES",
        "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_KEY",
        "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_NAME",
    }
    return read | of_compose | in_arguments | of_prefects_worker


@pytest.mark.parametrize(("pod", "container"), CONTAINERS)
def test_somebody_reads_every_variable(pod: Pod, container: Object) -> None:
    assert values(container).keys() - known_names(container) == set()
    assert len(values(container)) == len(container.get("env", [])), "one is set twice"


def test_somebody_reads_every_setting() -> None:
    script = set(re.findall(r"\$(\w+)", named("ConfigMap", "checkout")["data"]["checkout.sh"]))
    assert (SETTINGS.keys() | JOB_ENVIRONMENT.keys()) - known_names({}) - script == set()
    assert {"M2M_REPOSITORY", "M2M_REVISION"} <= script & SETTINGS.keys()


@pytest.mark.parametrize(("pod", "container"), CONTAINERS)
def test_telemetry_is_off(pod: Pod, container: Object) -> None:
    assert named("ConfigMap", "telemetry")["data"] == TELEMETRY_OFF
    assert TELEMETRY[0] in container["envFrom"]


@pytest.mark.parametrize("own", [JOB_ENVIRONMENT, FLOW_ENVIRONMENT], ids=["job", "flow"])
def test_the_pipeline_takes_its_settings(own: dict[str, str]) -> None:
    settings = Settings.from_environment(SETTINGS | own, checkout=ROOT)
    assert settings.store.startswith("s3://")
    assert urlsplit(settings.tracking_uri).hostname == "mlflow"
    assert settings.device == "cuda", "no node has come yet when it asks"
    assert all(isinstance(value, str) for value in (SETTINGS | own).values())
    head = PODS["head"].spec["containers"][0]
    host, _, port = settings.engine.removeprefix("ray://").partition(":")
    assert host == f"{CLUSTER}-head-svc", "as KubeRay names it"
    ports = {one["name"]: str(one["containerPort"]) for one in head["ports"]}
    assert port == ports["client" if "://" in settings.engine else "gcs-server"]


def test_as_many_ranks_are_asked_for_as_there_can_be_gpus() -> None:
    each = int(PODS["gpu"].spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert JOB_ENVIRONMENT["M2M_RANKS"] == FLOW_ENVIRONMENT["M2M_RANKS"]
    assert int(JOB_ENVIRONMENT["M2M_RANKS"]) == each * GROUPS["gpu"]["maxReplicas"], "more would wait for ever"


# Ray


def test_the_cluster_asks_for_its_token_and_is_of_the_pinned_version() -> None:
    assert RAY["authOptions"] == {"mode": "token"}
    assert RAY["rayVersion"] == PINS["ray"]
    assert RAY_JOB["clusterSelector"] == {"ray.io/cluster": CLUSTER}
    (token,) = (one for one in PODS["flow"].spec["containers"][0]["env"] if one["name"] == "RAY_AUTH_TOKEN")
    assert token["valueFrom"]["secretKeyRef"] == {"name": CLUSTER, "key": "auth_token"}
    assert FLOW_ENVIRONMENT["RAY_AUTH_MODE"] == "token"


def test_gpus_work_on_spot_nodes_and_what_must_not_be_lost_on_others() -> None:
    kind = "karpenter.sh/capacity-type"
    assert RAY["enableInTreeAutoscaling"] is True
    assert RAY["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for name, capacity in {"head": "on-demand", "driver": "on-demand", "flow": "on-demand", "gpu": "spot"}.items():
        pod = PODS[name]
        gpus = [one["resources"]["requests"].get("nvidia.com/gpu") for one in pod.spec["containers"]]
        assert pod.spec["nodeSelector"] == {kind: capacity}
        assert any(gpus) == (name != "head")
        assert ("tolerations" in pod.spec) == (name != "head")
        kept = pod.metadata.get("annotations", {}).get("karpenter.sh/do-not-disrupt")
        assert (kept == "true") == (capacity == "on-demand")


def test_the_driver_has_a_node_of_its_own_with_a_gpu_that_ray_gives_to_nobody() -> None:
    offered = GROUPS["driver"]["resources"]
    wanted = json.loads(RAY_JOB["entrypointResources"])
    assert (offered["CPU"], offered["GPU"]) == ("0", "0")
    assert all(int(offered[name]) == amount for name, amount in wanted.items())
    assert wanted.keys().isdisjoint({"CPU", "GPU"})
    assert not any(wanted.keys() & group.get("resources", {}) for name, group in GROUPS.items() if name != "driver")


def test_a_node_that_ends_says_so_in_time() -> None:
    from ray.scripts.scripts import drain_node, stop

    shell, option, script = PODS["gpu"].spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, option) == ("sh", "-c")
    drain, sleep, end = (shlex.split(part) for part in script.split(";"))
    assert drain[:2] == ["ray", drain_node.name]
    asked = drain_node.make_context(drain[1], drain[2:]).params
    assert asked["reason"] == "DRAIN_NODE_REASON_PREEMPTION", "of the others Ray Train tells nobody"
    assert end[:2] == ["ray", stop.name]
    last = stop.make_context(end[1], end[2:]).params["grace_period"]
    grace = PODS["gpu"].spec["terminationGracePeriodSeconds"]
    assert asked["deadline_remaining_seconds"] == int(sleep[1])
    starting = 10
    assert starting + int(sleep[1]) + last <= grace < 120, "Amazon's notice"
    for name in ("head", "driver"):
        hook = PODS[name].spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert hook == ["ray", "stop"]
        assert PODS[name].spec["terminationGracePeriodSeconds"] >= stop.make_context("stop", []).params["grace_period"]


# The checkout


def test_every_node_writes_where_the_driver_does() -> None:
    place = Path("/checkout/m2m")
    program, option, *command = shlex.split(RAY_JOB["entrypoint"])
    assert (program, option, command) == ("env", f"--chdir={place}", ["dvc", "repro"])
    flow = PODS["flow"].spec["containers"][0]
    assert flow["workingDir"] == FLOW_ENVIRONMENT["PYTHONPATH"] == str(place)
    for name in ("head", "gpu", "driver", "flow"):
        volumes = {volume["name"]: volume for volume in PODS[name].spec["volumes"]}
        for container in PODS[name].containers:
            if container["name"] == "autoscaler":
                continue
            (mount,) = (one for one in container["volumeMounts"] if one["mountPath"] == str(place.parent))
            assert not mount.get("readOnly")
            kept = "persistentVolumeClaim" in volumes[mount["name"]]
            assert kept == (name in ("driver", "flow"))
    assert PODS["driver"].spec["securityContext"]["fsGroup"] == user_of_the_image()
    assert PODS["flow"].spec["securityContext"]["fsGroup"] == user_of_the_image()
    # Two at a time would take each other's locks, or worse.
    assert named("PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert GROUPS["driver"]["maxReplicas"] == 1


@pytest.mark.parametrize("name", ["driver", "flow"])
def test_the_checkout_is_made_before_the_driver_runs(name: str) -> None:
    (first,) = PODS[name].spec["initContainers"]
    shell, script, place = first["command"]
    assert (shell, place) == ("sh", "/checkout/m2m")
    folder, file = os.path.split(script)
    (mount,) = (one for one in first["volumeMounts"] if one["mountPath"] == folder)
    (volume,) = (one for one in PODS[name].spec["volumes"] if one["name"] == mount["name"])
    assert file in named("ConfigMap", volume["configMap"]["name"])["data"]
    assert {"configMapRef": {"name": "m2m"}} in first["envFrom"], "the repository and the revision"


class Checkout:
    """The script, run as its init container runs it."""

    def __init__(self, folder: Path) -> None:
        self.origin, self.place = folder / "origin", folder / "volume" / "m2m"
        self.place.parent.mkdir()
        self.script = folder / "checkout.sh"
        self.script.write_text(named("ConfigMap", "checkout")["data"]["checkout.sh"])
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
        self.git("init", "--quiet", "--initial-branch=main", str(self.origin), at=folder)

    def git(self, *arguments: str, at: Path | None = None) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.check_output(
            ["git", *who, *arguments], cwd=at or self.origin, text=True, env=self.environment
        ).strip()

    def commit(self, lock: str) -> str:
        (self.origin / "dvc.lock").write_text(lock)
        self.git("add", "dvc.lock")
        self.git("commit", "--quiet", "--message", lock)
        return self.git("rev-parse", "HEAD")

    def run(self, revision: str) -> subprocess.CompletedProcess[str]:
        asked = self.environment | {"M2M_REPOSITORY": str(self.origin), "M2M_REVISION": revision}
        command = ["sh", str(self.script), str(self.place)]
        return subprocess.run(command, env=asked, capture_output=True, text=True, check=False)


def test_the_checkout_follows_the_revision_and_loses_nothing(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    first, lock = checkout.commit("first"), checkout.place / "dvc.lock"
    cut_short = checkout.place.with_name("m2m.new")
    cut_short.mkdir()
    (cut_short / "half").touch()
    assert checkout.run(first).returncode == 0
    assert lock.read_text() == "first"

    lock.write_text("made by a run")
    (checkout.place / "cache").write_text("not tracked")
    assert checkout.run(first).returncode == 0, "the same again, after a failure"
    assert lock.read_text() == "made by a run"

    second = checkout.commit("second")
    assert checkout.run(second).returncode == 0
    assert lock.read_text() == "second"
    assert (checkout.place / "cache").read_text() == "not tracked"
    assert checkout.git("rev-parse", "HEAD", at=checkout.place) == second
    assert checkout.git("show", "stash@{0}:dvc.lock", at=checkout.place) == "made by a run"

    refused = checkout.run("0" * 40)
    assert refused.returncode == 1
    assert f"M2M_REVISION is {'0' * 40}; expected a commit of" in refused.stderr
    assert checkout.git("rev-parse", "HEAD", at=checkout.place) == second


# Flow runs


def test_the_template_has_every_variable_that_it_refers_to_and_no_other() -> None:
    texts = [value for value in walk(TEMPLATE["job_configuration"]) if isinstance(value, str)]
    asked = {name for text in texts for name in re.findall(r"{{\s*(\w+)\s*}}", text)}
    properties = TEMPLATE["variables"]["properties"]
    assert asked == properties.keys()
    # Prefect fills in these; whatever else has no default would be left as it stands.
    assert {name for name, part in properties.items() if "default" not in part} == {"command", "labels", "name"}
    assert {"command", "env", "labels", "name", "job_manifest"} <= TEMPLATE["job_configuration"].keys()
    for part in properties.values():
        kinds = {"string": str, "integer": int, "object": dict}
        assert "default" not in part or type(part["default"]) is kinds[part["type"]]


def test_a_flow_run_is_in_the_pool_that_is_served() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    command = PODS["flows"].spec["containers"][0]["command"]
    assert {one["work_pool"]["name"] for one in deployments} == {command[command.index("--pool") + 1]}
    assert command[command.index("--type") + 1] == "kubernetes"
    assert FLOW_JOB["spec"]["backoffLimit"] == 0, "Prefect itself begins it again"
    assert PODS["flow"].spec["restartPolicy"] == PODS["submitter"].spec["restartPolicy"] == "Never"
    asked = values(PODS["flows"].spec["containers"][0])
    prefix = "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_"
    assert asked[f"{prefix}KEY"] in SECRETS[asked[f"{prefix}NAME"]]
    assert asked["PREFECT_API_URL"] == SETTINGS["PREFECT_API_URL"]


# Servers


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_a_server_is_that_of_compose_with_places_of_its_own(name: str) -> None:
    (container,) = PODS[name].spec["containers"]
    own, compose = values(container), SERVICES[name]["environment"]
    assert compose.keys() - own.keys() - TELEMETRY_OFF.keys() <= {
        *("AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY", "MLFLOW_S3_ENDPOINT_URL")
    }
    assert own.keys() - compose.keys() == {"PGSSLMODE"} | ({"POSTGRES_HOST"} if name == "mlflow" else set())
    for variable in compose.keys() & own.keys():
        if own[variable] and "${" not in compose[variable] and variable != "AWS_DEFAULT_REGION":
            assert own[variable] == compose[variable]
    elsewhere = ("--backend-store-uri", "--artifacts-destination")
    mine, theirs = (
        [one for one in words if not one.startswith(elsewhere)]
        for words in (container["command"] + container["args"], SERVICES[name]["command"])
    )
    assert mine == theirs


def test_a_server_s_health_is_asked_by_a_name_that_it_takes() -> None:
    prefect, mlflow = (PODS[name].spec["containers"][0] for name in ("prefect", "mlflow"))
    (allowed,) = (one.removeprefix("--allowed-hosts=") for one in mlflow["args"] if "allowed-hosts" in one)
    assert KEY in values(prefect)
    for container, hosts in ((prefect, values(prefect)[HOSTS]), (mlflow, allowed)):
        for probe in ("readinessProbe", "startupProbe"):
            asked = container[probe]["httpGet"]
            assert {one["name"]: one["value"] for one in asked["httpHeaders"]}["Host"] in hosts.split(",")
            assert asked["port"] == container["ports"][0]["containerPort"]


def test_nothing_is_reached_from_outside_of_the_namespace() -> None:
    for _, one in OBJECTS:
        assert one["kind"] not in ("Ingress", "Gateway", "HTTPRoute")
        if one["kind"] == "Service":
            assert one["spec"]["type"] == "ClusterIP"
            (port,) = (part["port"] for part in one["spec"]["ports"])
            container = PODS[one["metadata"]["name"]].spec["containers"][0]
            assert [each["containerPort"] for each in container["ports"]] == [port]
            assert PODS[one["metadata"]["name"]].metadata["labels"] == one["spec"]["selector"]
    for pod in PODS.values():
        assert not [port for container in pod.containers for port in container.get("ports", []) if "hostPort" in port]
    policies = [one["spec"] for _, one in OBJECTS if one["kind"] == "NetworkPolicy"]
    everybody, operator = policies
    assert everybody == {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]}
    assert operator["podSelector"]["matchLabels"] == {"ray.io/cluster": CLUSTER, "ray.io/node-type": "head"}
    ((rule,), head) = operator["ingress"], PODS["head"].spec["containers"][0]
    (who,) = rule["from"]
    assert who.keys() == {"namespaceSelector", "podSelector"}, "one who is both; as two they would be either"
    dashboard = {one["name"]: one["containerPort"] for one in head["ports"]}["dashboard"]
    assert rule["ports"] == [{"port": dashboard}]


# The bucket


def unquoted(value: Any) -> Any:
    """What python-hcl2 reads, without its quotes and marks."""
    if isinstance(value, dict):
        return {key.strip('"'): unquoted(inner) for key, inner in value.items() if key != "__is_block__"}
    if isinstance(value, list):
        return [unquoted(inner) for inner in value]
    return value[1:-1] if isinstance(value, str) and value.startswith('"') else value


TERRAFORM = unquoted(hcl2.loads((FOLDER / "main.tf").read_text()))


def block(section: str, kind: str, name: str = "store") -> Object:
    (found,) = (one[kind][name] for one in TERRAFORM[section] if name in one.get(kind, {}))
    return found


RIGHTS = {
    "delete_object": {"s3:DeleteObject"},
    "get_object": {"s3:GetObject"},
    "head_object": {"s3:GetObject", "s3:ListBucket"},  # the second, to be told of what is not there
    "list_objects_v2": {"s3:ListBucket"},
    "put_object": {"s3:PutObject"},
    "upload_fileobj": {"s3:PutObject", "s3:AbortMultipartUpload"},  # in parts, which it takes back
}
"""For each request of boto3's client."""


def test_the_role_may_do_what_the_store_asks_for_and_nothing_else() -> None:
    source = "".join(path.read_text() for path in sorted((ROOT / "m2m" / "store").glob("*.py")))
    requests = set(re.findall(r"self\._(?:client|quick)\.(\w+)\(", source))
    assert requests == RIGHTS.keys()
    objects, bucket = block("data", "aws_iam_policy_document", "use")["statement"]
    assert {*objects["actions"], *bucket["actions"]} == set().union(*(RIGHTS[name] for name in requests))
    assert objects["resources"] == ["${aws_s3_bucket.store.arn}/${each.value.prefix}/*"]
    assert bucket["actions"] == ["s3:ListBucket"]
    assert bucket["resources"] == ["${aws_s3_bucket.store.arn}"]
    (condition,) = bucket["condition"]
    assert condition == {"test": "StringLike", "variable": "s3:prefix", "values": ["${each.value.prefix}/*"]}
    policy = block("resource", "aws_iam_role_policy", "pods")["policy"]
    assert policy == "${data.aws_iam_policy_document.use[each.key].json}"


def test_the_role_is_that_of_the_service_accounts() -> None:
    accounts = {one["metadata"]["name"]: one for _, one in OBJECTS if one["kind"] == "ServiceAccount"}
    given: dict[str, set[str]] = {}
    for name, one in accounts.items():
        if role := one["metadata"].get("annotations", {}).get("eks.amazonaws.com/role-arn"):
            given.setdefault(role.rpartition("/")[2], set()).add(name)
    (local,) = TERRAFORM["locals"]
    default = {name: part.get("default") for one in TERRAFORM["variable"] for name, part in one.items()}
    assert {f"{default['namespace']}-{part}": set(one["accounts"]) for part, one in local["parts"].items()} == given
    assert block("resource", "aws_iam_role", "pods")["name"] == "${var.namespace}-${each.key}"
    assert local["parts"]["store"]["prefix"] == "${var.prefix}"
    assert {"bucket", "prefix", "oidc_provider_arn"} <= default.keys()
    # As the manifests name them.
    assert urlsplit(SETTINGS["M2M_STORE"]).path == f"/{default['prefix']}"
    (artifacts,) = (one for one in PODS["mlflow"].spec["containers"][0]["args"] if "artifacts-destination" in one)
    assert urlsplit(artifacts.partition("=")[2]).path == f"/{default['artifacts_prefix']}"
    (trust,) = block("data", "aws_iam_policy_document", "trust")["statement"]
    limits = {one["variable"]: one["values"] for one in trust["condition"]}
    assert limits["${local.issuer}:aud"] == ["sts.amazonaws.com"]
    assert "system:serviceaccount:${var.namespace}:${account}" in str(limits["${local.issuer}:sub"])


def test_the_bucket_is_closed_encrypted_and_cleaned() -> None:
    closed = block("resource", "aws_s3_bucket_public_access_block")
    assert {name for name, value in closed.items() if value is True} == {
        *("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")
    }
    (encrypted,) = block("resource", "aws_s3_bucket_server_side_encryption_configuration")["rule"]
    (default,) = encrypted["apply_server_side_encryption_by_default"]
    assert default["sse_algorithm"] == "AES256"
    unfinished, checkpoints = block("resource", "aws_s3_bucket_lifecycle_configuration")["rule"]
    assert {unfinished["status"], checkpoints["status"]} == {"Enabled"}
    assert unfinished["filter"] == [{}]
    assert 1 <= unfinished["abort_incomplete_multipart_upload"][0]["days_after_initiation"] <= 7
    assert checkpoints["filter"] == [{"prefix": "${var.prefix}/checkpoints/"}]
    assert checkpoints["expiration"] == [{"days": "${var.checkpoint_days}"}]
    assert '"checkpoints/' in (ROOT / "m2m" / "training" / "checkpoints.py").read_text()
    (refused,) = block("data", "aws_iam_policy_document", "tls")["statement"]
    assert (refused["effect"], refused["condition"][0]["variable"]) == ("Deny", "aws:SecureTransport")


# The image


def test_what_the_image_holds_for_a_cluster_is_pinned_once() -> None:
    lines = (FOLDER / "requirements.txt").read_text().splitlines()
    wanted = [line for line in lines if not line.startswith("#")]
    own = dict(line.split("==") for line in wanted if "==" in line)
    assert wanted == sorted(wanted)
    assert own.keys().isdisjoint(PINS)
    assert [line for line in wanted if "==" not in line] == ["ray[default]"]
    assert {"prefect-kubernetes"} <= own.keys()
    assert "!infra/cluster/requirements.txt" in (ROOT / "infra" / "Dockerfile.dockerignore").read_text().splitlines()


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("", "--constraint constraints.txt .[postgres]"),
        ("1", "--constraint constraints.txt .[postgres,ray] --requirement infra/cluster/requirements.txt"),
    ],
)
def test_the_image_is_made_for_a_cluster_if_that_is_said(given: str, asked: str) -> None:
    text = (ROOT / "infra" / "Dockerfile").read_text()
    (install,) = re.findall(r"^RUN pip install ([^#]*CLUSTER[^#]*) \\\n    #", text, re.MULTILINE)
    said = subprocess.check_output(["sh", "-c", f"echo {install}"], text=True, env={"CLUSTER": given})
    assert said.strip() == asked
    for before in ("ARG CLUSTER=\n", "COPY infra/cluster/requirements.txt infra/cluster/\n"):
        assert text.index(before) < text.index(install)
