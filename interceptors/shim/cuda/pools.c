/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pools.c: stream-ordered allocation. What counts is what a pool has *reserved* from the device, not what is handed out of it.
 *
 * Each pool has one hold and one process-local lock. Under it, before the driver is asked, the hold is raised by the most the
 * pool can grow for this request; afterwards it is lowered to the driver's own figure. The reserve grows nowhere else, so what
 * is charged is never less than what is taken. It shrinks at frees, trims and synchronisation: there the figure is read again.
 *
 * Near the limit a request that fits in the pool's idle part is let through without a raise: refusing would break a program
 * that frees and allocates the same block again and again. Should fragmentation make the driver grow the pool all the same,
 * and the limit has no room for it, the block is freed, the pool trimmed, and out-of-memory answered.
 *
 * While a stream is being captured nothing is taken: the request is a node of a graph (capture.c, graphs.c).
 */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "cuda_shim.h"

#define POOLS 512
#define GROWTH (32 * CUDA_MIB) /* the driver extends a pool by at least this, and in multiples of it */

struct pool {
    _Atomic(CUmemoryPool) handle;
    int device;    /* policy index */
    bool on_host;  /* not device memory: not charged */
    pthread_mutex_t lock;
    struct hami_hold hold;
};

static struct pool pools[POOLS];
static _Atomic unsigned int pool_count;
static pthread_mutex_t adding = PTHREAD_MUTEX_INITIALIZER;

static struct pool *find(CUmemoryPool handle) {
    unsigned int count = atomic_load_explicit(&pool_count, memory_order_acquire);
    for (unsigned int i = 0; i < count; i++)
        if (atomic_load_explicit(&pools[i].handle, memory_order_acquire) == handle) return &pools[i];
    return NULL;
}

static struct pool *vacant(unsigned int count) {
    for (unsigned int i = 0; i < count; i++)
        if (atomic_load_explicit(&pools[i].handle, memory_order_relaxed) == NULL && pools[i].hold.bytes == 0) return &pools[i];
    if (count == POOLS) return NULL;
    (void)pthread_mutex_init(&pools[count].lock, NULL);
    return &pools[count];
}

void cuda_pools_reset(void) {
    memset(pools, 0, sizeof pools); /* locks are made when an entry is first used */
    atomic_store(&pool_count, 0);
    (void)pthread_mutex_init(&adding, NULL);
}

static struct pool *remember(CUmemoryPool handle, int device, bool on_host) {
    cuda_watch_forks();
    (void)pthread_mutex_lock(&adding);
    struct pool *pool = find(handle);
    unsigned int count = atomic_load_explicit(&pool_count, memory_order_relaxed);
    if (pool == NULL && (pool = vacant(count)) != NULL) {
        pool->device = device;
        pool->on_host = on_host;
        atomic_store_explicit(&pool->handle, handle, memory_order_release);
        if (pool == &pools[count]) atomic_store_explicit(&pool_count, count + 1, memory_order_release);
    }
    (void)pthread_mutex_unlock(&adding);
    return pool;
}

static bool ask(CUmemoryPool handle, int attribute, uint64_t *value) {
    cuMemPoolGetAttribute_fn get = cuda_real_cuMemPoolGetAttribute();
    cuuint64_t answer = 0;
    if (get == NULL || get(handle, attribute, &answer) != CUDA_SUCCESS) return false;
    *value = answer;
    return true;
}

/* -- the hold; all of these under the pool's lock ------------------------------------------------------------------- */

static enum hami_verdict charge(struct pool *pool, uint64_t bytes) {
    if (bytes == 0) {
        hami_give_back(&pool->hold);
        return HAMI_OK;
    }
    return pool->hold.bytes == 0 ? hami_reserve(pool->device, bytes, &pool->hold) : hami_settle(&pool->hold, bytes);
}

static enum hami_verdict charge_reserved(struct pool *pool) {
    uint64_t reserved;
    return ask(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved) ? charge(pool, reserved) : HAMI_OK;
}

static bool trim(struct pool *pool) {
    cuMemPoolTrimTo_fn real = cuda_real_cuMemPoolTrimTo();
    uint64_t before = pool->hold.bytes;
    if (real != NULL) (void)real(pool->handle, 0);
    (void)charge_reserved(pool);
    return pool->hold.bytes < before;
}

static bool fits_idle(const struct pool *pool, uint64_t bytes) {
    uint64_t reserved, used;
    if (!ask(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved) || !ask(pool->handle, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used)) return false;
    return reserved >= used && reserved - used >= bytes;
}

static enum hami_verdict admit(struct pool *pool, uint64_t bytes) {
    uint64_t growth = cuda_round_up(bytes == 0 ? 1 : bytes, GROWTH);
    (void)charge_reserved(pool);
    uint64_t most = growth > UINT64_MAX - pool->hold.bytes ? UINT64_MAX : pool->hold.bytes + growth;
    enum hami_verdict verdict = charge(pool, most);
    if (verdict != HAMI_OVER_LIMIT || fits_idle(pool, bytes)) return verdict == HAMI_OVER_LIMIT ? HAMI_OK : verdict;
    bool room = trim(pool);
    room = cuda_pools_release(pool->device) || room;
    room = cuda_graph_memory_release(pool->device) || room;
    return room ? charge(pool, pool->hold.bytes + growth) : verdict;
}

/* -- allocation ----------------------------------------------------------------------------------------------------- */

struct request {
    cuMemAllocAsync_fn plain;
    cuMemAllocFromPoolAsync_fn from_pool;
    CUdeviceptr *out;
    size_t bytes;
    CUmemoryPool pool;
    CUstream stream;
};

static CUresult call(const struct request *r) {
    return r->plain != NULL ? r->plain(r->out, r->bytes, r->stream) : r->from_pool(r->out, r->bytes, r->pool, r->stream);
}

static void undo(const struct request *r, struct pool *pool) {
    cuMemFreeAsync_fn release = cuda_real_cuMemFreeAsync();
    cuStreamSynchronize_fn wait = cuda_real_cuStreamSynchronize();
    if (release != NULL) (void)release(*r->out, r->stream);
    if (wait != NULL) (void)wait(r->stream);
    (void)trim(pool);
}

static CUresult allocate(const struct request *r, struct pool *pool) {
    if (pool->on_host) return call(r);
    (void)pthread_mutex_lock(&pool->lock);
    enum hami_verdict verdict = admit(pool, r->bytes);
    CUresult result = verdict == HAMI_OK ? call(r) : cuda_refusal(verdict);
    if (verdict == HAMI_OK && charge_reserved(pool) != HAMI_OK && result == CUDA_SUCCESS) {
        undo(r, pool);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    (void)pthread_mutex_unlock(&pool->lock);
    return result;
}

static CUdevice device_of(CUstream stream, CUdevice current) {
    cuStreamGetDevice_fn get = cuda_real_cuStreamGetDevice();
    CUdevice device;
    bool special = stream == NULL || stream == CU_STREAM_LEGACY || stream == CU_STREAM_PER_THREAD;
    return !special && get != NULL && get(stream, &device) == CUDA_SUCCESS ? device : current;
}

/* The device of a pool that we did not see made: a device's default pool, else the current device. */
static CUdevice device_of_pool(CUmemoryPool handle, CUdevice current) {
    cuDeviceGetDefaultMemPool_fn get = cuda_real_cuDeviceGetDefaultMemPool();
    cuDeviceGetCount_fn count = cuda_real_cuDeviceGetCount();
    int devices = 0;
    if (get == NULL || count == NULL || count(&devices) != CUDA_SUCCESS) return current;
    for (CUdevice device = 0; device < devices; device++) {
        CUmemoryPool pool = NULL;
        if (get(&pool, device) == CUDA_SUCCESS && pool == handle) return device;
    }
    return current;
}

static CUresult enter(const struct request *r, CUmemoryPool handle, CUdevice device) {
    struct pool *pool = find(handle);
    if (pool == NULL) pool = remember(handle, cuda_index(device), false);
    return pool == NULL ? CUDA_ERROR_OUT_OF_MEMORY : allocate(r, pool);
}

static bool captured(const struct request *r, CUdevice device, CUresult *result) {
    if (!cuda_capturing(r->stream)) return false;
    *result = call(r);
    if (*result == CUDA_SUCCESS) cuda_capture_allocated(r->stream, cuda_index(device), r->bytes);
    return true;
}

CUresult cuda_hook_cuMemAllocAsync(cuMemAllocAsync_fn real, CUdeviceptr *out, size_t bytes, CUstream stream) {
    struct request r = {real, NULL, out, bytes, NULL, stream};
    CUdevice device;
    CUresult result;
    cuDeviceGetMemPool_fn get = cuda_real_cuDeviceGetMemPool();
    if (!cuda_current(&device)) return call(&r);
    device = device_of(stream, device);
    if (captured(&r, device, &result)) return result;
    if (get == NULL) return CUDA_ERROR_NOT_SUPPORTED;
    result = get(&r.pool, device);
    return result == CUDA_SUCCESS ? enter(&r, r.pool, device) : result;
}

CUresult cuda_hook_cuMemAllocFromPoolAsync(cuMemAllocFromPoolAsync_fn real, CUdeviceptr *out, size_t bytes, CUmemoryPool handle, CUstream stream) {
    struct request r = {NULL, real, out, bytes, handle, stream};
    CUdevice device;
    CUresult result;
    if (!cuda_current(&device)) return call(&r);
    device = device_of(stream, device);
    if (captured(&r, device, &result)) return result;
    return enter(&r, handle, find(handle) != NULL ? device : device_of_pool(handle, device));
}

/* -- everything else that can happen to a pool ---------------------------------------------------------------------- */

CUresult cuda_hook_cuMemPoolCreate(cuMemPoolCreate_fn real, CUmemoryPool *out, const CUmemPoolProps *props) {
    CUresult result = real(out, props);
    if (result != CUDA_SUCCESS || props == NULL) return result;
    bool on_device = props->location.type == CU_MEM_LOCATION_TYPE_DEVICE;
    (void)remember(*out, on_device ? cuda_index(props->location.id) : HAMI_NO_DEVICE, !on_device);
    return result;
}

CUresult cuda_hook_cuMemFreeAsync(cuMemFreeAsync_fn real, CUdeviceptr pointer, CUstream stream) {
    struct hami_entry entry;
    bool linear = hami_linear_take(&cuda_linear, pointer, &entry); /* memory of cuMemAlloc may be freed in stream order too */
    bool managed = !linear && hami_book_take(HAMI_BOOK_OTHER, pointer, &entry);
    CUresult result = real(pointer, stream);
    if (linear && result == CUDA_SUCCESS) hami_linear_freed(&cuda_linear, &entry);
    else if (linear) hami_linear_return(&cuda_linear, &entry);
    else if (managed && result == CUDA_SUCCESS) hami_give_back(&entry.hold);
    else if (managed) hami_book_return(HAMI_BOOK_OTHER, &entry);
    else if (result == CUDA_SUCCESS && !cuda_capturing(stream)) cuda_pools_settle();
    return result;
}

CUresult cuda_hook_cuMemPoolTrimTo(cuMemPoolTrimTo_fn real, CUmemoryPool handle, size_t keep) {
    struct pool *pool = find(handle);
    if (pool == NULL || pool->on_host) return real(handle, keep);
    (void)pthread_mutex_lock(&pool->lock);
    CUresult result = real(handle, keep);
    (void)charge_reserved(pool);
    (void)pthread_mutex_unlock(&pool->lock);
    return result;
}

/*
 * A pool may be destroyed with blocks in use: the driver keeps those, and its handle answers no more. What was in use then
 * stays charged until the device's last context goes; the rest is given back at once.
 */
CUresult cuda_hook_cuMemPoolDestroy(cuMemPoolDestroy_fn real, CUmemoryPool handle) {
    struct pool *pool = find(handle);
    if (pool == NULL) return real(handle);
    (void)pthread_mutex_lock(&pool->lock);
    uint64_t used = 0;
    if (!pool->on_host && !ask(handle, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used)) used = 0;
    CUresult result = real(handle);
    if (result == CUDA_SUCCESS) {
        (void)charge(pool, used < pool->hold.bytes ? used : pool->hold.bytes);
        atomic_store_explicit(&pool->handle, NULL, memory_order_release);
    }
    (void)pthread_mutex_unlock(&pool->lock);
    return result;
}

void cuda_pools_settle(void) {
    unsigned int count = atomic_load_explicit(&pool_count, memory_order_acquire);
    for (unsigned int i = 0; i < count; i++) {
        struct pool *pool = &pools[i];
        if (pthread_mutex_trylock(&pool->lock) != 0) continue; /* an allocation is under way: it will read the figure itself */
        if (pool->handle != NULL && pool->hold.bytes != 0) (void)charge_reserved(pool);
        (void)pthread_mutex_unlock(&pool->lock);
    }
}

bool cuda_pools_release(int device) {
    bool released = false;
    unsigned int count = atomic_load_explicit(&pool_count, memory_order_acquire);
    for (unsigned int i = 0; i < count; i++) {
        struct pool *pool = &pools[i];
        if (pool->device != device || pthread_mutex_trylock(&pool->lock) != 0) continue;
        if (pool->handle != NULL && pool->hold.bytes != 0) released = trim(pool) || released;
        (void)pthread_mutex_unlock(&pool->lock);
    }
    return released;
}

void cuda_pools_forget(int device) {
    unsigned int count = atomic_load_explicit(&pool_count, memory_order_acquire);
    for (unsigned int i = 0; i < count; i++) {
        struct pool *pool = &pools[i];
        if (pool->device != device) continue;
        (void)pthread_mutex_lock(&pool->lock);
        uint64_t reserved = 0;
        if (pool->handle != NULL && !ask(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved)) reserved = 0;
        if (reserved < pool->hold.bytes) (void)charge(pool, reserved);
        (void)pthread_mutex_unlock(&pool->lock);
    }
}
