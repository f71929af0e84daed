# SPDX-License-Identifier: Apache-2.0
"""What people are told about the YAML they wrote, and about what the API server says beside its answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from hami_framework.config import load_settings, read_document, read_documents
from hami_framework.errors import ConfigError
from hami_framework.kube import warnings

WRONG_SETTINGS = [
    pytest.param("plugin: {}", "plugin: there is no such key: did you mean 'plugins'? Known: plugins, resources, placement, nodes, vendors", id="top level"),
    pytest.param("placement: {node_policie: x}", "placement.node_policie: there is no such key: did you mean 'nodePolicy'?", id="section"),
    pytest.param(
        "nodes: [{memoryOvercomit: 2}]", "nodes.0.memoryOvercomit: there is no such key: did you mean 'memoryOvercommit'? Known: match,", id="in a list"
    ),
    pytest.param("nodes: [{memoryOvercommit: 20}]", "nodes.0.memoryOvercommit: input should be less than or equal to 10", id="range"),
    pytest.param("[a, b]", "the file: write keys with values here, of plugins, resources,", id="a list"),
    pytest.param("placement: fast", "placement: write keys with values here, of nodePolicy, devicePolicy,", id="text for a section"),
    pytest.param("a: {", "is not YAML: line 1, column 5: ", id="broken"),
    pytest.param("a: 1\n---\nb: 2\n", "has 2 documents; write one, without ---", id="two documents"),
]


@pytest.mark.parametrize(("text", "said"), WRONG_SETTINGS)
def test_each_slip_is_one_line_with_the_file_and_what_is_allowed(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    assert f"the settings file {path}" in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_text_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the manifest .* cannot be read: No such file or directory"):
        read_documents(tmp_path / "nothing.yaml", "the manifest")
    (tmp_path / "binary").write_bytes(b"ab\xff")
    with pytest.raises(ConfigError, match="is not UTF-8 text: byte 2 is 0xff"):
        read_document(tmp_path / "binary", "the manifest")
    (tmp_path / "empty").write_text("")
    assert read_document(tmp_path / "empty", "the manifest") is None


def test_warnings_are_unquoted() -> None:
    """The header as k8s.io/apiserver writes it: code, agent `-`, a quoted text with backslash escapes."""
    assert warnings.texts(['299 - "say \\"1\\""', '299 - "a", 299 - "b"', '199 - "not from the API server"']) == ['say "1"', "a", "b"]
