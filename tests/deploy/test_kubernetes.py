"""The manifests: valid by Kubernetes' schemas, with minimal rights, and consistent with the service."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bookstore_grpc.dal.database import Database
from tests.conftest import require
from tests.deploy.files import (
    DEPLOY,
    KUBERNETES,
    MANIFESTS,
    kubernetes_variables,
    pod,
    resource,
    resources,
    settings_from,
)

KUSTOMIZATION = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())

# PostgreSQL's defaults: max_connections less superuser_reserved_connections.
_POSTGRESQL_CONNECTIONS = 100 - 3


def validate(*paths: Path) -> None:
    require(
        importlib.util.find_spec("kubernetes_validate"), "kubernetes-validate is missing (`make check` installs it)"
    )
    done = subprocess.run(
        [sys.executable, "-m", "kubernetes_validate", "--strict", *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def variables(container: dict[str, Any]) -> dict[str, Any]:
    return {variable["name"]: variable["valueFrom"]["secretKeyRef"] for variable in container["env"]}


@pytest.mark.check
def test_manifests_are_valid_by_the_schemas_of_kubernetes() -> None:
    validate(*MANIFESTS)


@pytest.mark.check
def test_kustomize_builds_the_manifests(tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        [kubectl, "kustomize", str(KUBERNETES)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    rendered = list(yaml.safe_load_all(done.stdout))
    (settings,) = (found for found in rendered if found["kind"] == "ConfigMap")
    assert settings["data"].items() <= kubernetes_variables().items()
    (deployment,) = (found for found in rendered if found["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": settings["metadata"]["name"]}}]
    assert len(rendered) == len(resources()) + 1
    assert {found["metadata"]["namespace"] for found in rendered} == {"bookstore"}
    path = tmp_path / "rendered.yaml"
    path.write_text(done.stdout)
    validate(path)


def test_the_kustomization_lists_every_file_and_the_version_of_the_package() -> None:
    assert KUSTOMIZATION["resources"] == [path.name for path in MANIFESTS]
    (image,) = KUSTOMIZATION["images"]
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    assert image["newTag"] == project["version"]
    for kind in ("Deployment", "Job"):
        assert [container["image"] for container in pod(kind)["containers"]] == [image["name"]]


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
def test_pods_are_restricted(kind: str) -> None:
    spec = pod(kind)
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["runAsGroup"] == 10_001
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]


def test_the_manifests_contain_no_secret() -> None:
    assert "Secret" not in {found["kind"] for found in resources()}
    (server,), (migrate,) = pod("Deployment")["containers"], pod("Job")["containers"]
    assert (
        variables(server)
        == variables(migrate)
        == {"BOOKSTORE_DATABASE_URL": {"name": "bookstore-database", "key": "url"}}
    )
    # Those who follow the README make the Secrets that are asked for.
    readme = (DEPLOY / "README.md").read_text()
    assert "create secret generic bookstore-database --from-file=url=" in readme
    (volume,) = pod("Deployment")["volumes"]
    assert f"create secret tls {volume['secret']['secretName']} --cert=" in readme


def test_certificate_and_key_are_in_the_mounted_secret() -> None:
    settings = settings_from(kubernetes_variables())
    (container,) = pod("Deployment")["containers"]
    (mount,) = container["volumeMounts"]
    # The keys of a Secret of the type kubernetes.io/tls.
    assert (settings.tls_cert, settings.tls_key) == (f"{mount['mountPath']}/tls.crt", f"{mount['mountPath']}/tls.key")
    (volume,) = pod("Deployment")["volumes"]
    assert mount["name"] == volume["name"]
    # Its group may read it: what is mounted belongs to root.
    assert volume["secret"]["defaultMode"] == 0o440
    assert pod("Deployment")["securityContext"]["fsGroup"] == 10_001


def test_a_rollout_removes_no_pod_before_another_is_ready() -> None:
    strategy = resource("Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy["maxUnavailable"] == 0
    assert strategy["maxSurge"] >= 1
    assert "replicas" not in resource("Deployment")["spec"]  # it would undo what the autoscaler has done
    scaler, budget = resource("HorizontalPodAutoscaler")["spec"], resource("PodDisruptionBudget")["spec"]
    assert scaler["minReplicas"] > budget["maxUnavailable"]
    assert scaler["scaleTargetRef"]["name"] == resource("Deployment")["metadata"]["name"]


def test_the_connections_of_all_pods_are_within_the_limit_of_postgresql() -> None:
    settings = settings_from(kubernetes_variables())
    assert settings.worker_count == 1
    database = Database(settings.database_url, pool_size=settings.pool_size, timeout_seconds=1)
    of_a_pod = settings.pool_size + database.writing_connections + 1
    pods = (
        resource("HorizontalPodAutoscaler")["spec"]["maxReplicas"]
        + resource("Deployment")["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    )
    assert pods * of_a_pod <= _POSTGRESQL_CONNECTIONS


def selectors() -> Iterator[dict[str, str]]:
    yield resource("Deployment")["spec"]["selector"]["matchLabels"]
    for name in ("bookstore", "bookstore-headless"):
        yield resource("Service", name)["spec"]["selector"]
    yield resource("PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    yield resource("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    for constraint in pod("Deployment")["topologySpreadConstraints"]:
        yield constraint["labelSelector"]["matchLabels"]


def test_selectors_of_the_servers_match_only_them() -> None:
    server = resource("Deployment")["spec"]["template"]["metadata"]["labels"]
    migrate = resource("Job")["spec"]["template"]["metadata"]["labels"]
    for selector in selectors():
        assert selector.items() <= server.items()
        assert not selector.items() <= migrate.items()


def test_probes_use_http_because_the_kubelets_grpc_has_no_tls() -> None:
    (container,) = pod("Deployment")["containers"]
    paths = {
        name: (container[name]["httpGet"]["path"], container[name]["httpGet"]["port"])
        for name in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert paths == {
        "startupProbe": ("/livez", "metrics"),
        # A database that is away must not restart the pods.
        "livenessProbe": ("/livez", "metrics"),
        "readinessProbe": ("/readyz", "metrics"),
    }


def test_the_selector_in_the_readme_matches_the_job() -> None:
    readme = (DEPLOY / "README.md").read_text()
    (key, value) = re.findall(r"--selector (\S+)=(\S+)", readme)[0]
    assert [found["kind"] for found in resources() if found["metadata"]["labels"].get(key) == value] == ["Job"]
    assert f"job/{resource('Job')['metadata']['name']}" in readme
