# SPDX-License-Identifier: Apache-2.0
"""kube-scheduler's configuration: what is written, what is merged, what is refused, what a check finds and on which line."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from hami_framework.codec.resources import ResourceCatalog
from hami_framework.errors import ConfigError
from hami_framework.model import ResourceNames
from hami_framework.scheduler import configuration as made
from hami_framework.scheduler.configuration_check import check

URL = "http://127.0.0.1:9480"
CATALOG = ResourceCatalog(
    [("acme", ResourceNames(count="acme.com/xpu", memory="acme.com/xpumem", cores="acme.com/xpucores", profiles={"acme.com/half": "half"}))], vendors=["acme"]
)


def entry(**changes: Any) -> dict[str, Any]:
    return {**made.extender(CATALOG, URL, 151), **changes}


def own() -> dict[str, Any]:
    return made.whole("mine", entry(), lease_namespace="hami-system")


def test_amounts_are_ignored_by_the_scheduler_and_counts_are_not() -> None:
    rows = {row["name"]: row["ignoredByScheduler"] for row in entry()["managedResources"]}
    assert rows["acme.com/xpu"] is rows["acme.com/half"] is False
    assert rows["acme.com/xpumem"] is rows["acme.com/xpucores"] is rows["hami.io/memory-mib"] is True


@pytest.mark.parametrize(
    ("profile", "total"),
    [
        pytest.param({}, 15, id="defaults"),
        pytest.param({"plugins": {"multiPoint": {"disabled": [{"name": "*"}]}}}, 0, id="nothing scores"),
        pytest.param({"plugins": {"score": {"disabled": [{"name": "TaintToleration"}]}}}, 12, id="one off"),
        pytest.param({"plugins": {"score": {"enabled": [{"name": "ImageLocality", "weight": 5}]}}}, 19, id="another weight"),
        pytest.param({"plugins": {"multiPoint": {"enabled": [{"name": "Mine"}]}}}, 16, id="foreign plugin without a weight"),
        pytest.param({"plugins": {"score": {"disabled": [{"name": "*"}], "enabled": [{"name": "NodeAffinity", "weight": 4}]}}}, 4, id="one alone"),
    ],
)
def test_decisive_means_that_one_step_outweighs_everything_in_tree(profile: dict[str, Any], total: int) -> None:
    assert sum(made.scorers(profile).values()) == total
    weight = made.weight("decisive", [profile])
    assert 1 * weight * 10 > total * 100 >= (weight - 1) * 10
    assert made.weight("advisory", [profile]) == 1


def test_the_profile_with_the_heaviest_plugins_decides() -> None:
    assert made.weight("decisive", [{"plugins": {"multiPoint": {"disabled": [{"name": "*"}]}}}, {}]) == 151


def test_our_own_scheduler_does_not_share_the_extenders_lease() -> None:
    assert own()["leaderElection"]["resourceName"] == "mine-kube-scheduler"


def test_merging_changes_nothing_else() -> None:
    existing: dict[str, Any] = {
        "apiVersion": made.API_VERSION,
        "kind": made.KIND,
        "parallelism": 3,
        "extenders": [{"urlPrefix": "http://x", "managedResources": [{"name": "b.c/d"}]}],
    }
    result = made.merged(existing, entry())
    assert result["extenders"] == [*existing["extenders"], entry()]
    assert {key: value for key, value in result.items() if key not in ("extenders", "percentageOfNodesToScore")} == {
        key: value for key, value in existing.items() if key != "extenders"
    }


@pytest.mark.parametrize(
    ("existing", "words"),
    [
        pytest.param({"extenders": [{"urlPrefix": "http://x", "managedResources": [{"name": "acme.com/xpu"}]}]}, "acme.com/xpu", id="same resource"),
        pytest.param({"extenders": [{"urlPrefix": "http://x", "bindVerb": "b", "managedResources": [{"name": "b.c/d"}]}]}, "one binder", id="second binder"),
        pytest.param({"extenders": [{"urlPrefix": URL}]}, "already", id="ours is there"),
        pytest.param({"percentageOfNodesToScore": 50}, "50", id="samples nodes"),
        pytest.param({"apiVersion": "kubescheduler.config.k8s.io/v1beta3"}, "v1beta3", id="old format"),
        pytest.param({"kind": "Pod"}, "Pod", id="something else"),
    ],
)
def test_what_contradicts_is_refused(existing: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        made.merged({"apiVersion": made.API_VERSION, "kind": made.KIND, **existing}, entry())


@pytest.mark.parametrize("version", ["1.29", "2.0", "latest", "1"])
def test_a_kubernetes_that_we_do_not_know_is_refused(version: str) -> None:
    with pytest.raises(ConfigError):
        made.check_kubernetes(version)


@pytest.mark.parametrize("version", ["1.36", "v1.37.2", "1.37.2-gke.1"])
def test_a_kubernetes_that_we_know(version: str) -> None:
    made.check_kubernetes(version)


def test_https_without_a_ca_is_refused_because_nobody_would_be_checked() -> None:
    with pytest.raises(ConfigError, match="--ca-file"):
        made.extender(CATALOG, "https://x:1", 1)
    assert made.extender(CATALOG, "https://x:1", 1, tls=made.Tls("/ca", "/c", "/k"))["tlsConfig"] == {"caFile": "/ca", "certFile": "/c", "keyFile": "/k"}


def test_what_we_write_is_right() -> None:
    assert check(yaml.safe_dump(own(), sort_keys=False), CATALOG, "decisive") == []


@pytest.mark.parametrize(
    ("change", "line_of", "words"),
    [
        pytest.param({"ignorable": True}, "ignorable:", "without a device", id="ignorable"),
        pytest.param({"weight": 150}, "weight:", "needs 151", id="too light"),
        pytest.param({"nodeCacheCapable": False}, "nodeCacheCapable:", "write true", id="whole nodes"),
        pytest.param({"bindVerb": "b"}, "bindVerb:", "write bind", id="verb"),
        pytest.param({"colour": 1}, "colour:", "no field", id="unknown field"),
        pytest.param({"enableHTTPS": True}, "enableHTTPS:", "urlPrefix", id="scheme"),
        pytest.param({"managedResources": [{"name": "acme.com/xpu"}]}, "managedResources:", "lacks acme.com/half", id="missing resources"),
    ],
)
def test_a_check_names_the_line(change: dict[str, Any], line_of: str, words: str) -> None:
    text = yaml.safe_dump({**own(), "extenders": [entry(**change)]}, sort_keys=False)
    fault = check(text, CATALOG, "decisive")[0]
    assert words in str(fault)
    assert text.splitlines()[fault.line - 1].strip().removeprefix("- ").startswith(line_of)


def test_a_check_finds_amounts_that_the_scheduler_would_count() -> None:
    wrong = entry()
    wrong["managedResources"] = [{**row, "ignoredByScheduler": False} for row in wrong["managedResources"]]
    words = [str(fault) for fault in check(yaml.safe_dump({**own(), "extenders": [wrong]}), CATALOG, "decisive")]
    assert any("acme.com/xpumem" in each for each in words)
    assert not any("acme.com/xpu:" in each for each in words)


@pytest.mark.parametrize("text", ["[1, 2", "just words", "", "extenders: []"])
def test_no_text_makes_it_fall_over(text: str) -> None:
    assert check(text, CATALOG, "decisive")
