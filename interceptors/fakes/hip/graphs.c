/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Graphs of the fake libamdhip64. A memory node has its address at once; its memory is taken by the first launch (or, while
 * HAMI_FAKE_HIP_EARLY is set, with the node), and stays in the device's reserve until it has been freed and the reserve trimmed.
 * What is captured from a stream is memory nodes only. Not for two threads at once, as graphs of HIP are not.
 */
#include "hip_fake_own.h"

#include "hami_card_time.h"

#include <stdlib.h>

enum { NODES = 256, PAGE = 2 << 20 };

struct node {
    uint64_t bytes;
    int device;
    bool reserved, in_use;
};

struct ihipGraph { bool has[NODES]; };
struct hipGraphExec { bool has[NODES]; };

static struct node nodes[NODES];
static int known;
static hipStream_t captured;
static hipGraph_t capture;

static void *address_of(int node) { return (void *)(((uintptr_t)0x7e00 << 32) + (uintptr_t)node * 4096); }

static hipError_t reserve(struct node *node) {
    if (node->reserved) return hipSuccess;
    if (card_take(hip_fake_place(node->device), node->bytes, CARD_GRAPH) != CARD_OK) return hipErrorOutOfMemory;
    node->reserved = true;
    return hipSuccess;
}

static hipError_t add(hipGraph_t graph, int device, uint64_t bytes, void **address) {
    if (known == NODES) return hipErrorOutOfMemory;
    nodes[known] = (struct node){.bytes = (bytes + PAGE - 1) / PAGE * PAGE, .device = device};
    hipError_t result = getenv("HAMI_FAKE_HIP_EARLY") == NULL ? hipSuccess : reserve(&nodes[known]);
    if (result != hipSuccess) return result;
    graph->has[known] = true;
    *address = address_of(known++);
    return hipSuccess;
}

/* What was destroyed is handed out again at once, the latest first. */
static void *spares[2][8];
static void *another(int kind, size_t size) {
    for (int at = 7; at >= 0; at--) {
        void *spare = spares[kind][at];
        spares[kind][at] = NULL;
        if (spare != NULL) return memset(spare, 0, size);
    }
    return calloc(1, size);
}
static void spare(int kind, void *it) {
    for (int at = 0; at < 8; at++) {
        if (spares[kind][at] != NULL) continue;
        spares[kind][at] = it;
        return;
    }
    free(it);
}

hipError_t fake_hipGraphCreate(hipGraph_t *graph, unsigned int flags) {
    *graph = another(0, sizeof **graph);
    return flags == 0 ? hipSuccess : hipErrorInvalidValue;
}
hipError_t fake_hipGraphDestroy(hipGraph_t graph) {
    spare(0, graph);
    return hipSuccess;
}
hipError_t fake_hipGraphClone(hipGraph_t *clone, hipGraph_t graph) {
    *clone = another(0, sizeof **clone);
    **clone = *graph;
    return hipSuccess;
}
hipError_t fake_hipGraphAddChildGraphNode(hipGraphNode_t *node, hipGraph_t graph, const hipGraphNode_t *before, size_t count, hipGraph_t child) {
    (void)node, (void)before, (void)count;
    for (int at = 0; at < known; at++) graph->has[at] |= child->has[at];
    return hipSuccess;
}
hipError_t fake_hipGraphAddMemAllocNode(hipGraphNode_t *node, hipGraph_t graph, const hipGraphNode_t *before, size_t count, hipMemAllocNodeParams *wanted) {
    (void)node, (void)before, (void)count;
    hipError_t result = hip_fake_ready(wanted->pool.location.id);
    return result == hipSuccess ? add(graph, wanted->pool.location.id, wanted->bytes, &wanted->pointer) : result;
}
hipError_t fake_hipGraphAddNode(hipGraphNode_t *node, hipGraph_t graph, const hipGraphNode_t *before, size_t count, hipGraphNodeParams *wanted) {
    if (wanted->type == hipGraphNodeTypeMemAlloc) return hipGraphAddMemAllocNode(node, graph, before, count, &wanted->of.alloc); /* its own export */
    return wanted->type == hipGraphNodeTypeGraph ? fake_hipGraphAddChildGraphNode(node, graph, before, count, wanted->of.child.graph) : hipSuccess;
}

hipError_t fake_hipGraphInstantiateWithFlags(hipGraphExec_t *exec, hipGraph_t graph, unsigned long long flags) {
    if (flags != 0) return hipErrorInvalidValue;
    *exec = another(1, sizeof **exec);
    memcpy((*exec)->has, graph->has, sizeof graph->has);
    return hipSuccess;
}
hipError_t fake_hipGraphInstantiate(hipGraphExec_t *exec, hipGraph_t graph, hipGraphNode_t *wrong, char *log, size_t room) {
    (void)wrong, (void)log, (void)room;
    return fake_hipGraphInstantiateWithFlags(exec, graph, 0);
}
hipError_t fake_hipGraphInstantiateWithParams(hipGraphExec_t *exec, hipGraph_t graph, void *parameters) {
    (void)parameters;
    return fake_hipGraphInstantiateWithFlags(exec, graph, 0);
}
hipError_t fake_hipGraphExecUpdate(hipGraphExec_t exec, hipGraph_t graph, hipGraphNode_t *wrong, int *answer) {
    (void)wrong, (void)answer;
    memcpy(exec->has, graph->has, sizeof exec->has);
    return hipSuccess;
}
hipError_t fake_hipGraphExecDestroy(hipGraphExec_t exec) {
    spare(1, exec);
    return hipSuccess;
}
hipError_t fake_hipGraphUpload(hipGraphExec_t exec, hipStream_t stream) {
    hipError_t result = hipSuccess;
    (void)stream;
    for (int at = 0; at < known && result == hipSuccess; at++) {
        if (exec->has[at]) result = reserve(&nodes[at]);
    }
    return result;
}
hipError_t fake_hipGraphLaunch(hipGraphExec_t exec, hipStream_t stream) {
    hipError_t result = fake_hipGraphUpload(exec, stream);
    for (int at = 0; at < known && result == hipSuccess; at++) {
        if (exec->has[at] && nodes[at].in_use) return hipErrorInvalidValue;
        nodes[at].in_use |= exec->has[at];
    }
    return result == hipSuccess ? hip_fake_launch(stream) : result;
}

/* -- the reserve -------------------------------------------------------------------------------------------------------- */

bool hip_fake_graph_free(const void *address) {
    uintptr_t at = ((uintptr_t)address - (uintptr_t)address_of(0)) / 4096;
    if (address < address_of(0) || at >= (uintptr_t)known) return false;
    nodes[at].in_use = false;
    return true;
}
hipError_t fake_hipDeviceGraphMemTrim(int device) {
    for (int at = 0; at < known; at++) {
        if (nodes[at].device != device || !nodes[at].reserved || nodes[at].in_use) continue;
        card_give(hip_fake_place(device), nodes[at].bytes, CARD_GRAPH);
        nodes[at].reserved = false;
    }
    return hipSuccess;
}
hipError_t fake_hipDeviceGetGraphMemAttribute(int device, int attribute, void *value) {
    uint64_t sum = 0;
    for (int at = 0; at < known; at++) {
        if (nodes[at].device == device && nodes[at].reserved) sum += nodes[at].bytes;
    }
    *(uint64_t *)value = sum;
    return attribute == hipGraphMemAttrReservedMemCurrent ? hipSuccess : hipErrorInvalidValue;
}

/* -- capture ------------------------------------------------------------------------------------------------------------ */

hipError_t fake_hipStreamBeginCapture(hipStream_t stream, int mode) {
    captured = stream;
    return stream == NULL || mode < 0 ? hipErrorInvalidValue : fake_hipGraphCreate(&capture, 0);
}
hipError_t fake_hipStreamEndCapture(hipStream_t stream, hipGraph_t *graph) {
    if (stream == NULL || stream != captured) return hipErrorInvalidValue;
    *graph = capture;
    captured = NULL;
    return hipSuccess;
}
bool hip_fake_capturing(hipStream_t stream) { return stream != NULL && stream == captured; }
hipError_t hip_fake_capture(int device, uint64_t bytes, void **out) { return add(capture, device, bytes, out); }
hipError_t fake_hipStreamIsCapturing(hipStream_t stream, int *status) {
    *status = hip_fake_capturing(stream) ? 1 : hipStreamCaptureStatusNone;
    return hipSuccess;
}
hipError_t fake_hipStreamGetCaptureInfo_v2(hipStream_t stream, int *status, unsigned long long *id, hipGraph_t *graph, const hipGraphNode_t **after, size_t *count) {
    (void)id, (void)after, (void)count;
    if (graph != NULL) *graph = hip_fake_capturing(stream) ? capture : NULL;
    return fake_hipStreamIsCapturing(stream, status);
}
