/* SPDX-License-Identifier: Apache-2.0 */
/*
 * graphs.c: memory that graphs allocate, whether by nodes or captured from streams.
 *
 * A graph's entry holds the sum of its memory nodes, an executable graph's entry takes it over. Memory is taken when an
 * executable graph is first uploaded or launched, from one reserve per device. So before that call the charge of the device's
 * graph memory is raised by the graph's sum, and afterwards lowered to the driver's figure of the reserve. It stays with the
 * executable graph until a trim: launches in between take nothing new and skip all this.
 *
 * A graph whose memory nodes lie on several devices is charged to the device of the latest one.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "cuda_shim.h"

static struct {
    pthread_mutex_t lock;
    struct hami_hold hold;
    _Atomic uint32_t trims; /* an executable graph that was launched before the latest trim must be admitted anew */
    CUdevice ordinal;
} memory[HAMI_MAX_DEVICES] = {[0 ... HAMI_MAX_DEVICES - 1] = {.lock = PTHREAD_MUTEX_INITIALIZER, .trims = 1}};

/* tag: pages of 2 MiB (40 bits), and above them the number of trims at the latest launch (0: never) */
#define PAGE (2 * CUDA_MIB)
#define PAGES(tag) ((tag) & 0xFFFFFFFFFFull)
#define TRIMS(tag) ((uint32_t)((tag) >> 40))
#define TAG(pages, trims) ((uint64_t)(pages) | (uint64_t)((trims) & 0xFFFFFFu) << 40)

void cuda_graphs_reset(void) {
    for (int device = 0; device < HAMI_MAX_DEVICES; device++) {
        (void)pthread_mutex_init(&memory[device].lock, NULL);
        memory[device].hold = (struct hami_hold){.device = HAMI_NO_DEVICE};
    }
}

static bool ours(int device) { return device >= 0 && device < HAMI_MAX_DEVICES; }

static void set(uint64_t key, int device, uint64_t tag) {
    struct hami_hold nothing = {.device = device};
    struct hami_entry old;
    (void)hami_book_take(HAMI_BOOK_GRAPH, key, &old);
    (void)hami_book_keep(HAMI_BOOK_GRAPH, key, &nothing, 0, tag);
}

static void forget(const void *handle) {
    struct hami_entry entry;
    (void)hami_book_take(HAMI_BOOK_GRAPH, cuda_key(handle), &entry);
}

static void grow_pages(uint64_t key, int device, uint64_t pages) {
    struct hami_entry entry;
    uint64_t before = hami_book_find(HAMI_BOOK_GRAPH, key, &entry) ? PAGES(entry.tag) : 0;
    if (pages != 0) set(key, device, TAG(before + pages, 0));
}

void cuda_graph_grow(CUgraph graph, int device, uint64_t bytes) { grow_pages(cuda_key(graph), device, cuda_round_up(bytes, PAGE) / PAGE); }

static void inherit(const void *to, const void *from) {
    struct hami_entry entry;
    if (hami_book_find(HAMI_BOOK_GRAPH, cuda_key(from), &entry)) grow_pages(cuda_key(to), entry.hold.device, PAGES(entry.tag));
}

/* -- the device's reserve; under its lock --------------------------------------------------------------------------- */

static enum hami_verdict charge(int device, uint64_t bytes) {
    struct hami_hold *hold = &memory[device].hold;
    if (bytes == 0) {
        hami_give_back(hold);
        return HAMI_OK;
    }
    return hold->bytes == 0 ? hami_reserve(device, bytes, hold) : hami_settle(hold, bytes);
}

static bool settle(int device) {
    cuDeviceGetGraphMemAttribute_fn get = cuda_real_cuDeviceGetGraphMemAttribute();
    cuuint64_t reserved = 0;
    if (get == NULL || get(memory[device].ordinal, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, &reserved) != CUDA_SUCCESS) return true;
    return charge(device, reserved) == HAMI_OK;
}

static bool trim(int device) {
    cuDeviceGraphMemTrim_fn real = cuda_real_cuDeviceGraphMemTrim();
    uint64_t before = memory[device].hold.bytes;
    if (real == NULL || real(memory[device].ordinal) != CUDA_SUCCESS) return false;
    (void)atomic_fetch_add_explicit(&memory[device].trims, 1, memory_order_relaxed);
    (void)settle(device);
    return memory[device].hold.bytes < before;
}

static enum hami_verdict admit(int device, uint64_t bytes) {
    (void)settle(device);
    enum hami_verdict verdict = charge(device, memory[device].hold.bytes + bytes);
    if (verdict != HAMI_OVER_LIMIT) return verdict;
    bool room = trim(device);
    room = cuda_pools_release(device) || room;
    return room ? charge(device, memory[device].hold.bytes + bytes) : verdict;
}

/* -- leave to grow: locked from enter to leave, when there is anything to do at all ---------------------------------- */

struct leave {
    int device; /* HAMI_NO_DEVICE: nothing to do, nothing locked */
    uint64_t pages;
};

static enum hami_verdict enter(const void *handle, bool instantiating, struct leave *leave) {
    struct hami_entry entry;
    leave->device = HAMI_NO_DEVICE;
    if (!hami_book_find(HAMI_BOOK_GRAPH, cuda_key(handle), &entry) || !ours(entry.hold.device)) return HAMI_OK;
    int device = entry.hold.device;
    uint32_t trims = atomic_load_explicit(&memory[device].trims, memory_order_relaxed) & 0xFFFFFFu;
    if (!instantiating && TRIMS(entry.tag) == trims) return HAMI_OK;
    cuda_watch_forks();
    leave->device = device;
    leave->pages = PAGES(entry.tag);
    (void)pthread_mutex_lock(&memory[device].lock);
    CUdevice ordinal;
    if (cuda_current(&ordinal) && cuda_index(ordinal) == device) memory[device].ordinal = ordinal;
    enum hami_verdict verdict = admit(device, leave->pages * PAGE);
    if (verdict == HAMI_OK) return verdict;
    (void)pthread_mutex_unlock(&memory[device].lock);
    leave->device = HAMI_NO_DEVICE;
    return verdict;
}

static void leave_with(const struct leave *leave, const void *exec, bool launched) {
    if (leave->device == HAMI_NO_DEVICE) return;
    (void)settle(leave->device);
    uint32_t trims = launched ? atomic_load_explicit(&memory[leave->device].trims, memory_order_relaxed) : 0;
    (void)pthread_mutex_unlock(&memory[leave->device].lock);
    if (exec != NULL) set(cuda_key(exec), leave->device, TAG(leave->pages, trims));
}

CUresult cuda_graph_launch(CUgraphExec exec, CUresult (*call)(CUgraphExec, CUstream), CUstream stream) {
    struct leave leave;
    enum hami_verdict verdict = enter(exec, false, &leave);
    if (verdict != HAMI_OK) return cuda_refusal(verdict);
    CUresult result = call(exec, stream);
    leave_with(&leave, exec, result == CUDA_SUCCESS);
    return result;
}

CUresult cuda_hook_cuGraphUpload(cuGraphUpload_fn real, CUgraphExec exec, CUstream stream) { return cuda_graph_launch(exec, real, stream); }

/* -- instantiation: some flags upload at once ------------------------------------------------------------------------ */

#define INSTANTIATE(call)                                       \
    struct leave leave;                                         \
    enum hami_verdict verdict = enter(graph, true, &leave);     \
    if (verdict != HAMI_OK) return cuda_refusal(verdict);       \
    CUresult result = call;                                     \
    leave_with(&leave, result == CUDA_SUCCESS ? *out : NULL, false); \
    return result

CUresult cuda_hook_cuGraphInstantiate(cuGraphInstantiate_fn real, CUgraphExec *out, CUgraph graph, CUgraphNode *error, char *log, size_t room) {
    INSTANTIATE(real(out, graph, error, log, room));
}

CUresult cuda_hook_cuGraphInstantiate_v2(cuGraphInstantiate_v2_fn real, CUgraphExec *out, CUgraph graph, CUgraphNode *error, char *log, size_t room) {
    INSTANTIATE(real(out, graph, error, log, room));
}

CUresult cuda_hook_cuGraphInstantiateWithFlags(cuGraphInstantiateWithFlags_fn real, CUgraphExec *out, CUgraph graph, unsigned long long flags) {
    INSTANTIATE(real(out, graph, flags));
}

CUresult cuda_hook_cuGraphInstantiateWithParams(cuGraphInstantiateWithParams_fn real, CUgraphExec *out, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS *params) {
    INSTANTIATE(real(out, graph, params));
}

static void updated(CUgraphExec exec, CUgraph graph) {
    struct hami_entry from;
    if (hami_book_find(HAMI_BOOK_GRAPH, cuda_key(graph), &from)) set(cuda_key(exec), from.hold.device, TAG(PAGES(from.tag), 0));
}

CUresult cuda_hook_cuGraphExecUpdate(cuGraphExecUpdate_fn real, CUgraphExec exec, CUgraph graph, CUgraphNode *error, int *answer) {
    CUresult result = real(exec, graph, error, answer);
    if (result == CUDA_SUCCESS) updated(exec, graph);
    return result;
}

CUresult cuda_hook_cuGraphExecUpdate_v2(cuGraphExecUpdate_v2_fn real, CUgraphExec exec, CUgraph graph, void *info) {
    CUresult result = real(exec, graph, info);
    if (result == CUDA_SUCCESS) updated(exec, graph);
    return result;
}

/* -- nodes ---------------------------------------------------------------------------------------------------------- */

static void node_added(CUgraph graph, const CUDA_MEM_ALLOC_NODE_PARAMS *alloc) {
    if (alloc->pool.location.type == CU_MEM_LOCATION_TYPE_DEVICE) cuda_graph_grow(graph, cuda_index(alloc->pool.location.id), alloc->bytes);
}

CUresult cuda_hook_cuGraphAddMemAllocNode(cuGraphAddMemAllocNode_fn real, CUgraphNode *out, CUgraph graph, const CUgraphNode *after, size_t count,
                                          CUDA_MEM_ALLOC_NODE_PARAMS *params) {
    CUresult result = real(out, graph, after, count, params);
    if (result == CUDA_SUCCESS) node_added(graph, params);
    return result;
}

static void any_node_added(CUgraph graph, const CUgraphNodeParams *params) {
    if (params->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC) node_added(graph, &params->of.alloc);
    if (params->type == CU_GRAPH_NODE_TYPE_GRAPH) inherit(graph, params->of.child.graph);
}

CUresult cuda_hook_cuGraphAddNode(cuGraphAddNode_fn real, CUgraphNode *out, CUgraph graph, const CUgraphNode *after, size_t count, CUgraphNodeParams *params) {
    CUresult result = real(out, graph, after, count, params);
    if (result == CUDA_SUCCESS) any_node_added(graph, params);
    return result;
}

CUresult cuda_hook_cuGraphAddNode_v2(cuGraphAddNode_v2_fn real, CUgraphNode *out, CUgraph graph, const CUgraphNode *after, const void *edges, size_t count,
                                     CUgraphNodeParams *params) {
    CUresult result = real(out, graph, after, edges, count, params);
    if (result == CUDA_SUCCESS) any_node_added(graph, params);
    return result;
}

CUresult cuda_hook_cuGraphAddNode_v3(cuGraphAddNode_v3_fn real, CUgraphNode *out, CUgraph graph, const CUgraphNode *after, const void *edges, size_t count,
                                     CUgraphNodeParams *params) {
    CUresult result = real(out, graph, after, edges, count, params);
    if (result == CUDA_SUCCESS) any_node_added(graph, params);
    return result;
}

CUresult cuda_hook_cuGraphAddChildGraphNode(cuGraphAddChildGraphNode_fn real, CUgraphNode *out, CUgraph graph, const CUgraphNode *after, size_t count, CUgraph child) {
    CUresult result = real(out, graph, after, count, child);
    if (result == CUDA_SUCCESS) inherit(graph, child);
    return result;
}

CUresult cuda_hook_cuGraphClone(cuGraphClone_fn real, CUgraph *out, CUgraph graph) {
    CUresult result = real(out, graph);
    if (result == CUDA_SUCCESS) inherit(*out, graph);
    return result;
}

CUresult cuda_hook_cuGraphDestroy(cuGraphDestroy_fn real, CUgraph graph) {
    CUresult result = real(graph);
    if (result == CUDA_SUCCESS) forget(graph);
    return result;
}

CUresult cuda_hook_cuGraphExecDestroy(cuGraphExecDestroy_fn real, CUgraphExec exec) {
    struct hami_entry entry;
    bool had = hami_book_find(HAMI_BOOK_GRAPH, cuda_key(exec), &entry);
    CUresult result = real(exec);
    if (!had || result != CUDA_SUCCESS) return result;
    forget(exec);
    if (ours(entry.hold.device)) cuda_graph_memory_forget(entry.hold.device);
    return result;
}

/* -- the device's graph memory -------------------------------------------------------------------------------------- */

CUresult cuda_hook_cuDeviceGraphMemTrim(cuDeviceGraphMemTrim_fn real, CUdevice ordinal) {
    int device = cuda_index(ordinal);
    if (!ours(device)) return real(ordinal);
    (void)pthread_mutex_lock(&memory[device].lock);
    memory[device].ordinal = ordinal;
    CUresult result = real(ordinal);
    if (result == CUDA_SUCCESS) (void)atomic_fetch_add_explicit(&memory[device].trims, 1, memory_order_relaxed);
    (void)settle(device);
    (void)pthread_mutex_unlock(&memory[device].lock);
    return result;
}

bool cuda_graph_memory_release(int device) {
    if (!ours(device) || pthread_mutex_trylock(&memory[device].lock) != 0) return false;
    bool released = memory[device].hold.bytes != 0 && trim(device);
    (void)pthread_mutex_unlock(&memory[device].lock);
    return released;
}

void cuda_graph_memory_forget(int device) {
    if (!ours(device)) return;
    (void)pthread_mutex_lock(&memory[device].lock);
    if (memory[device].hold.bytes != 0) (void)settle(device);
    (void)pthread_mutex_unlock(&memory[device].lock);
}
