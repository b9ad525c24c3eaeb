"""An image in a container without network or privilege, only /tmp writable, by any engine.

Docker and podman run it themselves; of buildah's store the OCI runtime runc runs it, as root.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Any

USER = 10001
RUNTIME = "runc"


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def works(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


class Docker:
    """Or podman."""

    def __init__(self, image: str, engine: str = "docker") -> None:
        self._image, self._engine = image, engine
        (found,) = json.loads(output(engine, "image", "inspect", image))
        self.config: dict[str, Any] = found["Config"]
        self._id = ""

    @staticmethod
    def has(image: str, engine: str = "docker") -> bool:
        return works(engine, "image", "inspect", image)

    def start(self) -> None:
        self._id = output(
            self._engine, "run", "--detach", "--read-only", "--tmpfs", "/tmp", "--network", "none",
            "--cap-drop", "ALL", "--security-opt", "no-new-privileges", self._image,
        ).strip()  # fmt: skip

    def runs(self) -> bool:
        return "true" in output(self._engine, "inspect", "--format", "{{.State.Running}}", self._id)

    def python(self, code: str) -> str:
        return output(self._engine, "exec", self._id, "python", "-c", code)

    def stop(self) -> int:
        """By SIGTERM; the exit status."""
        output(self._engine, "kill", "--signal", "TERM", self._id)
        return int(output(self._engine, "wait", self._id))

    def close(self) -> None:
        subprocess.run([self._engine, "rm", "--force", self._id], capture_output=True)


class Buildah:
    def __init__(self, image: str) -> None:
        found = json.loads(output("buildah", "inspect", "--type", "image", image))
        self.config: dict[str, Any] = found["OCIv1"]["config"]
        self._container = output("buildah", "from", "--pull-never", image).strip()
        self._root = output("buildah", "mount", self._container).strip()
        self._folder = Path(tempfile.mkdtemp())
        self._name = f"image-{uuid.uuid4().hex}"
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def has(image: str) -> bool:
        ready = os.geteuid() == 0 and shutil.which(RUNTIME) is not None
        return ready and works("buildah", "inspect", "--type", "image", image)

    def start(self) -> None:
        output(RUNTIME, "spec", "--bundle", str(self._folder))
        path = self._folder / "config.json"
        spec = json.loads(path.read_text(encoding="utf-8"))
        spec["root"] = {"path": self._root, "readonly": True}
        spec["process"] |= {
            "terminal": False,
            "user": {"uid": USER, "gid": USER},
            "args": self.config["Entrypoint"] + self.config["Cmd"],
            "env": self.config["Env"],
            "noNewPrivileges": True,
            "capabilities": {},
        }
        spec["mounts"] = [m for m in spec["mounts"] if m["type"] not in ("cgroup", "cgroup2")]
        options = ["nosuid", "nodev", "noexec", "mode=1777", "size=256m"]
        temporary = {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": options}
        spec["mounts"].append(temporary)
        path.write_text(json.dumps(spec), encoding="utf-8")
        self._process = subprocess.Popen(
            [RUNTIME, "run", "--bundle", str(self._folder), self._name]
        )

    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def python(self, code: str) -> str:
        return output(RUNTIME, "exec", self._name, "/venv/bin/python", "-c", code)

    def stop(self) -> int:
        assert self._process is not None
        output(RUNTIME, "kill", self._name, "TERM")
        return self._process.wait(60)

    def close(self) -> None:
        subprocess.run([RUNTIME, "delete", "--force", self._name], capture_output=True)
        if self._process is not None:
            self._process.wait(10)
        subprocess.run(["buildah", "umount", self._container], capture_output=True)
        subprocess.run(["buildah", "rm", self._container], capture_output=True)
        shutil.rmtree(self._folder)


def container_of(image: str) -> Docker | Buildah | None:
    """Of the first engine that has the image."""
    for engine in ("docker", "podman"):
        if Docker.has(image, engine):
            return Docker(image, engine)
    return Buildah(image) if Buildah.has(image) else None
