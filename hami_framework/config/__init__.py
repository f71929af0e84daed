# SPDX-License-Identifier: Apache-2.0
"""Settings that people write, checked where they are read."""

from hami_framework.config.reading import faults, read_document, read_documents
from hami_framework.config.settings import NodeRule, Settings, load_settings

__all__ = ["NodeRule", "Settings", "faults", "load_settings", "read_document", "read_documents"]
