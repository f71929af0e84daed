/* SPDX-License-Identifier: Apache-2.0 */
/*
 * capture.c: is a stream being captured? Then nothing may wait, nothing is timed, and an allocation is a node of a graph.
 *
 * The driver is asked only while some capture is under way in this process: without one, the answer is one atomic load. The
 * count may be too high (a captured stream was destroyed), never too low: then the driver is asked in vain.
 */
#include <stdatomic.h>

#include "cuda_shim.h"

static _Atomic int captures;

/* Answers CU_STREAM_CAPTURE_STATUS_ACTIVE also when the driver will not say: the legacy stream beside a capture is off limits. */
static int status(CUstream stream) {
    cuStreamIsCapturing_fn ask = cuda_real_cuStreamIsCapturing();
    int answer = CU_STREAM_CAPTURE_STATUS_NONE;
    if (ask == NULL) return CU_STREAM_CAPTURE_STATUS_NONE;
    return ask(stream, &answer) == CUDA_SUCCESS ? answer : CU_STREAM_CAPTURE_STATUS_ACTIVE;
}

bool cuda_capturing(CUstream stream) {
    return atomic_load_explicit(&captures, memory_order_relaxed) > 0 && status(stream) != CU_STREAM_CAPTURE_STATUS_NONE;
}

void cuda_captures_reset(void) { atomic_store_explicit(&captures, 0, memory_order_relaxed); }

bool cuda_captures(void) { return atomic_load_explicit(&captures, memory_order_relaxed) > 0; }

bool cuda_may_wait(void *stream) { return !cuda_capturing(stream); }

static CUresult begun(CUresult result) {
    if (result == CUDA_SUCCESS) (void)atomic_fetch_add_explicit(&captures, 1, memory_order_relaxed);
    return result;
}

CUresult cuda_hook_cuStreamBeginCapture(cuStreamBeginCapture_fn real, CUstream stream) { return begun(real(stream)); }

CUresult cuda_hook_cuStreamBeginCapture_v2(cuStreamBeginCapture_v2_fn real, CUstream stream, int mode) { return begun(real(stream, mode)); }

CUresult cuda_hook_cuStreamBeginCaptureToGraph(cuStreamBeginCaptureToGraph_fn real, CUstream stream, CUgraph graph, const CUgraphNode *after, const void *edges,
                                               size_t count, int mode) {
    return begun(real(stream, graph, after, edges, count, mode));
}

/* -- memory that a capture asks for --------------------------------------------------------------------------------- */

static uint64_t pending_key(CUstream stream) { return cuda_key(stream) | 1; } /* no graph has an odd address */

static bool graph_of(CUstream stream, CUgraph *graph) {
    int state = CU_STREAM_CAPTURE_STATUS_NONE;
    cuuint64_t id = 0;
    cuStreamGetCaptureInfo_v3_fn newer = cuda_real_cuStreamGetCaptureInfo_v3();
    cuStreamGetCaptureInfo_v2_fn older = cuda_real_cuStreamGetCaptureInfo_v2();
    *graph = NULL;
    if (newer != NULL && newer(stream, &state, &id, graph, NULL, NULL, NULL) == CUDA_SUCCESS && *graph != NULL) return true;
    return older != NULL && older(stream, &state, &id, graph, NULL, NULL) == CUDA_SUCCESS && *graph != NULL;
}

/* A driver that cannot name the graph yet has it noted under the stream until the capture ends. */
void cuda_capture_allocated(CUstream stream, int device, uint64_t bytes) {
    CUgraph graph;
    cuda_graph_grow(graph_of(stream, &graph) ? graph : (CUgraph)(uintptr_t)pending_key(stream), device, bytes);
}

static void hand_over(CUstream stream, CUgraph graph) {
    struct hami_entry entry;
    if (!hami_book_take(HAMI_BOOK_GRAPH, pending_key(stream), &entry)) return;
    int device = entry.hold.device;
    hami_give_back(&entry.hold);
    if (graph != NULL) cuda_graph_grow(graph, device, (entry.tag & 0xFFFFFFFFFFull) * 2 * CUDA_MIB);
}

static bool capture_is_over(CUresult result) {
    return result == CUDA_SUCCESS || result == CUDA_ERROR_STREAM_CAPTURE_INVALIDATED || result == CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
}

CUresult cuda_hook_cuStreamEndCapture(cuStreamEndCapture_fn real, CUstream stream, CUgraph *out) {
    CUresult result = real(stream, out);
    if (!capture_is_over(result)) return result;
    int before = atomic_load_explicit(&captures, memory_order_relaxed);
    while (before > 0 && !atomic_compare_exchange_weak(&captures, &before, before - 1)) continue;
    hand_over(stream, result == CUDA_SUCCESS && out != NULL ? *out : NULL);
    return result;
}
