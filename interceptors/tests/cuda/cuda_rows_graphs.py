# SPDX-License-Identifier: Apache-2.0
"""What the hooks of the CUDA driver do. Graphs and captures."""

from __future__ import annotations

import ctypes
from typing import Any

from cuda_bench import MIB, Bench, integer, size_t, u64, void
from cuda_row import BLOCK, BYTES, row
from cuda_structs import AllocNode, Node, PoolProps

# -- graphs -------------------------------------------------------------------------------------------------------------


def graph_with_memory(b: Bench, bytes_: int = BYTES, symbol: str = "cuGraphAddMemAllocNode") -> tuple[int, int]:
    """The graph, and the address that its memory will have."""
    graph, node = b.make("cuGraphCreate", 0), void()
    params = AllocNode(pool=PoolProps(type=1, location=(1, 0)), bytes=bytes_)
    if symbol == "cuGraphAddMemAllocNode":
        b(symbol, ctypes.byref(node), void(graph), None, size_t(0), ctypes.byref(params))
        return graph, int(params.pointer)
    whole = Node(type=10, alloc=params)
    edges = () if symbol == "cuGraphAddNode" else (None,)
    b(symbol, ctypes.byref(node), void(graph), None, *edges, size_t(0), ctypes.byref(whole))
    return graph, int(whole.alloc.pointer)


def launched(b: Bench, graph: int, flags: int = 0) -> int:
    """MiB charged by the first launch; the driver's own figures play no part: they are not there to ask."""
    executable = b.make("cuGraphInstantiateWithFlags", void(graph), u64(flags))
    return launch_of(b, executable)


def launch_of(b: Bench, executable: int) -> int:
    with b.charged() as change:
        b("cuGraphLaunch", void(executable), void(0))
    return change[0]


@row("cuGraphAddMemAllocNode", "cuGraphAddNode", "cuGraphAddNode_v2", "cuGraphAddNode_v3", expected=BLOCK)
def node(b: Bench, symbol: str) -> Any:
    b.begin()
    return launched(b, graph_with_memory(b, BYTES, symbol)[0])


@row("cuGraphAddChildGraphNode", expected=BLOCK)
def child(b: Bench, symbol: str) -> Any:
    b.begin()
    inner, outer, made = graph_with_memory(b)[0], b.make("cuGraphCreate", 0), void()
    b(symbol, ctypes.byref(made), void(outer), None, size_t(0), void(inner))
    return launched(b, outer)


@row("cuGraphClone", expected=BLOCK)
def clone(b: Bench, symbol: str) -> Any:
    b.begin()
    return launched(b, b.make(symbol, void(graph_with_memory(b)[0])))


@row("cuGraphInstantiate", "cuGraphInstantiate_v2", "cuGraphInstantiateWithFlags", expected=BLOCK)
@row("cuGraphInstantiateWithParams", "cuGraphInstantiateWithParams_ptsz", expected=BLOCK)
def instantiated(b: Bench, symbol: str) -> Any:
    b.begin()
    graph = void(graph_with_memory(b)[0])
    parameters = (ctypes.c_uint64 * 4)()
    more = {"cuGraphInstantiateWithFlags": (u64(0),)}.get(symbol, (ctypes.byref(parameters),) if "Params" in symbol else (None, None, size_t(0)))
    return launch_of(b, b.make(symbol, graph, *more))


@row("cuGraphLaunch", "cuGraphLaunch_ptsz", "cuGraphUpload", "cuGraphUpload_ptsz", expected=BLOCK)
def memory_of_a_graph(b: Bench, symbol: str) -> Any:
    b.begin()
    executable = b.make("cuGraphInstantiateWithFlags", void(graph_with_memory(b)[0]), u64(0))
    with b.charged() as change:
        b(symbol, void(executable), void(0))
    return change[0]


@row("cuGraphExecUpdate", "cuGraphExecUpdate_v2", expected=[16, 32])
def updated(b: Bench, symbol: str) -> Any:
    """An executable graph that was launched already takes more after its update."""
    b.begin()
    small, pointer = graph_with_memory(b, 16 * MIB)
    executable = b.make("cuGraphInstantiateWithFlags", void(small), u64(0))
    first = launch_of(b, executable)
    b("cuMemFree_v2", u64(pointer))
    large = graph_with_memory(b, BYTES)[0]
    result, failed = (ctypes.c_uint64 * 3)(), void()
    more = (ctypes.byref(result),) if symbol.endswith("_v2") else (ctypes.byref(failed), ctypes.byref(integer()))
    b(symbol, void(executable), void(large), *more)
    return [first, launch_of(b, executable)]


@row("cuGraphExecDestroy", expected=[BLOCK, 0])
def executable_destroyed(b: Bench, symbol: str) -> Any:
    b.begin()
    start = b.held()
    graph, pointer = graph_with_memory(b)
    executable = b.make("cuGraphInstantiateWithFlags", void(graph), u64(0))
    launch_of(b, executable)
    b("cuMemFree_v2", u64(pointer))
    assert b.raw("cuDeviceGraphMemTrim", 0) == 0
    kept = b.held() - start
    b(symbol, void(executable))
    return [kept, b.held() - start]


@row("cuDeviceGraphMemTrim", expected=[BLOCK, 0])
def graph_memory_trimmed(b: Bench, symbol: str) -> Any:
    b.begin()
    start = b.held()
    graph, pointer = graph_with_memory(b)
    launched(b, graph)
    b("cuMemFree_v2", u64(pointer))
    kept = b.held() - start
    b(symbol, 0)
    return [kept, b.held() - start]


@row("cuGraphDestroy", expected=0)
def graph_destroyed(b: Bench, symbol: str) -> Any:
    """What stands in a book for a graph that is gone must not be asked of the next graph at that address."""
    b.begin()
    gone = {graph_with_memory(b, 512 * MIB)[0] for _ in range(20)}  # more than the allocator keeps apart for each thread
    for graph in gone:
        b(symbol, void(graph))
    others = (b.make("cuGraphCreate", 0) for _ in range(1000))
    again = next((graph for graph in others if graph in gone), 0)
    assert again, "no new graph came to lie where an old one was"
    b.make("cuMemAlloc_v2", size_t(512 * MIB))
    return b.code("cuGraphInstantiateWithFlags", ctypes.byref(void()), void(again), u64(0))


@row("cuStreamBeginCapture", "cuStreamBeginCapture_ptsz", "cuStreamBeginCapture_v2", "cuStreamBeginCapture_v2_ptsz", expected=[0, BLOCK])
@row("cuStreamBeginCaptureToGraph", "cuStreamBeginCaptureToGraph_ptsz", expected=[0, BLOCK])
def capture(b: Bench, symbol: str) -> Any:
    """What a capture asks for is charged when the graph is launched, and to the graph."""
    b.begin()
    stream, graph = void(b.make("cuStreamCreate", 0)), void(b.make("cuGraphCreate", 0))
    plain = (1,) if "_v2" in symbol else ()
    more = (graph, None, None, size_t(0), 1) if "ToGraph" in symbol else plain
    b(symbol, stream, *more)
    with b.charged() as change:
        b.make("cuMemAllocAsync", size_t(BYTES), stream)
    b("cuStreamEndCapture", stream, ctypes.byref(graph))
    return [change[0], launched(b, int(graph.value or 0))]


@row("cuStreamEndCapture", "cuStreamEndCapture_ptsz", expected=BLOCK)
def capture_ends(b: Bench, symbol: str) -> Any:
    """A driver that cannot name the graph of a capture yet: the end of the capture says which it is."""
    b.begin()
    stream, graph = void(b.make("cuStreamCreate", 0)), void()
    b("cuStreamBeginCapture_v2", stream, 1)
    with b.failing(cuStreamGetCaptureInfo_v3=801, cuStreamGetCaptureInfo_v2=801):
        b.make("cuMemAllocAsync", size_t(BYTES), stream)
    b(symbol, stream, ctypes.byref(graph))
    return launched(b, int(graph.value or 0))
