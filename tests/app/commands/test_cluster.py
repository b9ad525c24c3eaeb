"""How the CPUs of a cluster are shared, and what is refused before one is started."""

from __future__ import annotations

import pytest

from app.commands.cluster import threads_of
from app.errors import SettingsError
from app.settings import Settings


@pytest.mark.parametrize(
    ("replicas", "threads", "cpus", "expected"), [(2, None, 9, 4), (4, 2, 8, 2), (3, None, 3, 1)]
)
def test_replicas_share_the_cpus(
    replicas: int, threads: int | None, cpus: int, expected: int
) -> None:
    settings = Settings(engine="ray", replicas=replicas, threads=threads)
    assert threads_of(settings, cpus) == expected


@pytest.mark.parametrize(("replicas", "threads"), [(3, None), (2, 2)])
def test_more_than_there_are_is_an_error(replicas: int, threads: int | None) -> None:
    settings = Settings(engine="ray", replicas=replicas, threads=threads)
    with pytest.raises(SettingsError, match="the cluster has 2 CPUs"):
        threads_of(settings, 2)


def test_replicas_need_ray() -> None:
    with pytest.raises(SettingsError, match="replicas is 2: more than 1 need engine ray"):
        Settings.load({"replicas": 2}, environ={})
