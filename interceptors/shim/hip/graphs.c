/* SPDX-License-Identifier: Apache-2.0 */
/*
 * graphs.c: memory that graphs allocate, whether by nodes or captured from streams.
 *
 * Drivers differ in when they take it: with the node, or with the first launch. So before every call that may take it, the
 * device's charge for graph memory is raised by what the graph asks for in all, and afterwards set to the driver's own figure of
 * its reserve. A launch is let through untouched while nothing has gone back to the device since the graph's last one.
 *
 * Two kinds of entries in one book: a graph's or an executable graph's, whose tag says what it asks for, and one per device,
 * under its number, which holds the charge.
 */
#include "hip_hooks.h"

#include "../common/lock.h"
#include "hip_shim.h"

#define KEY(handle) ((uint64_t)(uintptr_t)(handle))
#define PAGE ((uint64_t)2 << 20)
enum { DEVICES = 64 };

/* tag: pages of 2 MiB (32 bits), the device (8), and how often memory had gone back when it was last launched (24; 0: never) */
#define PAGES(tag) ((tag) & 0xFFFFFFFFu)
#define ORDINAL(tag) ((int)((tag) >> 32 & 0xFF))
#define ROUND(tag) ((uint32_t)((tag) >> 40))
#define TAG(pages, ordinal, round) ((uint64_t)(pages) | (uint64_t)(ordinal) << 32 | (uint64_t)((round) & 0xFFFFFFu) << 40)

static struct {
    struct hami_own_lock lock; /* held from the raise to the settlement */
    _Atomic uint32_t round;
} reserves[DEVICES];

static uint32_t round_of(int ordinal) { return (atomic_load_explicit(&reserves[ordinal].round, memory_order_relaxed) + 1) & 0xFFFFFFu; }

static void set(uint64_t key, uint64_t tag) {
    struct hami_hold nothing = {.device = hip_device_of(ORDINAL(tag))};
    (void)hami_book_keep(HAMI_BOOK_GRAPH, key, &nothing, 0, tag);
}

static void forget(const void *handle) {
    struct hami_entry entry;
    (void)hami_book_take(HAMI_BOOK_GRAPH, KEY(handle), &entry);
}

static void grow(uint64_t key, int ordinal, uint64_t pages) {
    struct hami_entry entry;
    if (pages == 0 || ordinal < 0 || ordinal >= DEVICES) return;
    uint64_t before = hami_book_find(HAMI_BOOK_GRAPH, key, &entry) ? PAGES(entry.tag) : 0;
    set(key, TAG(before + pages, ordinal, 0));
}

static void inherit(const void *to, const void *from) {
    struct hami_entry entry;
    if (hami_book_find(HAMI_BOOK_GRAPH, KEY(from), &entry)) grow(KEY(to), ORDINAL(entry.tag), PAGES(entry.tag));
}

/* -- a device's charge; under its lock ------------------------------------------------------------------------------- */

static uint64_t charged(int ordinal) {
    struct hami_entry all;
    return hami_book_find(HAMI_BOOK_GRAPH, (uint64_t)ordinal + 1, &all) ? all.hold.bytes : 0;
}

static enum hami_verdict charge(int ordinal, uint64_t bytes) {
    struct hami_entry all = {.key = (uint64_t)ordinal + 1};
    enum hami_verdict verdict = HAMI_OK;
    if (hami_book_take(HAMI_BOOK_GRAPH, all.key, &all)) {
        verdict = hami_settle(&all.hold, bytes);
    } else {
        verdict = hami_reserve(hip_device_of(ordinal), bytes, &all.hold);
        if (verdict != HAMI_OK) return verdict;
    }
    uint64_t held = all.hold.bytes;
    (void)hami_book_keep(HAMI_BOOK_GRAPH, (uint64_t)ordinal + 1, &all.hold, held, 0);
    return verdict;
}

/* The driver's own figure is the charge; without one, what was charged stays. */
static void settle(int ordinal) {
    hipDeviceGetGraphMemAttribute_fn get = hip_real_hipDeviceGetGraphMemAttribute();
    uint64_t reserved = 0;
    if (get == NULL || get(ordinal, hipGraphMemAttrReservedMemCurrent, &reserved) != hipSuccess) return;
    if (charge(ordinal, reserved) != HAMI_OK) {
        hami_say_once("graph memory", "device %d: graphs took more than they had asked for, and more than the limit leaves", ordinal);
    }
}

/* Memory may have gone back to the device: who launches next must be admitted anew. */
static void gone_back(int ordinal) {
    (void)atomic_fetch_add_explicit(&reserves[ordinal].round, 1, memory_order_relaxed);
    settle(ordinal);
}

static enum hami_verdict admit(int ordinal, uint64_t bytes) {
    hipDeviceGraphMemTrim_fn trim = hip_real_hipDeviceGraphMemTrim();
    settle(ordinal);
    enum hami_verdict verdict = charge(ordinal, charged(ordinal) + bytes);
    if (verdict != HAMI_OVER_LIMIT || trim == NULL || trim(ordinal) != hipSuccess) return verdict;
    gone_back(ordinal);
    return charge(ordinal, charged(ordinal) + bytes);
}

/* -- leave to grow ---------------------------------------------------------------------------------------------------- */

struct leave {
    bool locked;
    int ordinal;
    uint64_t pages;
};

static enum hami_verdict enter(int ordinal, uint64_t pages, struct leave *leave) {
    *leave = (struct leave){.locked = pages != 0, .ordinal = ordinal, .pages = pages};
    if (!leave->locked) return HAMI_OK;
    hami_own_lock(&reserves[ordinal].lock);
    enum hami_verdict verdict = admit(ordinal, pages * PAGE);
    if (verdict != HAMI_OK) hami_own_unlock(&reserves[ordinal].lock);
    return verdict;
}

static void leave_it(const struct leave *leave) {
    if (!leave->locked) return;
    settle(leave->ordinal);
    hami_own_unlock(&reserves[leave->ordinal].lock);
}

/* `launching`: only when it has not been launched since memory last went back. */
static enum hami_verdict enter_with(const void *handle, bool launching, struct leave *leave) {
    struct hami_entry entry;
    *leave = (struct leave){.locked = false};
    if (!hami_book_find(HAMI_BOOK_GRAPH, KEY(handle), &entry)) return HAMI_OK;
    int ordinal = ORDINAL(entry.tag);
    if (launching && ROUND(entry.tag) == round_of(ordinal)) return HAMI_OK;
    return enter(ordinal, PAGES(entry.tag), leave);
}

hipError_t hip_graph_launch(hipGraphExec_t exec, hipError_t (*call)(hipGraphExec_t, hipStream_t), hipStream_t stream) {
    struct leave leave;
    enum hami_verdict verdict = enter_with(exec, true, &leave);
    if (verdict != HAMI_OK) return hip_refusal(verdict);
    hipError_t result = call(exec, stream);
    if (leave.locked && result == hipSuccess) set(KEY(exec), TAG(leave.pages, leave.ordinal, round_of(leave.ordinal)));
    leave_it(&leave);
    return result;
}

hipError_t hip_hook_hipGraphUpload(hipGraphUpload_fn real, hipGraphExec_t exec, hipStream_t stream) { return hip_graph_launch(exec, real, stream); }

/* -- from a graph to an executable one: what it asks for goes along ---------------------------------------------------- */

#define INSTANTIATE(call)                                                                   \
    struct leave leave;                                                                     \
    enum hami_verdict verdict = enter_with(graph, false, &leave);                           \
    if (verdict != HAMI_OK) return hip_refusal(verdict);                                    \
    hipError_t result = call;                                                               \
    if (leave.locked && result == hipSuccess) set(KEY(*exec), TAG(leave.pages, leave.ordinal, 0)); \
    leave_it(&leave);                                                                       \
    return result

hipError_t hip_hook_hipGraphInstantiate(hipGraphInstantiate_fn real, hipGraphExec_t *exec, hipGraph_t graph, hipGraphNode_t *wrong, char *log, size_t room) {
    INSTANTIATE(real(exec, graph, wrong, log, room));
}

hipError_t hip_hook_hipGraphInstantiateWithFlags(hipGraphInstantiateWithFlags_fn real, hipGraphExec_t *exec, hipGraph_t graph, unsigned long long flags) {
    INSTANTIATE(real(exec, graph, flags));
}

hipError_t hip_hook_hipGraphInstantiateWithParams(hipGraphInstantiateWithParams_fn real, hipGraphExec_t *exec, hipGraph_t graph, void *parameters) {
    INSTANTIATE(real(exec, graph, parameters));
}

hipError_t hip_hook_hipGraphExecUpdate(hipGraphExecUpdate_fn real, hipGraphExec_t exec, hipGraph_t graph, hipGraphNode_t *wrong, int *answer) {
    struct hami_entry from;
    hipError_t result = real(exec, graph, wrong, answer);
    if (result == hipSuccess && hami_book_find(HAMI_BOOK_GRAPH, KEY(graph), &from)) set(KEY(exec), TAG(PAGES(from.tag), ORDINAL(from.tag), 0));
    return result;
}

/* -- nodes -------------------------------------------------------------------------------------------------------------- */

/* A node that allocates; the driver may do so at once. */
#define ADD_ALLOC(alloc, call)                                                                       \
    struct leave leave;                                                                              \
    int ordinal = (alloc).pool.location.id;                                                          \
    uint64_t pages = (alloc).bytes / PAGE + ((alloc).bytes % PAGE != 0);                              \
    if (ordinal < 0 || ordinal >= DEVICES) return call;                                              \
    enum hami_verdict verdict = enter(ordinal, pages, &leave);                                       \
    if (verdict != HAMI_OK) return hip_refusal(verdict);                                             \
    hipError_t result = call;                                                                        \
    if (result == hipSuccess) grow(KEY(graph), ordinal, pages);                                      \
    leave_it(&leave);                                                                                \
    return result

hipError_t hip_hook_hipGraphAddMemAllocNode(hipGraphAddMemAllocNode_fn real, hipGraphNode_t *node, hipGraph_t graph, const hipGraphNode_t *before, size_t count,
                                            hipMemAllocNodeParams *wanted) {
    if (wanted == NULL) return real(node, graph, before, count, wanted);
    ADD_ALLOC(*wanted, real(node, graph, before, count, wanted));
}

hipError_t hip_hook_hipGraphAddNode(hipGraphAddNode_fn real, hipGraphNode_t *node, hipGraph_t graph, const hipGraphNode_t *before, size_t count,
                                    hipGraphNodeParams *wanted) {
    if (wanted == NULL || wanted->type != hipGraphNodeTypeMemAlloc) {
        hipError_t result = real(node, graph, before, count, wanted);
        if (result == hipSuccess && wanted->type == hipGraphNodeTypeGraph) inherit(graph, wanted->of.child.graph);
        return result;
    }
    ADD_ALLOC(wanted->of.alloc, real(node, graph, before, count, wanted));
}

hipError_t hip_hook_hipGraphAddChildGraphNode(hipGraphAddChildGraphNode_fn real, hipGraphNode_t *node, hipGraph_t graph, const hipGraphNode_t *before, size_t count,
                                              hipGraph_t child) {
    hipError_t result = real(node, graph, before, count, child);
    if (result == hipSuccess) inherit(graph, child);
    return result;
}

hipError_t hip_hook_hipGraphClone(hipGraphClone_fn real, hipGraph_t *clone, hipGraph_t graph) {
    hipError_t result = real(clone, graph);
    if (result == hipSuccess) inherit(*clone, graph);
    return result;
}

hipError_t hip_hook_hipGraphDestroy(hipGraphDestroy_fn real, hipGraph_t graph) {
    hipError_t result = real(graph);
    if (result == hipSuccess) forget(graph);
    return result;
}

hipError_t hip_hook_hipGraphExecDestroy(hipGraphExecDestroy_fn real, hipGraphExec_t exec) {
    struct hami_entry entry;
    bool had = hami_book_find(HAMI_BOOK_GRAPH, KEY(exec), &entry);
    hipError_t result = real(exec);
    if (!had || result != hipSuccess) return result;
    forget(exec);
    hip_graph_memory_freed(ORDINAL(entry.tag));
    return result;
}

/* While a stream is captured, to allocate on it is to add a node. */
hipError_t hip_graph_captured(hipMallocFromPoolAsync_fn real, void **out, size_t bytes, hipMemPool_t pool, hipStream_t stream) {
    hipStreamGetCaptureInfo_v2_fn info = hip_real_hipStreamGetCaptureInfo_v2();
    unsigned long long id = 0;
    hipGraph_t graph = NULL;
    int status = hipStreamCaptureStatusNone, ordinal = hip_ordinal();
    struct leave leave;
    uint64_t pages = bytes / PAGE + (bytes % PAGE != 0);
    if (ordinal < 0 || ordinal >= DEVICES) return real(out, bytes, pool, stream);
    enum hami_verdict verdict = enter(ordinal, pages, &leave);
    if (verdict != HAMI_OK) return hip_refusal(verdict);
    hipError_t result = real(out, bytes, pool, stream);
    if (result == hipSuccess && info != NULL && info(stream, &status, &id, &graph, NULL, NULL) == hipSuccess && graph != NULL) grow(KEY(graph), ordinal, pages);
    leave_it(&leave);
    return result;
}

/* -- memory that goes back ----------------------------------------------------------------------------------------------- */

void hip_graph_memory_freed(int ordinal) {
    if (ordinal < 0 || ordinal >= DEVICES || charged(ordinal) == 0) return;
    hami_own_lock(&reserves[ordinal].lock);
    gone_back(ordinal);
    hami_own_unlock(&reserves[ordinal].lock);
}

hipError_t hip_hook_hipDeviceGraphMemTrim(hipDeviceGraphMemTrim_fn real, int ordinal) {
    hipError_t result = real(ordinal);
    if (result == hipSuccess) hip_graph_memory_freed(ordinal);
    return result;
}
