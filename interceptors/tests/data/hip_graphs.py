# SPDX-License-Identifier: Apache-2.0
"""Memory that HIP's graphs allocate, in every way that a graph comes to it."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref, c_int, c_size_t, c_ulonglong, c_void_p
from typing import Any

from driving import BLOCK, say
from hip_types import AllocNode, ChildNode, Node, Pool, hip

ON_DEVICE = Pool(type=1, location=(c_int * 2)(1, 0))
GRAPH, ALLOC = 4, 10
Build = Callable[[int], tuple[int, Any, list[int]]]
"""`count` blocks: the driver's code, the graph, and the blocks' addresses."""


def new() -> Any:
    graph = c_void_p()
    hip.hipGraphCreate(byref(graph), 0)
    return graph


def by_alloc_node(graph: Any) -> tuple[int, int]:
    node = AllocNode(pool=ON_DEVICE, bytes=BLOCK)
    return int(hip.hipGraphAddMemAllocNode(byref(c_void_p()), graph, None, c_size_t(0), byref(node))), node.pointer or 0


def by_node(graph: Any) -> tuple[int, int]:
    node = Node(type=ALLOC, alloc=AllocNode(pool=ON_DEVICE, bytes=BLOCK))
    return int(hip.hipGraphAddNode(byref(c_void_p()), graph, None, c_size_t(0), byref(node))), node.alloc.pointer or 0


def nodes(add: Callable[[Any], tuple[int, int]]) -> Build:
    def build(count: int) -> tuple[int, Any, list[int]]:
        graph, blocks = new(), []
        for _ in range(count):
            code, block = add(graph)
            if code:
                return code, graph, blocks
            blocks.append(block)
        return 0, graph, blocks

    return build


def child(name: str) -> Build:
    def build(count: int) -> tuple[int, Any, list[int]]:
        code, inner, blocks = nodes(by_alloc_node)(count)
        outer = new()
        if name == "hipGraphAddChildGraphNode":
            return code or int(hip.hipGraphAddChildGraphNode(byref(c_void_p()), outer, None, c_size_t(0), inner)), outer, blocks
        return code or int(hip.hipGraphAddNode(byref(c_void_p()), outer, None, c_size_t(0), byref(ChildNode(type=GRAPH, graph=inner)))), outer, blocks

    return build


def clone(count: int) -> tuple[int, Any, list[int]]:
    code, graph, blocks = nodes(by_alloc_node)(count)
    copy = c_void_p()
    return code or int(hip.hipGraphClone(byref(copy), graph)), copy, blocks


def captured(name: str) -> Build:
    def build(count: int) -> tuple[int, Any, list[int]]:
        stream, pool, graph, blocks = c_void_p(), c_void_p(), c_void_p(), []
        hip.hipDeviceGetMemPool(byref(pool), 0)
        hip.hipStreamCreate(byref(stream))
        hip.hipStreamBeginCapture(stream, 0)
        more = (pool, stream) if name == "hipMallocFromPoolAsync" else (stream,)
        for _ in range(count):
            block = c_void_p()
            code = int(hip[name](byref(block), c_size_t(BLOCK), *more))
            if code:
                return code, graph, blocks
            blocks.append(block.value or 0)
        return int(hip.hipStreamEndCapture(stream, byref(graph))), graph, blocks

    return build


WAYS: dict[str, Build] = {
    "hipGraphAddMemAllocNode": nodes(by_alloc_node),
    "hipGraphAddNode": nodes(by_node),
    "hipGraphAddChildGraphNode": child("hipGraphAddChildGraphNode"),
    "child": child("hipGraphAddNode"),
    "hipGraphClone": clone,
    "hipMallocAsync": captured("hipMallocAsync"),
    "hipMallocFromPoolAsync": captured("hipMallocFromPoolAsync"),
}


def instantiate(name: str, graph: Any) -> tuple[int, Any]:
    exec_ = c_void_p()
    more: dict[str, tuple[Any, ...]] = {
        "hipGraphInstantiate": (None, None, c_size_t(0)),
        "hipGraphInstantiateWithFlags": (c_ulonglong(0),),
        "hipGraphInstantiateWithParams": (None,),
    }
    if name == "hipGraphExecUpdate":
        hip.hipGraphInstantiate(byref(exec_), new(), None, None, c_size_t(0))
        return int(hip.hipGraphExecUpdate(exec_, graph, byref(c_void_p()), byref(c_int()))), exec_
    return int(hip[name](byref(exec_), graph, *more[name])), exec_


def empty() -> Any:
    return instantiate("hipGraphInstantiate", new())[1]


def graph(way: str, instantiating: str, launching: str) -> None:
    """A graph that asks for more than there is; then one of three blocks, launched, launched again, freed, trimmed."""
    code, big, blocks = WAYS[way](13)
    if code == 0:
        code, exec_ = instantiate(instantiating, big)
        code = code or int(hip[launching](exec_, None))
    say(code=code)
    hip.hipGraphDestroy(big)
    hip.hipDeviceGraphMemTrim(0)
    code, small, blocks = WAYS[way](3)
    more, exec_ = instantiate(instantiating, small)
    say(codes=[code, more, int(hip[launching](exec_, None)), int(hip.hipDeviceSynchronize())])
    codes = [int(hip.hipFree(c_void_p(block))) for block in blocks]
    codes.append(int(hip[launching](exec_, None)))
    say(codes=codes)
    codes = [int(hip.hipFree(c_void_p(block))) for block in blocks]
    say(codes=[*codes, int(hip.hipGraphExecDestroy(exec_)), int(hip.hipDeviceGraphMemTrim(0))])


def forgotten() -> None:
    """Handles of what was destroyed are handed out again, and ask for nothing of what their former owners did."""
    held = c_void_p()
    hip.hipMalloc(byref(held), c_size_t(BLOCK))
    codes, made = [], []
    for _ in range(2):
        code, graph, _blocks = WAYS["hipGraphAddMemAllocNode"](11)
        more, exec_ = instantiate("hipGraphInstantiate", graph)
        codes += [code, more]
        made.append((graph, exec_))
    for graph, exec_ in made:
        codes += [int(hip.hipGraphDestroy(graph)), int(hip.hipGraphExecDestroy(exec_))]
    code, graph, _blocks = WAYS["hipGraphAddMemAllocNode"](1)
    more, exec_ = instantiate("hipGraphInstantiate", graph)
    say(codes=[*codes, code, more, int(hip.hipGraphLaunch(exec_, None))])
    say(codes=[int(hip.hipGraphLaunch(empty(), None))])
