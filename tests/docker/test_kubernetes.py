"""The manifests fit Kubernetes' own schemas, each other and the server they start."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.commands.serve import _FLUSH_S
from app.main import create_app
from app.metrics import Metrics
from app.settings import Settings

FOLDER = Path(__file__).parents[2] / "docker" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
VERSIONS = ["1.30", kubernetes_validate.latest_version()]  # the oldest with `sleep`, the newest


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def pod() -> Any:
    return read("deployment.yaml")["spec"]["template"]


def container() -> Any:
    (only,) = pod()["spec"]["containers"]
    return only


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", KUSTOMIZATION["resources"])
def test_manifests_are_valid(name: str, version: str) -> None:
    kubernetes_validate.validate(read(name), version, strict=True)


def test_every_manifest_is_part_of_it() -> None:
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(KUSTOMIZATION["resources"])


def _misspelt(manifest: Any) -> None:
    spec = manifest["spec"]["template"]["spec"]["containers"][0]
    spec["readynessProbe"] = spec.pop("readinessProbe")


def _of_another_type(manifest: Any) -> None:
    manifest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = "45 s"


def _without_a_selector(manifest: Any) -> None:
    del manifest["spec"]["selector"]


@pytest.mark.parametrize("spoil", [_misspelt, _of_another_type, _without_a_selector])
def test_what_is_wrong_is_refused(spoil: Any) -> None:
    manifest = copy.deepcopy(read("deployment.yaml"))
    spoil(manifest)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


def test_probes_and_scraping_name_routes_of_the_server() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    probes = [
        container()[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")
    ]
    assert {probe["path"] for probe in probes} <= paths.keys()
    assert {probe["port"] for probe in probes} == {"http"}
    annotations = pod()["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] in paths
    (port,) = container()["ports"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"])
    assert port["containerPort"] == Settings().port


def test_settings_are_accepted_and_leave_time_to_drain() -> None:
    given = {e["name"].removeprefix("GPT2MT_").lower(): e["value"] for e in container()["env"]}
    drain = Settings.load(given, environ={}).drain_s
    assert drain == Settings().drain_s
    grace = pod()["spec"]["terminationGracePeriodSeconds"]
    assert grace > container()["lifecycle"]["preStop"]["sleep"]["seconds"] + drain + _FLUSH_S


def test_pods_have_no_privilege() -> None:
    assert pod()["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod()["spec"]["automountServiceAccountToken"] is False
    context = container()["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert [mount["mountPath"] for mount in container()["volumeMounts"]] == ["/tmp"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    image = (FOLDER.parents[1] / "Dockerfile").read_text(encoding="utf-8")
    assert f"USER {pod()['spec']['securityContext']['runAsUser']}:" in image


def test_everything_selects_the_pods() -> None:
    labels = pod()["metadata"]["labels"].items()
    selectors = [
        read("deployment.yaml")["spec"]["selector"]["matchLabels"],
        read("service.yaml")["spec"]["selector"],
        read("pdb.yaml")["spec"]["selector"]["matchLabels"],
        read("networkpolicy.yaml")["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels for selector in selectors)
    service = read("service.yaml")["metadata"]["labels"].items()
    monitor = read("extras/servicemonitor.yaml")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service
    assert monitor["endpoints"][0]["port"] == read("service.yaml")["spec"]["ports"][0]["name"]


def test_pods_are_scaled_by_a_metric_that_exists() -> None:
    spec = read("hpa.yaml")["spec"]
    assert spec["scaleTargetRef"]["name"] == read("deployment.yaml")["metadata"]["name"]
    (name,) = [m["pods"]["metric"]["name"] for m in spec["metrics"] if m["type"] == "Pods"]
    assert f"\n{name} " in Metrics().render().decode()
    (rule,) = read("extras/adapter-rule.yaml")["rules"]["custom"]
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert rule["name"]["as"] == name
