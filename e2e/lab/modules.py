# SPDX-License-Identifier: Apache-2.0
"""The Go modules the lab is built from: what each part is, which packages of it are built, and how.

Each part has a wrapper module in `modules/<part>`: its go.mod names the part at the version of versions.toml, its go.sum (in
the tree) says what must be downloaded, its tools.go keeps the packages named. Nothing is replaced, nothing comes from git.
Facts about the builds: `k8s.io/kubernetes` asks for its staging modules as v0.0.0, so each is named here at v0.X.Y; a program
without the version flags calls itself v0.0.0-master and fails the skew checks; runc needs cgo and the tag `seccomp`, because
kubelet asks for the default profile on each sandbox; the tag `no_grpc` is for containerd's shim alone.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
MODULES = HERE / "modules"

CONTAINERD_TAGS = "urfave_cli_no_docs no_btrfs no_devmapper no_zfs static_build"


@dataclass(frozen=True)
class Program:
    """One binary: the package, its file name below bin/, build tags, linker flags, and whether C takes part."""

    package: str
    file: str
    tags: str = ""
    ldflags: str = "-s -w"
    cgo: bool = False


@dataclass(frozen=True)
class Part:
    """One wrapper module. `folder`: below bin/; `go`: the go line of its go.mod."""

    name: str
    folder: str
    go: str
    requires: Mapping[str, str]
    programs: tuple[Program, ...]
    godebug: str = ""

    @property
    def directory(self) -> Path:
        return MODULES / self.name


@dataclass(frozen=True)
class Versions:
    """What versions.toml says."""

    go: str
    default: str
    kubernetes: Mapping[str, str]
    staging: Sequence[str]
    parts: Mapping[str, str]


def versions() -> Versions:
    """Read versions.toml."""
    return Versions(**tomllib.loads((HERE / "versions.toml").read_text()))


def kubernetes(minor: str, version: str, staging: Sequence[str]) -> Part:
    """The five programs of Kubernetes, one `go build` for all: they share most packages."""
    flags = ["-s", "-w"]
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        stamps = {
            "gitVersion": f"v{version}",
            "gitMajor": "1",
            "gitMinor": minor.removeprefix("1."),
            "gitCommit": "0" * 40,
            "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z",
        }
        flags += [f"-X {package}.{key}={value}" for key, value in stamps.items()]
    names = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet")
    staged = {f"k8s.io/{module}": f"v0.{version.removeprefix('1.')}" for module in staging}
    programs = tuple(Program(f"k8s.io/kubernetes/cmd/{name}", name, "grpcnotrace", " ".join(flags)) for name in names)
    return Part(f"kubernetes-{minor}", minor, "1.26.0", {"k8s.io/kubernetes": f"v{version}", **staged}, programs, godebug="default=go1.26")


def common(parts: Mapping[str, str]) -> tuple[Part, ...]:
    """What every version of Kubernetes runs with."""
    etcd, containerd, runc, cni, helm = (parts[name] for name in ("etcd", "containerd", "runc", "cni", "helm"))
    stamp = f"-s -w -X github.com/containerd/containerd/v2/version.Version=v{containerd}"
    command = "github.com/containerd/containerd/v2/cmd"
    plugin = "github.com/containernetworking/plugins/plugins"
    return (
        Part("etcd", "common", "1.24.0", {"go.etcd.io/etcd/server/v3": f"v{etcd}"}, (Program("go.etcd.io/etcd/server/v3", "etcd"),)),
        Part(
            "containerd",
            "common",
            "1.26.0",
            {"github.com/containerd/containerd/v2": f"v{containerd}"},
            (
                Program(f"{command}/containerd", "containerd", CONTAINERD_TAGS, stamp),
                Program(f"{command}/ctr", "ctr", CONTAINERD_TAGS, stamp),
                Program(f"{command}/containerd-shim-runc-v2", "containerd-shim-runc-v2", f"{CONTAINERD_TAGS} no_grpc", stamp),
            ),
        ),
        Part(
            "runc",
            "common",
            "1.25.0",
            {"github.com/opencontainers/runc": f"v{runc}"},
            (Program("github.com/opencontainers/runc", "runc", "netgo osusergo seccomp", cgo=True),),
        ),
        Part(
            "cni",
            "common",
            "1.25.0",
            {"github.com/containernetworking/plugins": f"v{cni}"},
            tuple(Program(f"{plugin}/{path}", f"cni/{path.rpartition('/')[2]}") for path in ("ipam/host-local", "main/loopback", "main/ptp")),
        ),
        Part("helm", "common", "1.25.0", {"helm.sh/helm/v4": f"v{helm}"}, (Program("helm.sh/helm/v4/cmd/helm", "helm"),)),
    )


def all_parts() -> tuple[Part, ...]:
    """Every wrapper module there is."""
    pinned = versions()
    return (*(kubernetes(minor, version, pinned.staging) for minor, version in pinned.kubernetes.items()), *common(pinned.parts))


def stale(part: Part) -> list[str]:
    """What in the part's go.mod differs from versions.toml; empty when it agrees."""
    text = (part.directory / "go.mod").read_text() if (part.directory / "go.mod").exists() else ""
    lines = {line.strip().removeprefix("require ") for line in text.splitlines()}
    return [f"{module} {version}" for module, version in part.requires.items() if f"{module} {version}" not in lines]


def write(part: Part) -> None:
    """Begin the part's wrapper module anew; the next build with `-mod=mod` completes go.mod and go.sum."""
    part.directory.mkdir(parents=True, exist_ok=True)
    requires = "".join(f"\t{module} {version}\n" for module, version in part.requires.items())
    godebug = f"godebug {part.godebug}\n\n" if part.godebug else ""
    (part.directory / "go.mod").write_text(f"module lab/{part.name}\n\ngo {part.go}\n\n{godebug}require (\n{requires})\n")
    # A program cannot be imported, but naming it is enough for `go mod` to keep what it needs.
    imports = "".join(f'\t_ "{program.package}"\n' for program in part.programs)
    (part.directory / "tools.go").write_text(f"//go:build tools\n\npackage tools\n\nimport (\n{imports})\n")
    (part.directory / "go.sum").unlink(missing_ok=True)
