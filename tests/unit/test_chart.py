# SPDX-License-Identifier: Apache-2.0
"""The chart as Helm renders it: what is refused and in which words, and what the rendered programs may do. No cluster."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.render import CHART, helm
from deploy.render import rendered as helm_template
from hami_framework.cli.scheduler_config import command as scheduler_config
from hami_framework.config import load_settings
from hami_framework.deviceplugin.__main__ import parser as agent_parser
from hami_framework.scheduler.__main__ import parser as scheduler_parser
from hami_framework.webhook.__main__ import parser as webhook_parser

HELM = helm()
CI = CHART / "ci"
pytestmark = pytest.mark.skipif(HELM is None, reason="there is no helm: put it on the PATH, or run `make lab`")

Json = dict[str, Any]


def render(*, settings: tuple[str, ...] = (), files: tuple[Path, ...] = (), kubernetes: str = "1.37.2") -> tuple[Json, ...]:
    assert HELM is not None
    return tuple(helm_template(HELM, settings, files, kubernetes))


CASES = sorted(path.stem for path in CI.glob("*.yaml"))
VENDORS = ("nvidia", "ascend", "cambricon", "hygon", "acme")


@cache
def rendered(case: str) -> tuple[Json, ...]:
    return render(files=(CI / f"{case}.yaml",))


def only(objects: tuple[Json, ...], kind: str, name: str) -> Json:
    (found,) = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pods(objects: tuple[Json, ...]) -> Iterator[tuple[str, Json]]:
    for each in objects:
        if each["kind"] in ("Deployment", "DaemonSet", "StatefulSet", "Job"):
            yield each["metadata"]["name"], each["spec"]["template"]["spec"]


def containers(spec: Json) -> list[Json]:
    return [*spec.get("initContainers", []), *spec["containers"]]


# -- what is refused ------------------------------------------------------------------------------------------------

CONTRADICTIONS = [
    pytest.param("vendors.nvidia.enabled=false", "no vendor is enabled: set vendors.<name>.enabled=true", id="no vendor"),
    pytest.param(
        "plugins.settings.nvidia.a=1", "plugins.settings.nvidia: the settings of this vendor belong into vendors.nvidia.settings", id="settings twice"
    ),
    pytest.param("plugins.settings.nvdia.a=1", "plugins.settings.nvdia: unknown vendor; name it in plugins.allow", id="settings of an unknown vendor"),
    pytest.param("plugins.allow={nvidia}", "vendor nvidia comes with the image; switch it with vendors.nvidia.enabled", id="allowed twice"),
    pytest.param("vendors.hygon.settings.a=1", "vendors.hygon has settings but is not enabled", id="settings of a vendor that is off"),
    pytest.param(
        "vendors.ascend.enabled=true,vendors.ascend.user=7", "vendors.ascend.user: a worker that drops to a user of its own", id="privileged and not root"
    ),
    pytest.param(
        "plugins.wheelsVolume.emptyDir.medium=Memory", "plugins.wheelsVolume is set but plugins.allow names no vendor of it", id="wheels nobody loads"
    ),
    pytest.param("scheduler.remote.enabled=true", "scheduler.remote.enabled=true contradicts scheduler.mode=own", id="own and remote"),
    pytest.param("scheduler.mode=existing", "scheduler.mode=existing needs scheduler.remote.enabled=true", id="existing without TLS"),
    pytest.param("scheduler.replicas=0", "scheduler.mode=own needs scheduler.replicas of at least 1", id="own scheduler without replicas"),
    pytest.param("scheduler.name=default-scheduler", "two schedulers of one name would place the same pods", id="two schedulers of one name"),
    pytest.param(
        "scheduler.mode=existing,scheduler.remote.enabled=true,webhook.enabled=false",
        "scheduler.remote.enabled=true without certificates",
        id="remote without certificates",
    ),
    pytest.param("webhook.certificates.mode=provided", "webhook.certificates.mode=provided needs webhook.certificates.caBundle", id="provided without a CA"),
    pytest.param("webhook.certificates.caBundle=x", "webhook.certificates.caBundle contradicts webhook.certificates.mode=self", id="self and provided at once"),
    pytest.param(
        "webhook.certificates.mode=cert-manager,webhook.certificates.caBundle=x",
        "contradicts webhook.certificates.mode=cert-manager",
        id="cert-manager and provided at once",
    ),
    pytest.param(
        "webhook.certificates.issuer.name=x", "webhook.certificates.issuer contradicts webhook.certificates.mode=self", id="an issuer without cert-manager"
    ),
    pytest.param("webhook.replicas=0", "webhook.enabled=true needs webhook.replicas of at least 1", id="webhook without replicas"),
    pytest.param("metrics.serviceMonitor.enabled=true", "needs agent.metrics.enabled=true: there would be nothing to scrape", id="monitor without metrics"),
    pytest.param("agent.enabled=false,webhook.enabled=false,scheduler.mode=none", "nothing is left to install", id="nothing"),
    pytest.param("nodes[0].mode=share,nodes[1].match=a*", "nodes[0] is about every node, so the rules after it never count", id="a rule that hides others"),
]


@pytest.mark.parametrize(("values", "said"), CONTRADICTIONS)
def test_values_that_contradict_are_refused_in_one_sentence(values: str, said: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        render(settings=tuple(values.split(",")))
    assert said in caught.value.stderr


WRONG = [
    pytest.param("vendor.nvidia.enabled=true", "vendor", id="unknown key"),
    pytest.param("vendors.nvdia.enabled=true", "nvdia", id="unknown vendor"),
    pytest.param("scheduler.mode=both", "/scheduler/mode", id="unknown mode"),
    pytest.param("agent.onBypass=kill", "/agent/onBypass", id="unknown reaction"),
    pytest.param("nodes[0].memoryOvercommit=11", "/nodes/0/memoryOvercommit", id="factor too large"),
    pytest.param("nodes[0].sharesPerDevice=0", "/nodes/0/sharesPerDevice", id="no shares"),
    pytest.param("nodes[0].label=x", "label", id="unknown key of a rule"),
    pytest.param("image.repository=a:b@c", "/image/repository", id="a tag in the repository"),
    pytest.param("scheduler.port=70000", "/scheduler/port", id="port"),
    pytest.param("webhook.failurePolicy=Maybe", "/webhook/failurePolicy", id="failure policy"),
    pytest.param("resources.rename.gpu=example.com/gpu", "gpu", id="a name without a domain"),
    pytest.param("agent.stateDir=state", "/agent/stateDir", id="relative path"),
]


@pytest.mark.parametrize(("values", "said"), WRONG)
def test_the_schema_refuses_what_is_wrong_by_itself(values: str, said: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        render(settings=tuple(values.split(",")))
    assert "values don't meet the specifications of the schema" in caught.value.stderr
    assert said in caught.value.stderr


def test_a_kubernetes_without_cdi_names_is_refused() -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        render(kubernetes="1.28.3")
    assert "requires kubeVersion: >=1.29.0-0 which is incompatible with Kubernetes v1.28.3" in caught.value.stderr


def test_an_older_kubernetes_gets_no_policies_and_is_told_so() -> None:
    kinds = {each["kind"] for each in render(kubernetes="1.29.1")}
    assert not kinds & {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}


def test_schema_and_values_have_the_same_keys() -> None:
    schema, values = json.loads((CHART / "values.schema.json").read_text()), yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(place: str, own: Any, rule: Json) -> Iterator[str]:
        rule = schema["definitions"][rule["$ref"].rpartition("/")[2]] if "$ref" in rule else rule
        if rule.get("type") != "object" or "properties" not in rule:
            return
        for key in own.keys() ^ rule["properties"].keys() - {"global"}:
            yield f"{place}.{key}"
        for key in own.keys() & rule["properties"].keys():
            yield from compare(f"{place}.{key}", own[key], rule["properties"][key])

    assert list(compare("", values, schema)) == []


# -- what is rendered -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_settings_are_those_that_the_programs_read(case: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(only(rendered(case), "ConfigMap", "hami-settings")["data"]["settings.yaml"])
    settings = load_settings(file)
    assert settings.plugins.allow
    settings.check_vendors(VENDORS)


def test_rules_reach_the_settings_file_word_for_word(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(only(rendered("all-vendors"), "ConfigMap", "hami-settings")["data"]["settings.yaml"])
    settings = load_settings(file)
    rule = settings.node_rule("x", {"gpu-pool": "shared", "site": "west"})
    assert (rule.memory_overcommit, rule.shares_per_device, rule.mode) == (1.5, 20, "share")
    assert settings.node_rule("big-1").mode == "whole"
    assert settings.node_rule("x").core_overcommit == 2
    assert settings.vendors == {"hygon": {"any": "thing"}}
    assert settings.resources.rename == {"nvidia.com/gpu": "example.com/gpu"}


def parse_configuration(words: list[str]) -> None:
    with scheduler_config.make_context("scheduler-config", [word for word in words if not word.startswith("--settings=")]):
        assert words[0] == "--settings=/etc/hami/settings.yaml"


PARSERS: dict[str, Callable[[list[str]], object]] = {
    "agent": lambda words: agent_parser().parse_args(words),
    "scheduler": lambda words: scheduler_parser().parse_args(words),
    "webhook": lambda words: webhook_parser().parse_args(words),
    "scheduler-config": parse_configuration,
}


@pytest.mark.parametrize("case", CASES)
def test_every_flag_is_one_that_the_program_has(case: str) -> None:
    for _, spec in pods(rendered(case)):
        for container in containers(spec):
            if container["command"][0] == "hami":
                PARSERS[container["command"][1]]([word.replace("$(POD_IP)", "10.0.0.1").replace("$(POD_NAME)", "pod") for word in container["args"]])


def test_the_notes_name_flags_that_exist() -> None:
    flags = set(re.findall(r"--[a-z-]+", render_notes(CI / "existing.yaml").split("hami scheduler-config")[1].split("< scheduler.yaml")[0]))
    assert flags <= {option for parameter in scheduler_config.params for option in parameter.opts}


@pytest.mark.parametrize("case", CASES)
def test_everything_but_the_agent_is_restricted(case: str) -> None:
    for name, spec in pods(rendered(case)):
        for container in containers(spec):
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] is True, (name, container["name"])
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert "resources" in container
            if name != "hami-agent":
                assert own["runAsNonRoot"] is True
                assert own["allowPrivilegeEscalation"] is False
                assert own["capabilities"] == {"drop": ["ALL"]}
                assert spec["securityContext"]["runAsUser"] == 65532
        if name != "hami-agent":
            assert not any("hostPath" in volume for volume in spec["volumes"])
            assert not spec.get("hostPID")
            assert not spec.get("hostNetwork")


HOST_PATHS = {"/var/lib/kubelet/device-plugins": False, "/var/lib/kubelet/pod-resources": True, "/var/run/cdi": False, "/var/lib/hami": False}
CAPABILITIES = ["SYS_PTRACE", "SETUID", "SETGID", "KILL", "DAC_OVERRIDE"]


def test_the_agent_has_these_host_paths_and_capabilities_and_no_others() -> None:
    spec = only(rendered("default"), "DaemonSet", "hami-agent")["spec"]["template"]["spec"]
    (agent,) = spec["containers"]
    mounts = {mount["name"]: mount for mount in agent["volumeMounts"]}
    found = {volume["hostPath"]["path"]: mounts[volume["name"]].get("readOnly", False) for volume in spec["volumes"] if "hostPath" in volume}
    assert found == HOST_PATHS
    assert agent["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": CAPABILITIES}
    assert (agent["securityContext"]["privileged"], agent["securityContext"]["allowPrivilegeEscalation"]) == (False, False)
    assert spec["hostPID"] is True
    environment = {each["name"]: each.get("value") for each in agent["env"]}
    assert (environment["PYTHONOPTIMIZE"], environment["MALLOC_ARENA_MAX"]) == ("2", "1")


def test_a_vendor_that_needs_device_files_makes_the_agent_privileged_and_no_other_does() -> None:
    for vendor, expected in (("ascend", True), ("cambricon", True), ("hygon", True), ("nvidia", False)):
        (agent,) = only(render(settings=(f"vendors.{vendor}.enabled=true",)), "DaemonSet", "hami-agent")["spec"]["template"]["spec"]["containers"]
        assert agent["securityContext"]["privileged"] is expected


@pytest.mark.parametrize("case", ["plugins-volume", "plugins-image"])
def test_extra_packages_reach_every_program_that_loads_vendors(case: str) -> None:
    for name, spec in pods(rendered(case)):
        ours = [each for each in containers(spec) if each["command"][0] == "hami"]
        assert ours, name
        if case == "plugins-volume":
            assert spec["initContainers"][0]["command"][1:] == ["-m", "hami_framework.config.wheels", "/wheels", "/opt/hami/plugins"]
            assert all({"name": "PYTHONPATH", "value": "/opt/hami/plugins"} in each["env"] for each in ours)
        else:
            assert all("hami-acme@sha256:" in each["image"] for each in ours)


def test_replicas_survive_a_node_and_a_drain() -> None:
    objects = rendered("ha")
    for name in ("hami-scheduler", "hami-webhook"):
        spec = only(objects, "Deployment", name)["spec"]
        assert spec["replicas"] == 3
        assert "requiredDuringSchedulingIgnoredDuringExecution" in spec["template"]["spec"]["affinity"]["podAntiAffinity"]
        assert spec["template"]["spec"]["priorityClassName"] == "system-cluster-critical"
        budget = only(objects, "PodDisruptionBudget", name)
        assert budget["spec"]["selector"]["matchLabels"] == spec["selector"]["matchLabels"]


def test_a_change_of_settings_rolls_the_programs() -> None:
    def sums(settings: tuple[str, ...]) -> set[str]:
        return {
            each["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]
            for each in render(settings=settings)
            if each["kind"] in ("Deployment", "DaemonSet")
        }

    assert len(sums(())) == len(sums(("nodes[0].mode=share",))) == 1
    assert sums(()) != sums(("nodes[0].mode=share",))


def test_an_existing_scheduler_is_told_what_to_write() -> None:
    notes = render_notes(CI / "existing.yaml")
    assert "hami scheduler-config" in notes
    assert "--server-name hami-scheduler.hami-system.svc" in notes


def render_notes(file: Path) -> str:
    """Helm shows notes only when it installs; a dry run does without a cluster."""
    command = [str(HELM), "install", "hami", str(CHART), "-n", "hami-system", "--dry-run=client", "-f", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return re.split(r"^NOTES:$", done.stdout, flags=re.MULTILINE)[1]
