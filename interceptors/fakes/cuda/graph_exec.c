/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake CUDA driver: graphs that run. Their memory comes from one store per device, which grows when a graph first runs or is
 * uploaded and gives back only when it is trimmed (cuDeviceGraphMemTrim).
 */
#include "fake_graphs.h"

enum { AUTO_FREE_ON_LAUNCH = 1, UPDATE_FAILURE = 910 };

struct CUgraphExec_st {
    struct CUgraph_st *graph; /* its own copy */
    unsigned long long flags;
};

static CUresult instantiate(CUgraphExec *exec, CUgraph graph, unsigned long long flags)
{
    CUgraph copy;
    CUresult result = exec == NULL || graph == NULL ? CUDA_ERROR_INVALID_VALUE : fake_cuGraphClone(&copy, graph);
    if (result != CUDA_SUCCESS)
        return result;
    *exec = calloc(1, sizeof **exec);
    **exec = (struct CUgraphExec_st){.graph = copy, .flags = flags};
    return CUDA_SUCCESS;
}

CUresult fake_cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) { return instantiate(exec, graph, flags); }

CUresult fake_cuGraphInstantiate_v2(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node, char *log, size_t size)
{
    if (error_node != NULL)
        *error_node = NULL;
    if (log != NULL && size > 0)
        log[0] = '\0';
    return instantiate(exec, graph, 0);
}

CUresult fake_cuGraphInstantiate(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node, char *log, size_t size)
{
    return fake_cuGraphInstantiate_v2(exec, graph, error_node, log, size);
}

CUresult fake_cuGraphInstantiateWithParams(CUgraphExec *exec, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS *parameters)
{
    if (parameters == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    parameters->error_node = NULL;
    parameters->result = 0;
    return instantiate(exec, graph, parameters->flags);
}

CUresult fake_cuGraphExecDestroy(CUgraphExec exec)
{
    if (exec == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = fake_cuGraphDestroy(exec->graph);
    free(exec);
    return result;
}

/* An update may change what nodes do, not which there are. */
static bool same_shape(const struct CUgraph_st *one, const struct CUgraph_st *other)
{
    const struct CUgraphNode_st *first = one->nodes, *second = other->nodes;
    for (; first != NULL && second != NULL; first = first->next, second = second->next)
        if (first->type != second->type)
            return false;
    return first == NULL && second == NULL;
}

static CUresult update(CUgraphExec exec, CUgraph graph, int *said)
{
    CUgraph copy;
    if (exec == NULL || graph == NULL || said == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *said = same_shape(exec->graph, graph) ? 0 : 2;
    if (*said != 0)
        return UPDATE_FAILURE;
    CUresult result = fake_cuGraphClone(&copy, graph);
    if (result != CUDA_SUCCESS)
        return result;
    fake_cuGraphDestroy(exec->graph);
    exec->graph = copy;
    return CUDA_SUCCESS;
}

CUresult fake_cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, CUgraphNode *error_node, int *said)
{
    if (error_node != NULL)
        *error_node = NULL;
    return update(exec, graph, said);
}

CUresult fake_cuGraphExecUpdate_v2(CUgraphExec exec, CUgraph graph, void *information)
{
    struct { int result; CUgraphNode node, from; } said = {0, NULL, NULL};
    CUresult result = information == NULL ? CUDA_ERROR_INVALID_VALUE : update(exec, graph, &said.result);
    if (information != NULL)
        memcpy(information, &said, sizeof said);
    return result;
}

/* -- memory: with the lock held ----------------------------------------------------------------------------- */

void fc_graph_memory_freed(struct fc_range *range)
{
    fc_devices[range->device].graph_used -= range->physical;
}

static CUresult reserve(int index, uint64_t bytes)
{
    struct fc_device *device = &fc_devices[index];
    if (device->graph_used + bytes > device->graph_reserved) {
        uint64_t missing = device->graph_used + bytes - device->graph_reserved;
        CUresult result = fc_code(card_take(device->card, missing, CARD_GRAPH));
        if (result != CUDA_SUCCESS)
            return result;
        device->graph_reserved += missing;
        if (device->graph_reserved > device->graph_reserved_high)
            device->graph_reserved_high = device->graph_reserved;
    }
    return CUDA_SUCCESS;
}

static uint64_t needed(const struct CUgraph_st *graph, int device)
{
    uint64_t bytes = 0;
    for (const struct CUgraphNode_st *node = graph->nodes; node != NULL; node = node->next) {
        bytes += node->type == NODE_ALLOC && node->device == device ? fc_round(node->bytes, FC_GRANULE) : 0;
        bytes += node->type == NODE_GRAPH ? needed(node->child, device) : 0;
    }
    return bytes;
}

static CUresult reserve_all(const struct CUgraph_st *graph)
{
    CUresult result = CUDA_SUCCESS;
    for (int device = 0; result == CUDA_SUCCESS && device < fc_device_count; device++) {
        uint64_t bytes = needed(graph, device);
        result = bytes > 0 ? reserve(device, bytes) : CUDA_SUCCESS;
    }
    return result;
}

static CUresult free_leftovers(const struct CUgraphExec_st *exec)
{
    for (const struct CUgraphNode_st *node = exec->graph->nodes; node != NULL; node = node->next) {
        struct fc_range *range = node->type == NODE_ALLOC ? fc_range_from(node->pointer) : NULL;
        if (range == NULL)
            continue;
        if ((exec->flags & AUTO_FREE_ON_LAUNCH) == 0)
            return CUDA_ERROR_INVALID_VALUE; /* the memory of the last launch was not freed */
        fc_release(range);
    }
    return CUDA_SUCCESS;
}

static void run_memory(const struct CUgraph_st *graph, struct CUctx_st *context)
{
    for (const struct CUgraphNode_st *node = graph->nodes; node != NULL; node = node->next) {
        if (node->type == NODE_ALLOC) {
            struct fc_device *device = &fc_devices[node->device];
            uint64_t span = fc_round(node->bytes, FC_GRANULE);
            struct fc_range *range = fc_range_add(node->pointer, span, node->bytes, FC_GRAPH, node->device);
            range->physical = span;
            range->context = context;
            device->graph_used += span;
            if (device->graph_used > device->graph_used_high)
                device->graph_used_high = device->graph_used;
        } else if (node->type == NODE_FREE && fc_range_from(node->pointer) != NULL)
            fc_release(fc_range_from(node->pointer));
        else if (node->type == NODE_GRAPH)
            run_memory(node->child, context);
    }
}

/* -- running ------------------------------------------------------------------------------------------------ */

static CUresult run_kernels(const struct CUgraph_st *graph, struct CUstream_st *stream)
{
    CUresult result = CUDA_SUCCESS;
    for (const struct CUgraphNode_st *node = graph->nodes; result == CUDA_SUCCESS && node != NULL; node = node->next)
        if (node->type == NODE_KERNEL)
            result = fc_run(stream, node->duration_ns, node->permille);
        else if (node->type == NODE_GRAPH)
            result = run_kernels(node->child, stream);
    return result;
}

CUresult fake_cuGraphLaunch(CUgraphExec exec, CUstream given)
{
    struct CUstream_st *stream;
    CUresult result = exec == NULL ? CUDA_ERROR_INVALID_VALUE : fc_stream(given, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    if (stream->capture != NULL)
        return fc_unlock(CUDA_SUCCESS);
    result = free_leftovers(exec);
    result = result == CUDA_SUCCESS ? reserve_all(exec->graph) : result;
    if (result == CUDA_SUCCESS)
        run_memory(exec->graph, stream->context);
    fc_unlock(result);
    return result == CUDA_SUCCESS ? run_kernels(exec->graph, stream) : result;
}

CUresult fake_cuGraphUpload(CUgraphExec exec, CUstream given)
{
    struct CUstream_st *stream;
    CUresult result = exec == NULL ? CUDA_ERROR_INVALID_VALUE : fc_stream(given, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    return fc_unlock(reserve_all(exec->graph));
}

/* -- the store's figures -------------------------------------------------------------------------------------- */

CUresult fake_cuDeviceGraphMemTrim(CUdevice index)
{
    CUresult result = fc_known(index);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    struct fc_device *device = &fc_devices[index];
    card_give(device->card, device->graph_reserved - device->graph_used, CARD_GRAPH);
    device->graph_reserved = device->graph_used;
    return fc_unlock(CUDA_SUCCESS);
}

static uint64_t *figure(struct fc_device *device, int attribute)
{
    switch (attribute) {
    case CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT: return &device->graph_used;
    case CU_GRAPH_MEM_ATTR_USED_MEM_HIGH: return &device->graph_used_high;
    case CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT: return &device->graph_reserved;
    case CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH: return &device->graph_reserved_high;
    default: return NULL;
    }
}

CUresult fake_cuDeviceGetGraphMemAttribute(CUdevice device, int attribute, void *value)
{
    CUresult result = value == NULL ? CUDA_ERROR_INVALID_VALUE : fc_known(device);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    const uint64_t *from = figure(&fc_devices[device], attribute);
    if (from != NULL)
        *(cuuint64_t *)value = *from;
    return fc_unlock(from != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

CUresult fake_cuDeviceSetGraphMemAttribute(CUdevice device, int attribute, void *value)
{
    bool high = attribute == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH || attribute == CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH;
    CUresult result = value == NULL || !high || *(cuuint64_t *)value != 0 ? CUDA_ERROR_INVALID_VALUE : fc_known(device);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    *figure(&fc_devices[device], attribute) = *figure(&fc_devices[device], attribute - 1);
    return fc_unlock(CUDA_SUCCESS);
}
