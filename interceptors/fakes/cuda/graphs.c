/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake CUDA driver: graphs and what they are made of; graph_exec.c runs them. Nodes run one after the other, in the order
 * in which they were added: every order that dependencies allow takes as long on one device.
 */
#include "fake_graphs.h"

/* The beginning that all versions of the kernel node's parameters share. */
struct kernel_parameters {
    CUfunction function;
    unsigned grid[3], block[3], shared;
    void **parameters, **extra;
};

static struct CUgraph_st *make_graph(void)
{
    struct CUgraph_st *graph = calloc(1, sizeof *graph);
    graph->id = fc_next_id();
    graph->end = &graph->nodes;
    return graph;
}

static struct CUgraphNode_st *add(struct CUgraph_st *graph, int type)
{
    struct CUgraphNode_st *node = calloc(1, sizeof *node);
    node->type = type;
    *graph->end = node;
    graph->end = &node->next;
    return node;
}

static CUresult answer(CUgraphNode *out, struct CUgraphNode_st *node)
{
    if (out != NULL)
        *out = node;
    return CUDA_SUCCESS;
}

CUresult fc_capture_kernel(struct CUgraph_st *graph, uint64_t duration_ns, uint32_t permille)
{
    struct CUgraphNode_st *node = add(graph, NODE_KERNEL);
    node->duration_ns = duration_ns;
    node->permille = permille;
    return CUDA_SUCCESS;
}

/* Only the address is given now; memory comes when the graph runs. */
static struct CUgraphNode_st *add_alloc(struct CUgraph_st *graph, int device, uint64_t bytes)
{
    struct CUgraphNode_st *node = add(graph, NODE_ALLOC);
    node->device = device;
    node->bytes = bytes;
    node->pointer = fc_address(fc_round(bytes, FC_GRANULE));
    return node;
}

CUresult fc_capture_alloc(struct CUgraph_st *graph, int device, uint64_t bytes, CUdeviceptr *pointer)
{
    *pointer = add_alloc(graph, device, bytes)->pointer;
    return CUDA_SUCCESS;
}

CUresult fc_capture_free(struct CUgraph_st *graph, CUdeviceptr pointer)
{
    add(graph, NODE_FREE)->pointer = pointer;
    return CUDA_SUCCESS;
}

/* -- by hand ------------------------------------------------------------------------------------------------ */

CUresult fake_cuGraphCreate(CUgraph *graph, unsigned int flags)
{
    CUresult result = graph == NULL || flags != 0 ? CUDA_ERROR_INVALID_VALUE : fc_ready();
    if (result == CUDA_SUCCESS)
        *graph = make_graph();
    return result;
}

CUresult fake_cuGraphDestroy(CUgraph graph)
{
    if (graph == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    for (struct CUgraphNode_st *node = graph->nodes, *next; node != NULL; node = next) {
        next = node->next;
        free(node);
    }
    free(graph);
    return fc_ready();
}

CUresult fake_cuGraphClone(CUgraph *clone, CUgraph graph)
{
    CUresult result = clone == NULL || graph == NULL ? CUDA_ERROR_INVALID_VALUE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    *clone = make_graph();
    for (const struct CUgraphNode_st *node = graph->nodes; node != NULL; node = node->next) {
        struct CUgraphNode_st *copy = add(*clone, node->type), *next = copy->next;
        *copy = *node;
        copy->next = next;
    }
    return CUDA_SUCCESS;
}

CUresult fake_cuGraphAddKernelNode_v2(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, size_t count, const void *parameters)
{
    (void)dependencies;
    (void)count;
    const struct kernel_parameters *given = parameters;
    if (graph == NULL || given == NULL || given->function == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    struct CUgraphNode_st *node = add(graph, NODE_KERNEL);
    node->duration_ns = fc_duration(given->function, given->parameters);
    node->permille = given->function->permille;
    return answer(out, node);
}

CUresult fake_cuGraphAddKernelNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, size_t count, const void *parameters)
{
    return fake_cuGraphAddKernelNode_v2(out, graph, dependencies, count, parameters);
}

CUresult fake_cuGraphAddMemAllocNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, size_t count, CUDA_MEM_ALLOC_NODE_PARAMS *parameters)
{
    (void)dependencies;
    (void)count;
    if (graph == NULL || parameters == NULL || parameters->bytes == 0 || parameters->pool.location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = fc_known(parameters->pool.location.id);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    struct CUgraphNode_st *node = add_alloc(graph, parameters->pool.location.id, parameters->bytes);
    parameters->pointer = node->pointer;
    return fc_unlock(answer(out, node));
}

CUresult fake_cuGraphAddMemFreeNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, size_t count, CUdeviceptr pointer)
{
    (void)dependencies;
    (void)count;
    if (graph == NULL || pointer == 0)
        return CUDA_ERROR_INVALID_VALUE;
    struct CUgraphNode_st *node = add(graph, NODE_FREE);
    node->pointer = pointer;
    return answer(out, node);
}

CUresult fake_cuGraphAddChildGraphNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, size_t count, CUgraph child)
{
    (void)dependencies;
    (void)count;
    if (graph == NULL || child == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    struct CUgraphNode_st *node = add(graph, NODE_GRAPH);
    CUresult result = fake_cuGraphClone(&node->child, child);
    return result == CUDA_SUCCESS ? answer(out, node) : result;
}

CUresult fake_cuGraphAddEmptyNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, size_t count)
{
    (void)dependencies;
    (void)count;
    return graph == NULL ? CUDA_ERROR_INVALID_VALUE : answer(out, add(graph, NODE_EMPTY));
}

CUresult fake_cuGraphAddNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, size_t count, CUgraphNodeParams *parameters)
{
    CUdeviceptr pointer;
    if (graph == NULL || parameters == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    switch (parameters->type) {
    case NODE_KERNEL: return fake_cuGraphAddKernelNode_v2(out, graph, dependencies, count, parameters->of.bytes);
    case NODE_GRAPH: return fake_cuGraphAddChildGraphNode(out, graph, dependencies, count, parameters->of.child.graph);
    case NODE_ALLOC: return fake_cuGraphAddMemAllocNode(out, graph, dependencies, count, &parameters->of.alloc);
    case NODE_FREE:
        memcpy(&pointer, parameters->of.bytes, sizeof pointer);
        return fake_cuGraphAddMemFreeNode(out, graph, dependencies, count, pointer);
    default: return answer(out, add(graph, parameters->type));
    }
}

CUresult fake_cuGraphAddNode_v2(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, const void *edges, size_t count,
                                CUgraphNodeParams *parameters)
{
    (void)edges;
    return fake_cuGraphAddNode(out, graph, dependencies, count, parameters);
}

CUresult fake_cuGraphAddNode_v3(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, const void *edges, size_t count,
                                CUgraphNodeParams *parameters)
{
    (void)edges;
    return fake_cuGraphAddNode(out, graph, dependencies, count, parameters);
}

CUresult fake_cuGraphGetNodes(CUgraph graph, CUgraphNode *nodes, size_t *count)
{
    size_t found = 0;
    if (graph == NULL || count == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    for (struct CUgraphNode_st *node = graph->nodes; node != NULL; node = node->next, found++)
        if (nodes != NULL && found < *count)
            nodes[found] = node;
    if (nodes == NULL || found < *count)
        *count = found;
    return fc_ready();
}

CUresult fake_cuGraphNodeGetType(CUgraphNode node, int *type)
{
    if (node == NULL || type == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *type = node->type;
    return fc_ready();
}

CUresult fake_cuGraphMemAllocNodeGetParams(CUgraphNode node, CUDA_MEM_ALLOC_NODE_PARAMS *parameters)
{
    if (node == NULL || parameters == NULL || node->type != NODE_ALLOC)
        return CUDA_ERROR_INVALID_VALUE;
    *parameters = (CUDA_MEM_ALLOC_NODE_PARAMS){.pool = {.alloc_type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = {CU_MEM_LOCATION_TYPE_DEVICE, node->device}},
                                               .bytes = node->bytes, .pointer = node->pointer};
    return fc_ready();
}

CUresult fake_cuGraphMemFreeNodeGetParams(CUgraphNode node, CUdeviceptr *pointer)
{
    if (node == NULL || pointer == NULL || node->type != NODE_FREE)
        return CUDA_ERROR_INVALID_VALUE;
    *pointer = node->pointer;
    return fc_ready();
}

/* -- capture ------------------------------------------------------------------------------------------------ */

enum { GLOBAL, THREAD_LOCAL, RELAXED };
static __thread int thread_mode = GLOBAL;
static int global_captures;
static bool global_broken;

/* What is not safe beside a capture (asking for an event, say) is forbidden to every thread, but for those that said that they know. */
bool fc_capture_forbids(void)
{
    fc_lock();
    bool forbidden = global_captures > 0 && thread_mode != RELAXED;
    global_broken |= forbidden;
    fc_unlock(CUDA_SUCCESS);
    return forbidden;
}

CUresult fake_cuThreadExchangeStreamCaptureMode(int *mode)
{
    if (mode == NULL || *mode < GLOBAL || *mode > RELAXED)
        return CUDA_ERROR_INVALID_VALUE;
    int before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}

static CUresult begin(CUstream given, struct CUgraph_st *graph, int mode)
{
    struct CUstream_st *stream;
    CUresult result = fc_stream(given, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    if (stream == stream->context->legacy)
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    fc_lock();
    if (stream->capture != NULL)
        return fc_unlock(CUDA_ERROR_ILLEGAL_STATE);
    stream->capture = graph != NULL ? graph : make_graph();
    stream->capture_origin = true;
    stream->capture_global = mode == GLOBAL;
    global_captures += stream->capture_global;
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuStreamBeginCapture(CUstream stream) { return begin(stream, NULL, GLOBAL); }
CUresult fake_cuStreamBeginCapture_v2(CUstream stream, int mode) { return mode < 0 || mode > 2 ? CUDA_ERROR_INVALID_VALUE : begin(stream, NULL, mode); }

CUresult fake_cuStreamBeginCaptureToGraph(CUstream stream, CUgraph graph, const CUgraphNode *dependencies, const void *edges, size_t count, int mode)
{
    (void)dependencies, (void)edges, (void)count;
    return graph == NULL ? CUDA_ERROR_INVALID_VALUE : begin(stream, graph, mode);
}

CUresult fake_cuStreamEndCapture(CUstream given, CUgraph *graph)
{
    struct CUstream_st *stream;
    CUresult result = graph == NULL ? CUDA_ERROR_INVALID_VALUE : fc_stream(given, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    if (stream->capture == NULL)
        return fc_unlock(CUDA_ERROR_ILLEGAL_STATE);
    if (!stream->capture_origin)
        return fc_unlock(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    *graph = stream->capture;
    bool broken = stream->capture_global && global_broken;
    global_captures -= stream->capture_global;
    global_broken = global_broken && global_captures > 0;
    stream->capture_global = false;
    for (struct CUstream_st *at = stream->context->streams; at != NULL; at = at->next)
        if (at->capture == *graph) {
            at->capture = NULL;
            at->capture_origin = false;
        }
    if (broken)
        *graph = NULL;
    return fc_unlock(broken ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS);
}

CUresult fake_cuStreamIsCapturing(CUstream given, int *status)
{
    struct CUstream_st *stream;
    CUresult result = status == NULL ? CUDA_ERROR_INVALID_VALUE : fc_stream(given, &stream);
    if (result == CUDA_SUCCESS)
        *status = stream->capture != NULL ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
    return result;
}

CUresult fake_cuStreamGetCaptureInfo_v2(CUstream given, int *status, cuuint64_t *id, CUgraph *graph, const CUgraphNode **dependencies, size_t *count)
{
    struct CUstream_st *stream;
    CUresult result = status == NULL ? CUDA_ERROR_INVALID_VALUE : fc_stream(given, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    *status = stream->capture != NULL ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
    if (id != NULL)
        *id = stream->capture != NULL ? stream->capture->id : 0;
    if (graph != NULL)
        *graph = stream->capture;
    if (dependencies != NULL)
        *dependencies = NULL;
    if (count != NULL)
        *count = 0;
    return CUDA_SUCCESS;
}

CUresult fake_cuStreamGetCaptureInfo(CUstream stream, int *status, cuuint64_t *id)
{
    return fake_cuStreamGetCaptureInfo_v2(stream, status, id, NULL, NULL, NULL);
}
