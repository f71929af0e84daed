/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake CUDA driver: stream-ordered memory. A pool grows by at least 32 MiB, keeps what is freed, and gives what lies above
 * its release threshold back at the next synchronisation. What is freed can be used again at once.
 */
#include "fake_cuda.h"

static struct CUmemPoolHandle_st *pools;

static struct CUmemPoolHandle_st *make(int device, bool is_default, uint64_t most)
{
    struct CUmemPoolHandle_st *pool = calloc(1, sizeof *pool);
    *pool = (struct CUmemPoolHandle_st){.device = device, .is_default = is_default, .most = most, .next = pools};
    pools = pool;
    return pool;
}

static struct CUmemPoolHandle_st *default_pool(int device)
{
    struct fc_device *of = &fc_devices[device];
    if (of->default_pool == NULL)
        of->default_pool = make(device, true, 0);
    return of->default_pool;
}

static struct CUmemPoolHandle_st *pool_of(int device)
{
    return fc_devices[device].pool != NULL ? fc_devices[device].pool : default_pool(device);
}

static bool known(const struct CUmemPoolHandle_st *pool)
{
    const struct CUmemPoolHandle_st *at = pools;
    while (at != NULL && at != pool)
        at = at->next;
    return at != NULL;
}

static CUresult grow(struct CUmemPoolHandle_st *pool, uint64_t missing)
{
    uint64_t least = fc_round(missing, FC_GRANULE), growth = least > FC_POOL_GROWTH ? least : FC_POOL_GROWTH;
    if (pool->most != 0 && pool->reserved + growth > pool->most)
        growth = least;
    if (least < missing || (pool->most != 0 && pool->reserved + growth > pool->most))
        return CUDA_ERROR_OUT_OF_MEMORY;
    enum card_answer answer = card_take(fc_card(pool->device), growth, CARD_POOL);
    if (answer == CARD_FULL && growth > least) {
        growth = least; /* nearly full: no more than is needed */
        answer = card_take(fc_card(pool->device), growth, CARD_POOL);
    }
    if (answer == CARD_OK) {
        pool->reserved += growth;
        pool->reserved_high = pool->reserved > pool->reserved_high ? pool->reserved : pool->reserved_high;
    }
    return fc_code(answer);
}

static void shrink(struct CUmemPoolHandle_st *pool, uint64_t keep)
{
    uint64_t down_to = fc_round(pool->used > keep ? pool->used : keep, FC_GRANULE);
    if (pool->reserved <= down_to)
        return;
    card_give(fc_card(pool->device), pool->reserved - down_to, CARD_POOL);
    pool->reserved = down_to;
}

void fc_pools_trim(int device)
{
    for (struct CUmemPoolHandle_st *pool = pools; pool != NULL; pool = pool->next)
        if (pool->device == device)
            shrink(pool, pool->threshold > UINT64_MAX - FC_GRANULE ? UINT64_MAX - UINT64_MAX % FC_GRANULE : pool->threshold);
}

CUresult fc_pool_alloc(struct CUmemPoolHandle_st *pool, struct CUctx_st *context, uint64_t bytes, CUdeviceptr *pointer)
{
    uint64_t taken = fc_round(bytes, 512);
    if (taken < bytes)
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (pool->reserved - pool->used < taken) {
        CUresult result = grow(pool, taken - (pool->reserved - pool->used));
        if (result != CUDA_SUCCESS)
            return result;
    }
    pool->used += taken;
    pool->used_high = pool->used > pool->used_high ? pool->used : pool->used_high;
    uint64_t span = fc_round(taken, FC_GRANULE);
    struct fc_range *range = fc_range_add(fc_address(span), span, bytes, FC_POOLED, pool->device);
    range->context = context;
    range->pool = pool;
    range->physical = taken;
    *pointer = range->start;
    return CUDA_SUCCESS;
}

void fc_pool_freed(struct fc_range *range)
{
    range->pool->used -= range->physical;
}

static CUresult allocate(CUdeviceptr *pointer, size_t bytes, struct CUmemPoolHandle_st *pool, CUstream given)
{
    struct CUctx_st *context;
    struct CUstream_st *stream;
    CUresult result = pointer == NULL || bytes == 0 ? CUDA_ERROR_INVALID_VALUE : fc_current(&context);
    result = result == CUDA_SUCCESS ? fc_stream(given, &stream) : result;
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    if (stream->capture != NULL)
        return fc_unlock(fc_capture_alloc(stream->capture, context->device, bytes, pointer));
    if (pool != NULL && !known(pool))
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    return fc_unlock(fc_pool_alloc(pool != NULL ? pool : pool_of(stream->context->device), context, bytes, pointer));
}

CUresult fake_cuMemAllocAsync(CUdeviceptr *pointer, size_t bytes, CUstream stream) { return allocate(pointer, bytes, NULL, stream); }

CUresult fake_cuMemAllocFromPoolAsync(CUdeviceptr *pointer, size_t bytes, CUmemoryPool pool, CUstream stream)
{
    return pool == NULL ? CUDA_ERROR_INVALID_VALUE : allocate(pointer, bytes, pool, stream);
}

CUresult fake_cuMemFreeAsync(CUdeviceptr pointer, CUstream given)
{
    struct CUstream_st *stream;
    CUresult result = fc_stream(given, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    if (stream->capture != NULL)
        return fc_unlock(fc_capture_free(stream->capture, pointer));
    struct fc_range *range = fc_range_from(pointer);
    if (range == NULL || range->what == FC_RESERVED || range->what == FC_FOREIGN)
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    fc_release(range);
    return fc_unlock(CUDA_SUCCESS);
}

/* -- pools -------------------------------------------------------------------------------------------------- */

CUresult fake_cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *properties)
{
    if (pool == NULL || properties == NULL || properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = fc_known(properties->location.id);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    *pool = make(properties->location.id, false, properties->max_size);
    return fc_unlock(CUDA_SUCCESS);
}

struct orphans {
    struct CUmemPoolHandle_st *pool;
    size_t count;
};

static void count(struct fc_range *range, void *with)
{
    struct orphans *orphans = with;
    orphans->count += range->what == FC_POOLED && range->pool == orphans->pool;
}

/* What is still allocated keeps its memory: the pool lives on without a name until then. Here, until the process ends. */
CUresult fake_cuMemPoolDestroy(CUmemoryPool pool)
{
    CUresult result = fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    if (!known(pool) || pool->is_default)
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    struct orphans orphans = {.pool = pool};
    fc_ranges_each(count, &orphans);
    pool->threshold = 0;
    shrink(pool, 0);
    for (int i = 0; i < fc_device_count; i++)
        if (fc_devices[i].pool == pool)
            fc_devices[i].pool = NULL;
    if (orphans.count == 0) {
        struct CUmemPoolHandle_st **link = &pools;
        while (*link != pool)
            link = &(*link)->next;
        *link = pool->next;
        free(pool);
    }
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuMemPoolTrimTo(CUmemoryPool pool, size_t keep)
{
    CUresult result = fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    if (!known(pool))
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    if (keep < pool->reserved)
        shrink(pool, keep);
    return fc_unlock(CUDA_SUCCESS);
}

static uint64_t *figure(struct CUmemPoolHandle_st *pool, int attribute)
{
    switch (attribute) {
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD: return &pool->threshold;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT: return &pool->reserved;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH: return &pool->reserved_high;
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT: return &pool->used;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH: return &pool->used_high;
    default: return NULL;
    }
}

CUresult fake_cuMemPoolGetAttribute(CUmemoryPool pool, int attribute, void *value)
{
    CUresult result = value == NULL ? CUDA_ERROR_INVALID_VALUE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    if (!known(pool) || attribute < 1 || attribute > 8)
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    const uint64_t *from = figure(pool, attribute);
    if (from != NULL)
        *(cuuint64_t *)value = *from;
    else
        *(int *)value = 1; /* the reuse policies: all on */
    return fc_unlock(CUDA_SUCCESS);
}

/* The threshold may be set to anything, the high-water marks to zero only. */
CUresult fake_cuMemPoolSetAttribute(CUmemoryPool pool, int attribute, void *value)
{
    CUresult result = value == NULL ? CUDA_ERROR_INVALID_VALUE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    bool high = attribute == CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH || attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    if (!known(pool) || attribute < 1 || attribute > 8 || (high && *(cuuint64_t *)value != 0))
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    if (attribute == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD)
        pool->threshold = *(cuuint64_t *)value;
    else if (attribute == CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH)
        pool->reserved_high = pool->reserved;
    else if (attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH)
        pool->used_high = pool->used;
    else if (figure(pool, attribute) != NULL)
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    return fc_unlock(CUDA_SUCCESS);
}

static CUresult answer_pool(CUmemoryPool *pool, CUdevice device, bool the_default)
{
    CUresult result = pool == NULL ? CUDA_ERROR_INVALID_VALUE : fc_known(device);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    *pool = the_default ? default_pool(device) : pool_of(device);
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice device) { return answer_pool(pool, device, true); }
CUresult fake_cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice device) { return answer_pool(pool, device, false); }

CUresult fake_cuDeviceSetMemPool(CUdevice device, CUmemoryPool pool)
{
    CUresult result = fc_known(device);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    if (!known(pool) || pool->device != device)
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    fc_devices[device].pool = pool;
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuMemGetDefaultMemPool(CUmemoryPool *pool, CUmemLocation *location, int type)
{
    bool plain = location != NULL && location->type == CU_MEM_LOCATION_TYPE_DEVICE && type == CU_MEM_ALLOCATION_TYPE_PINNED;
    return plain ? answer_pool(pool, location->id, true) : CUDA_ERROR_NOT_SUPPORTED;
}

CUresult fake_cuMemGetMemPool(CUmemoryPool *pool, CUmemLocation *location, int type)
{
    bool plain = location != NULL && location->type == CU_MEM_LOCATION_TYPE_DEVICE && type == CU_MEM_ALLOCATION_TYPE_PINNED;
    return plain ? answer_pool(pool, location->id, false) : CUDA_ERROR_NOT_SUPPORTED;
}
