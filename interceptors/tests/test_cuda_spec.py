# SPDX-License-Identifier: Apache-2.0
"""The tables of CUDA and NVML: every exported name has its row, everything that allocates, frees, launches or resolves has its hook."""

from __future__ import annotations

from pathlib import Path

import pytest

from hami_interceptor import spec
from hami_interceptor.table import Api, Row

TRAPS = ("cuCtxCreate", "cuGraphAddNode", "cuMemAdvise", "cuMemPrefetchAsync", "cuGraphGetEdges", "cuGraphAddDependencies", "cuStreamGetCaptureInfo")


@pytest.fixture(scope="module", params=["cuda", "nvml"])
def api(request: pytest.FixtureRequest) -> Api:
    return spec.load(str(request.param))


@pytest.fixture(scope="module")
def cuda() -> dict[str, Row]:
    return {row.symbol: row for row in spec.load("cuda").rows}


def names(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def test_every_exported_name_of_every_version_is_classified(api: Api) -> None:
    rows = {row.symbol for row in api.rows}
    assert len(api.exports) >= 2
    for export in api.exports:
        assert set(names(export.path)) <= rows, export.version
        assert names(export.path) == sorted(set(names(export.path)))
    assert rows == {name for export in api.exports for name in names(export.path)}, "no row for a name that no version has"


def test_every_source_of_the_table_lies_in_the_tree(api: Api) -> None:
    assert [name for name in api.sources if not (api.shim / name).is_file()] == []


@pytest.mark.parametrize("name", TRAPS)
def test_a_name_whose_prototype_changed_has_a_row_of_its_own_for_each_export(cuda: dict[str, Row], name: str) -> None:
    versions = [row for symbol, row in cuda.items() if symbol == name or symbol in {f"{name}_v{number}" for number in range(2, 5)}]
    assert len(versions) >= 2
    assert all(row.base == row.symbol for row in versions), "no twin of the other"
    assert len({row.parameters for row in versions}) >= 2


def test_a_stream_twin_has_the_hook_of_its_base(cuda: dict[str, Row]) -> None:
    twins = [row for symbol, row in cuda.items() if symbol.endswith(("_ptsz", "_ptds"))]
    assert len(twins) > 80
    assert [row.symbol for row in twins if row.hook != cuda[row.base].hook] == []


@pytest.mark.parametrize(
    "symbol",
    [
        "cuMemAlloc_v2",
        "cuMemAllocPitch_v2",
        "cuMemAllocManaged",
        "cuMemAllocAsync",
        "cuMemAllocAsync_ptsz",
        "cuMemAllocFromPoolAsync_ptsz",
        "cuMemCreate",
        "cuArrayCreate",
        "cuArrayCreate_v2",
        "cuArray3DCreate_v2",
        "cuMipmappedArrayCreate",
        "cuGraphAddMemAllocNode",
        "cuGraphAddNode",
        "cuGraphAddNode_v2",
        "cuMemFree_v2",
        "cuMemFreeAsync_ptsz",
        "cuMemRelease",
        "cuMemMap",
        "cuMemUnmap",
        "cuMemMapArrayAsync_ptsz",
        "cuMulticastBindMem_v2",
        "cuIpcOpenMemHandle_v2",
        "cuImportExternalMemory",
        "cuDeviceGraphMemTrim",
        "cuGraphExecDestroy",
        "cuGraphUpload_ptsz",
        "cuCtxCreate_v4",
        "cuDevicePrimaryCtxRetain",
        "cuDevicePrimaryCtxReset_v2",
        "cuGreenCtxCreate",
        "cuCtxSetLimit",
        "cuMemGetInfo_v2",
        "cuDeviceTotalMem_v2",
        "cuLaunchKernel",
        "cuLaunchKernel_ptsz",
        "cuLaunchKernelEx",
        "cuLaunchKernelEx_ptsz",
        "cuLaunchCooperativeKernel",
        "cuLaunchCooperativeKernelMultiDevice",
        "cuLaunch",
        "cuLaunchGridAsync",
        "cuGraphLaunch",
        "cuGraphLaunch_ptsz",
        "cuGetProcAddress",
        "cuGetProcAddress_v2",
        "cuGetExportTable",
        "cuStreamBeginCapture_v2_ptsz",
        "cuStreamEndCapture",
        "cuMemPoolTrimTo",
        "cuMemPoolDestroy",
        "cuCtxDestroy_v2",
    ],
)
def test_what_must_be_hooked_is(cuda: dict[str, Row], symbol: str) -> None:
    assert cuda[symbol].hooked
