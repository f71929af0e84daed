# SPDX-License-Identifier: Apache-2.0
"""The chart's list of resource names is the packages' own, and the program's options make sense together."""

from __future__ import annotations

from pathlib import Path

import pytest

from hami_framework.errors import ConfigError
from hami_framework.plugins import load_registry
from hami_framework.webhook.__main__ import lives, parser, wanted_certificates
from hami_framework.webhook.names import page

FILE = Path(__file__).parents[2] / "deploy" / "chart" / "files" / "resource-names.yaml"


def test_the_chart_s_resource_names_are_those_of_the_packages() -> None:
    catalog = load_registry(["nvidia", "ascend", "cambricon", "hygon"]).catalog()
    assert FILE.read_text() == page(catalog), "run: python -m hami_framework.webhook.names > deploy/chart/files/resource-names.yaml"


def test_what_certificates_are_wanted() -> None:
    arguments = parser().parse_args(["--namespace", "ns", "--also-server", "s-tls=hami-scheduler", "--also-client", "c-tls=kube-scheduler"])
    own, extender, client = wanted_certificates(arguments)
    assert (own.name, own.usage, own.dns_names[0]) == ("hami-webhook-tls", "server", "hami-webhook.ns.svc")
    assert (extender.name, extender.usage, extender.dns_names[0]) == ("s-tls", "server", "hami-scheduler.ns.svc")
    assert (client.name, client.usage, client.common_name, client.dns_names) == ("c-tls", "client", "kube-scheduler", ())


@pytest.mark.parametrize(
    "words",
    [["--also-server", "x"], ["--also-client", "=y"], ["--also-server", "hami-webhook-tls=hami-scheduler"], ["--also-client", "hami-authorities=x"]],
    ids=["no service", "no secret", "the webhook's own Secret", "the authorities' Secret"],
)
def test_wrong_certificates_are_named(words: list[str]) -> None:
    with pytest.raises(ConfigError):
        wanted_certificates(parser().parse_args(words))


def test_lives_that_leave_no_overlap_are_refused() -> None:
    assert lives(parser().parse_args([])).certificate_seconds == 90 * 86400
    with pytest.raises(ConfigError, match="last third"):
        lives(parser().parse_args(["--authority-days", "200"]))
