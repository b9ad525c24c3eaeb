"""Compose file, dashboard and alerts hold together: files, ports, pins, sources, metrics."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.metrics import Metrics

DOCKER = Path(__file__).parents[2] / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yml").read_text(encoding="utf-8"))
DASHBOARD = json.loads((DOCKER / "grafana/dashboards/gpt2-mt.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((DOCKER / "alerts.yml").read_text(encoding="utf-8"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def panel_queries() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel["targets"]]


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:gpt2mt|process)_\w+", expression))


def exposed() -> Iterator[str]:
    """The names of all samples that /metrics may have."""
    for family in Metrics().registry.collect():
        if family.type == "counter":
            yield f"{family.name}_total"
        elif family.type == "histogram":
            yield from (f"{family.name}_{part}" for part in ("bucket", "sum", "count"))
        else:
            yield family.name


def test_every_metric_of_panels_and_alerts_exists() -> None:
    used = set().union(*map(names_in, [*panel_queries(), *(rule["expr"] for rule in RULES)]))
    assert len(used) > 25
    assert used <= set(exposed())


def test_rules_use_the_ratios_that_others_record() -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    used = set(re.findall(r"gpt2mt:[\w:]+", " ".join(r["expr"] for r in RULES if "alert" in r)))
    assert used == recorded


def test_alerts_say_what_to_do() -> None:
    for alert in (rule for rule in RULES if "alert" in rule):
        assert alert["labels"]["severity"] in ("page", "ticket"), alert["alert"]
        assert alert["annotations"]["summary"] and len(alert["annotations"]["runbook"]) > 30


def test_each_alert_is_tested_to_fire_and_not_to() -> None:
    cases = yaml.safe_load(Path(__file__).with_name("alerts_test.yml").read_text(encoding="utf-8"))
    outcomes: dict[str, set[bool]] = {}
    for case in (one for test in cases["tests"] for one in test["promql_expr_test"]):
        if name := re.search(r'alertname="(\w+)"', case["expr"]):
            outcomes.setdefault(name[1], set()).add(bool(case["exp_samples"]))
    assert outcomes == {rule["alert"]: {True, False} for rule in RULES if "alert" in rule}


def test_panels_have_an_id_a_place_and_a_provisioned_source() -> None:
    path = DOCKER / "grafana/provisioning/datasources/prometheus.yml"
    sources = yaml.safe_load(path.read_text(encoding="utf-8"))["datasources"]
    known = [{"type": source["type"], "uid": source["uid"]} for source in sources]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        mine = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not mine & cells and max(x for x, _ in mine) < 24, panel["title"]
        cells |= mine
    for holder in [*PANELS, *DASHBOARD["templating"]["list"]]:
        assert holder["datasource"] in known, holder
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert names == {"model", "instance"}
    for query in panel_queries():
        assert set(re.findall(r"\$(\w+)", query)) - {"__rate_interval"} == {"instance"}, query


def test_grafana_finds_dashboard_and_source_where_compose_mounts_them() -> None:
    grafana = COMPOSE["services"]["grafana"]
    mounts = dict(volume.split(":")[:2][::-1] for volume in grafana["volumes"])
    path = DOCKER / "grafana/provisioning/dashboards/gpt2-mt.yml"
    provider = yaml.safe_load(path.read_text(encoding="utf-8"))["providers"][0]
    folder = mounts[provider["options"]["path"]]
    assert (DOCKER / folder / "gpt2-mt.json").is_file()
    for kind in ("datasources", "dashboards"):
        assert list((DOCKER / mounts[f"/etc/grafana/provisioning/{kind}"]).glob("*.yml"))
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/gpt2-mt.json"


def test_readme_starts_this_file() -> None:
    text = (DOCKER.parent / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^docker compose -f (\S+) up", text, re.M)
    assert found and all(DOCKER.parent / name == DOCKER / "compose.yml" for name in found)


@pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
def test_service_is_pinned_bounded_and_checked(name: str) -> None:
    service: dict[str, Any] = COMPOSE["services"][name]
    tag = service["image"].partition(":")[2]
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), "an image without a version"
    assert service["healthcheck"]["test"][0] == "CMD"
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]
    assert set(service["networks"]) <= set(COMPOSE["networks"])
    for volume in service.get("volumes", []):
        source, target, *mode = volume.split(":")
        if source.startswith("."):
            assert (DOCKER / source).exists() and mode == ["ro"], volume
        else:
            assert source in COMPOSE["volumes"] and target.startswith("/")
    if name != "server":
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_server_is_read_only_and_is_what_prometheus_scrapes() -> None:
    server = COMPOSE["services"]["server"]
    project = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert server["image"] == f"gpt2-mt:{project['project']['version']}"
    assert server["read_only"] is True
    assert (DOCKER / server["build"]["context"] / "Dockerfile").is_file()
    config = yaml.safe_load((DOCKER / "prometheus.yml").read_text(encoding="utf-8"))
    assert config["rule_files"] == ["alerts.yml"]
    assert config["scrape_configs"][0]["static_configs"][0]["targets"] == ["server:8000"]
    assert "monitoring" in server["networks"]
    assert "monitoring" in COMPOSE["services"]["prometheus"]["networks"]
