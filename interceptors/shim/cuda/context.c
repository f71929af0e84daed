/* SPDX-License-Identifier: Apache-2.0 */
/*
 * context.c: what contexts cost, and what goes with them.
 *
 * A context takes hundreds of megabytes that no allocation call shows. The policy may say how much; otherwise the container's
 * first context is measured, and its figure serves every later process. While it is measured the rest of the limit is
 * reserved, so that it cannot be exceeded meanwhile.
 *
 * A device's primary context is made by the first of any number of retains and goes with the last release, or with a reset.
 * When the last context of this process on a device goes, all that was allocated there goes with it.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "cuda_shim.h"

#define MOST (4096 * CUDA_MIB)      /* no context takes more */
#define UNMEASURED (512 * CUDA_MIB) /* charged where nothing could be measured: more than current drivers take */

static struct {
    pthread_mutex_t lock;
    unsigned int references;
    uint64_t context;
} primary[CUDA_DEVICES] = {[0 ... CUDA_DEVICES - 1] = {.lock = PTHREAD_MUTEX_INITIALIZER}};

static _Atomic int living[HAMI_MAX_DEVICES]; /* contexts of this process by policy index */

void cuda_contexts_reset(void) {
    for (int device = 0; device < CUDA_DEVICES; device++) {
        (void)pthread_mutex_init(&primary[device].lock, NULL);
        primary[device].references = 0;
        primary[device].context = 0;
    }
    for (int device = 0; device < HAMI_MAX_DEVICES; device++) atomic_store(&living[device], 0);
}

static uint64_t primary_key(CUdevice device) { return (uint64_t)device + 1; } /* no context has such an address */

/* -- making ------------------------------------------------------------------------------------------------------------ */

struct creation {
    CUdevice ordinal;
    int device;
    struct hami_hold hold;
    bool measuring, known;
    uint64_t before;
};

static enum hami_verdict begin(CUdevice ordinal, struct creation *c) {
    *c = (struct creation){.ordinal = ordinal, .device = cuda_index(ordinal)};
    uint64_t bytes = hami_context_bytes(c->device);
    if (bytes == 0) {
        hami_measure_begin();
        bytes = hami_context_bytes(c->device); /* another process may have measured while we waited */
        c->measuring = bytes == 0;
        if (!c->measuring) hami_measure_end();
    }
    if (!c->measuring) return cuda_reserve(c->device, bytes, &c->hold);
    c->known = cuda_card_used(ordinal, &c->before);
    enum hami_verdict verdict = hami_reserve_rest(c->device, 1, MOST, &c->hold);
    if (verdict != HAMI_OK) hami_measure_end();
    return verdict;
}

static uint64_t cost(const struct creation *c) {
    uint64_t after;
    if (!c->measuring) return c->hold.bytes;
    if (c->known && cuda_card_used(c->ordinal, &after) && after >= c->before) return after - c->before;
    return c->hold.bytes < UNMEASURED ? c->hold.bytes : UNMEASURED;
}

static void failed(struct creation *c) {
    hami_give_back(&c->hold);
    if (c->measuring) hami_measure_end();
}

/* HAMI_OVER_LIMIT: it took more than there was room for, and must be undone by the caller. */
static enum hami_verdict made(struct creation *c, uint64_t key) {
    uint64_t bytes = cost(c);
    enum hami_verdict verdict = hami_book_keep(HAMI_BOOK_CONTEXT, key, &c->hold, bytes, (uint64_t)c->ordinal);
    if (c->measuring && bytes != 0) hami_context_measured(c->device, bytes);
    if (verdict != HAMI_OK) {
        failed(c);
        return verdict;
    }
    if (c->measuring) hami_measure_end();
    if (c->device >= 0) (void)atomic_fetch_add(&living[c->device], 1);
    return HAMI_OK;
}

/* -- going ------------------------------------------------------------------------------------------------------------- */

static bool on_device(const struct hami_entry *entry, void *device) { return entry->hold.device == *(int *)device; }

static void sweep(int device) {
    (void)hami_linear_sweep(&cuda_linear, on_device, &device);
    (void)hami_book_sweep(HAMI_BOOK_ARRAY, on_device, &device);
    (void)hami_book_sweep(HAMI_BOOK_OTHER, on_device, &device);
    cuda_pools_forget(device);
    cuda_graph_memory_forget(device);
}

static void gone(uint64_t key, uint64_t context) {
    struct hami_entry entry;
    hami_sample_forget(context);
    if (!hami_book_take(HAMI_BOOK_CONTEXT, key, &entry)) return;
    int device = entry.hold.device;
    hami_give_back(&entry.hold);
    /* What lived in one of several contexts cannot be told apart: it stays charged until the last of them goes. */
    if (device >= 0 && atomic_fetch_sub(&living[device], 1) == 1) sweep(device);
}

/* -- contexts of their own ------------------------------------------------------------------------------------------- */

static void destroy(CUcontext context) {
    cuCtxDestroy_v2_fn real = cuda_real_cuCtxDestroy_v2();
    if (real != NULL) (void)real(context);
}

static CUresult finish(struct creation *c, CUresult result, CUcontext *out) {
    if (result != CUDA_SUCCESS) {
        failed(c);
        return result;
    }
    enum hami_verdict verdict = made(c, cuda_key(*out));
    if (verdict == HAMI_OK) return result;
    destroy(*out);
    return cuda_refusal(verdict);
}

/* Without a place for its answer, or on a device that the driver does not know, the call fails there, and nothing is to be charged. */
#define CREATE(device, call)                                  \
    struct creation creation;                                 \
    if (out == NULL || !cuda_there(device)) return call;      \
    enum hami_verdict verdict = begin(device, &creation);     \
    if (verdict != HAMI_OK) return cuda_refusal(verdict);     \
    return finish(&creation, call, out)

CUresult cuda_hook_cuCtxCreate(cuCtxCreate_fn real, CUcontext *out, unsigned int flags, CUdevice device) { CREATE(device, real(out, flags, device)); }

CUresult cuda_hook_cuCtxCreate_v2(cuCtxCreate_v2_fn real, CUcontext *out, unsigned int flags, CUdevice device) { CREATE(device, real(out, flags, device)); }

CUresult cuda_hook_cuCtxCreate_v3(cuCtxCreate_v3_fn real, CUcontext *out, void *affinity, int count, unsigned int flags, CUdevice device) {
    CREATE(device, real(out, affinity, count, flags, device));
}

CUresult cuda_hook_cuCtxCreate_v4(cuCtxCreate_v4_fn real, CUcontext *out, void *params, unsigned int flags, CUdevice device) {
    CREATE(device, real(out, params, flags, device));
}

CUresult cuda_hook_cuGLCtxCreate(cuGLCtxCreate_fn real, CUcontext *out, unsigned int flags, CUdevice device) { CREATE(device, real(out, flags, device)); }

CUresult cuda_hook_cuGLCtxCreate_v2(cuGLCtxCreate_v2_fn real, CUcontext *out, unsigned int flags, CUdevice device) { CREATE(device, real(out, flags, device)); }

CUresult cuda_hook_cuVDPAUCtxCreate(cuVDPAUCtxCreate_fn real, CUcontext *out, unsigned int flags, CUdevice device, uint32_t display, void *get) {
    CREATE(device, real(out, flags, device, display, get));
}

CUresult cuda_hook_cuVDPAUCtxCreate_v2(cuVDPAUCtxCreate_v2_fn real, CUcontext *out, unsigned int flags, CUdevice device, uint32_t display, void *get) {
    CREATE(device, real(out, flags, device, display, get));
}

CUresult cuda_hook_cuCtxDestroy_v2(cuCtxDestroy_v2_fn real, CUcontext context) {
    CUresult result = real(context);
    if (result == CUDA_SUCCESS) gone(cuda_key(context), cuda_key(context));
    return result;
}

CUresult cuda_hook_cuCtxDestroy(cuCtxDestroy_fn real, CUcontext context) { return cuda_hook_cuCtxDestroy_v2(real, context); }

/* -- the primary context --------------------------------------------------------------------------------------------- */

static bool in_range(CUdevice device) { return device >= 0 && device < CUDA_DEVICES; }

static void release_primary(CUdevice device) {
    cuDevicePrimaryCtxRelease_v2_fn real = cuda_real_cuDevicePrimaryCtxRelease_v2();
    if (real != NULL) (void)real(device);
}

static void lock(CUdevice device) {
    cuda_watch_forks();
    (void)pthread_mutex_lock(&primary[device].lock);
}

/* Under primary[device].lock; a first reference is charged, later ones cost nothing. */
static enum hami_verdict before_reference(CUdevice device, struct creation *c, bool *first) {
    *first = primary[device].references == 0;
    return *first ? begin(device, c) : HAMI_OK;
}

static enum hami_verdict after_reference(CUdevice device, struct creation *c, bool first, bool taken) {
    enum hami_verdict verdict = HAMI_OK;
    if (first && !taken) failed(c);
    if (first && taken) verdict = made(c, primary_key(device));
    if (taken && verdict == HAMI_OK) primary[device].references++;
    return verdict;
}

static void drop_reference(CUdevice device) {
    if (primary[device].references == 0 || --primary[device].references != 0) return;
    gone(primary_key(device), primary[device].context);
}

CUresult cuda_hook_cuDevicePrimaryCtxRetain(cuDevicePrimaryCtxRetain_fn real, CUcontext *out, CUdevice device) {
    struct creation c;
    bool first;
    if (out == NULL || !in_range(device) || !cuda_there(device)) return real(out, device);
    lock(device);
    enum hami_verdict verdict = before_reference(device, &c, &first);
    CUresult result = verdict == HAMI_OK ? real(out, device) : cuda_refusal(verdict);
    if (verdict == HAMI_OK) {
        verdict = after_reference(device, &c, first, result == CUDA_SUCCESS);
        if (verdict != HAMI_OK) {
            release_primary(device);
            result = cuda_refusal(verdict);
        } else if (result == CUDA_SUCCESS) {
            primary[device].context = cuda_key(*out);
        }
    }
    (void)pthread_mutex_unlock(&primary[device].lock);
    return result;
}

CUresult cuda_hook_cuDevicePrimaryCtxRelease_v2(cuDevicePrimaryCtxRelease_v2_fn real, CUdevice device) {
    if (!in_range(device)) return real(device);
    lock(device);
    CUresult result = real(device);
    if (result == CUDA_SUCCESS) drop_reference(device);
    (void)pthread_mutex_unlock(&primary[device].lock);
    return result;
}

CUresult cuda_hook_cuDevicePrimaryCtxRelease(cuDevicePrimaryCtxRelease_fn real, CUdevice device) { return cuda_hook_cuDevicePrimaryCtxRelease_v2(real, device); }

CUresult cuda_hook_cuDevicePrimaryCtxReset_v2(cuDevicePrimaryCtxReset_v2_fn real, CUdevice device) {
    if (!in_range(device)) return real(device);
    lock(device);
    CUresult result = real(device);
    if (result == CUDA_SUCCESS && primary[device].references != 0) {
        primary[device].references = 1;
        drop_reference(device);
    }
    (void)pthread_mutex_unlock(&primary[device].lock);
    return result;
}

CUresult cuda_hook_cuDevicePrimaryCtxReset(cuDevicePrimaryCtxReset_fn real, CUdevice device) { return cuda_hook_cuDevicePrimaryCtxReset_v2(real, device); }

/* -- green contexts hold the primary context for as long as they live -------------------------------------------------- */

CUresult cuda_hook_cuGreenCtxCreate(cuGreenCtxCreate_fn real, CUgreenCtx *out, void *description, CUdevice device, unsigned int flags) {
    struct creation c;
    bool first;
    if (out == NULL || !in_range(device) || !cuda_there(device)) return real(out, description, device, flags);
    lock(device);
    enum hami_verdict verdict = before_reference(device, &c, &first);
    CUresult result = verdict == HAMI_OK ? real(out, description, device, flags) : cuda_refusal(verdict);
    if (verdict == HAMI_OK) verdict = after_reference(device, &c, first, result == CUDA_SUCCESS);
    struct hami_hold nothing = {.device = cuda_index(device)};
    if (result == CUDA_SUCCESS && verdict == HAMI_OK)
        (void)hami_book_keep(HAMI_BOOK_CONTEXT, cuda_key(*out), &nothing, 0, (uint64_t)device);
    (void)pthread_mutex_unlock(&primary[device].lock);
    if (verdict == HAMI_OK || result != CUDA_SUCCESS) return result;
    cuGreenCtxDestroy_fn undo = cuda_real_cuGreenCtxDestroy();
    if (undo != NULL) (void)undo(*out);
    return cuda_refusal(verdict);
}

CUresult cuda_hook_cuGreenCtxDestroy(cuGreenCtxDestroy_fn real, CUgreenCtx context) {
    struct hami_entry entry;
    bool ours = hami_book_take(HAMI_BOOK_CONTEXT, cuda_key(context), &entry);
    CUresult result = real(context);
    if (!ours) return result;
    if (result != CUDA_SUCCESS) {
        hami_book_return(HAMI_BOOK_CONTEXT, &entry);
        return result;
    }
    CUdevice device = (CUdevice)entry.tag;
    lock(device);
    drop_reference(device);
    (void)pthread_mutex_unlock(&primary[device].lock);
    return result;
}

/* -- the device's own heaps, and points where memory may have gone ----------------------------------------------------- */

/* What a context has from the start is part of its cost; only what is asked beyond it is charged here. */
static uint64_t beyond_default(int limit, uint64_t bytes) {
    uint64_t start = limit == CU_LIMIT_MALLOC_HEAP_SIZE ? 8 * CUDA_MIB : CUDA_MIB;
    return bytes > start ? cuda_round_up(bytes - start, cuda_linear.granule) : 0;
}

CUresult cuda_hook_cuCtxSetLimit(cuCtxSetLimit_fn real, int limit, size_t bytes) {
    uint64_t context = cuda_context();
    if (context == 0 || (limit != CU_LIMIT_MALLOC_HEAP_SIZE && limit != CU_LIMIT_PRINTF_FIFO_SIZE)) return real(limit, bytes);
    uint64_t more = beyond_default(limit, bytes);
    struct hami_hold hold;
    enum hami_verdict verdict = cuda_reserve(cuda_device(), more, &hold);
    if (verdict != HAMI_OK) return cuda_refusal(verdict);
    CUresult result = real(limit, bytes);
    if (result != CUDA_SUCCESS) hami_give_back(&hold);
    else (void)hami_book_keep(HAMI_BOOK_OTHER, context + (uint64_t)limit, &hold, more, 0); /* replaces the figure before */
    return result;
}

CUresult cuda_hook_cuCtxSynchronize(cuCtxSynchronize_fn real) {
    CUresult result = real();
    cuda_pools_settle();
    return result;
}

CUresult cuda_hook_cuCtxSynchronize_v2(cuCtxSynchronize_v2_fn real, CUcontext context) {
    CUresult result = real(context);
    cuda_pools_settle();
    return result;
}

CUresult cuda_hook_cuStreamSynchronize(cuStreamSynchronize_fn real, CUstream stream) {
    CUresult result = real(stream);
    cuda_pools_settle();
    return result;
}

CUresult cuda_hook_cuEventSynchronize(cuEventSynchronize_fn real, CUevent event) {
    CUresult result = real(event);
    cuda_pools_settle();
    return result;
}
