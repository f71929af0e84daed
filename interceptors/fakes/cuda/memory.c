/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake CUDA driver: linear, pitched and managed memory. From 1 MiB on a block takes whole pages of 2 MiB; smaller blocks
 * share pages, one set per device, and a page goes back with its last block.
 */
#include "fake_cuda.h"

#define UNIT 512
#define UNITS (FC_GRANULE / UNIT)

static struct fc_chunk *chunks;

/* -- shared pages ------------------------------------------------------------------------------------------- */

/* The first of `wanted` free units in a row; UNITS when there are not so many. */
static unsigned hole(const struct fc_chunk *chunk, unsigned wanted)
{
    unsigned run = 0;
    for (unsigned step = 0; step < 2 * UNITS; step++) { /* once round from the hint; a run does not go over the end */
        unsigned at = (chunk->hint + step) % UNITS;
        run = at == 0 || chunk->units[at] ? 0 : run;
        run += !chunk->units[at];
        if (run >= wanted)
            return at + 1 - wanted;
        if (step >= UNITS && run == 0)
            break;
    }
    return UNITS;
}

static CUresult small(struct CUctx_st *context, uint64_t bytes, CUdeviceptr *pointer)
{
    unsigned wanted = (unsigned)(fc_round(bytes, UNIT) / UNIT), at = UNITS;
    struct fc_chunk *chunk = chunks;
    for (; chunk != NULL; chunk = chunk->next)
        if (chunk->device == context->device && UNITS - chunk->used_units >= wanted && (at = hole(chunk, wanted)) != UNITS)
            break;
    if (chunk == NULL) {
        CUresult result = fc_code(card_take(fc_card(context->device), FC_GRANULE, CARD_LINEAR));
        if (result != CUDA_SUCCESS)
            return result;
        chunk = calloc(1, sizeof *chunk);
        chunk->base = fc_address(FC_GRANULE);
        chunk->device = context->device;
        chunk->next = chunks;
        chunks = chunk;
        at = 0;
    }
    memset(chunk->units + at, 1, wanted);
    chunk->used_units += wanted;
    chunk->hint = (at + wanted) % UNITS;
    struct fc_range *range = fc_range_add(chunk->base + (uint64_t)at * UNIT, (uint64_t)wanted * UNIT, bytes, FC_SMALL, context->device);
    range->chunk = chunk;
    range->context = context;
    *pointer = range->start;
    return CUDA_SUCCESS;
}

static void small_gone(struct fc_range *range)
{
    struct fc_chunk *chunk = range->chunk;
    unsigned at = (unsigned)((range->start - chunk->base) / UNIT), count = (unsigned)(range->span / UNIT);
    memset(chunk->units + at, 0, count);
    chunk->used_units -= count;
    chunk->hint = at;
    if (chunk->used_units > 0)
        return;
    struct fc_chunk **link = &chunks;
    while (*link != chunk)
        link = &(*link)->next;
    *link = chunk->next;
    card_give(fc_card(chunk->device), FC_GRANULE, CARD_LINEAR);
    free(chunk);
}

/* -- whole pages -------------------------------------------------------------------------------------------- */

static CUresult large(struct CUctx_st *context, uint64_t bytes, enum fc_what what, enum card_kind kind, CUdeviceptr *pointer)
{
    uint64_t span = fc_round(bytes, FC_GRANULE);
    bool later = what == FC_MANAGED && strcmp(hf_str("device", fc_card(context->device), "managed", "counted"), "pageable") == 0;
    CUresult result = span < bytes ? CUDA_ERROR_OUT_OF_MEMORY : later ? CUDA_SUCCESS : fc_code(card_take(fc_card(context->device), span, kind));
    if (result != CUDA_SUCCESS)
        return result;
    struct fc_range *range = fc_range_add(fc_address(span), span, bytes, what, context->device);
    range->context = context;
    range->physical = later ? 0 : span;
    *pointer = range->start;
    return CUDA_SUCCESS;
}

/* Pageable managed memory becomes physical where it is used, unless the device is full: then it stays with the host. */
void fc_touch(struct fc_range *range, uint64_t bytes)
{
    uint64_t wanted = fc_round(bytes < range->size ? bytes : range->size, FC_GRANULE);
    if (range->what == FC_MANAGED && wanted > range->physical && card_take(fc_card(range->device), wanted - range->physical, CARD_MANAGED) == CARD_OK)
        range->physical = wanted;
}

void fc_release(struct fc_range *range)
{
    switch (range->what) {
    case FC_LINEAR: card_give(fc_card(range->device), range->physical, CARD_LINEAR); break;
    case FC_MANAGED: card_give(fc_card(range->device), range->physical, CARD_MANAGED); break;
    case FC_SMALL: small_gone(range); break;
    case FC_POOLED: fc_pool_freed(range); break;
    case FC_GRAPH: fc_graph_memory_freed(range); break;
    default: break;
    }
    fc_range_drop(range);
}

struct doomed {
    const struct CUctx_st *context;
    struct fc_range **found;
    size_t count, room;
};

static void collect(struct fc_range *range, void *with)
{
    struct doomed *doomed = with;
    if (range->context != doomed->context || range->what == FC_POOLED || range->what == FC_RESERVED)
        return;
    if (doomed->count == doomed->room) {
        doomed->room = doomed->room * 2 + 64;
        doomed->found = realloc(doomed->found, doomed->room * sizeof *doomed->found);
    }
    doomed->found[doomed->count++] = range;
}

void fc_context_memory_gone(struct CUctx_st *context)
{
    struct doomed doomed = {.context = context};
    fc_ranges_each(collect, &doomed);
    for (size_t i = 0; i < doomed.count; i++)
        fc_release(doomed.found[i]);
    free(doomed.found);
}

static CUresult allocate(CUdeviceptr *pointer, uint64_t bytes)
{
    struct CUctx_st *context;
    CUresult result = pointer == NULL || bytes == 0 ? CUDA_ERROR_INVALID_VALUE : fc_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    return fc_unlock(bytes < FC_SMALL_BELOW ? small(context, bytes, pointer) : large(context, bytes, FC_LINEAR, CARD_LINEAR, pointer));
}

CUresult fake_cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes) { return allocate(pointer, bytes); }

CUresult fake_cuMemAllocPitch_v2(CUdeviceptr *pointer, size_t *pitch, size_t width, size_t height, unsigned int element)
{
    if (pitch == NULL || width == 0 || height == 0 || (element != 4 && element != 8 && element != 16))
        return CUDA_ERROR_INVALID_VALUE;
    uint64_t row = fc_round(width, FC_PITCH), bytes;
    if (row < width || __builtin_mul_overflow(row, height, &bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = allocate(pointer, bytes);
    if (result == CUDA_SUCCESS)
        *pitch = row;
    return result;
}

CUresult fake_cuMemAllocManaged(CUdeviceptr *pointer, size_t bytes, unsigned int flags)
{
    struct CUctx_st *context;
    CUresult result = pointer == NULL || bytes == 0 || flags == 0 || flags > 2 ? CUDA_ERROR_INVALID_VALUE : fc_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    return fc_unlock(large(context, bytes, FC_MANAGED, CARD_MANAGED, pointer));
}

CUresult fake_cuMemFree_v2(CUdeviceptr pointer)
{
    struct CUctx_st *context;
    CUresult result = pointer == 0 ? fc_ready() : fc_current(&context);
    if (result != CUDA_SUCCESS || pointer == 0)
        return result;
    fc_context_done(context); /* it waits for whatever may still use the memory */
    fc_lock();
    struct fc_range *range = fc_range_from(pointer);
    if (range == NULL || range->what == FC_RESERVED || range->what == FC_FOREIGN)
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    int device = range->device;
    bool pooled = range->what == FC_POOLED;
    fc_release(range);
    if (pooled)
        fc_pools_trim(device);
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
    struct CUctx_st *context;
    uint64_t capacity, used;
    CUresult result = free_bytes == NULL && total == NULL ? CUDA_ERROR_INVALID_VALUE : fc_current(&context); /* one of them will do */
    if (result != CUDA_SUCCESS)
        return result;
    card_memory(fc_card(context->device), &capacity, &used);
    if (total != NULL)
        *total = capacity;
    if (free_bytes != NULL)
        *free_bytes = capacity > used ? capacity - used : 0;
    return CUDA_SUCCESS;
}

CUresult fake_cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr pointer)
{
    CUresult result = fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    const struct fc_range *range = fc_range_at(pointer);
    if (range == NULL)
        return fc_unlock(CUDA_ERROR_NOT_FOUND);
    if (base != NULL)
        *base = range->start;
    if (size != NULL)
        *size = range->size;
    return fc_unlock(CUDA_SUCCESS);
}

/* Only what programs ask most: context, kind of memory, device pointer, managed, ordinal, start, size, buffer id. */
CUresult fake_cuPointerGetAttribute(void *data, int attribute, CUdeviceptr pointer)
{
    CUresult result = data == NULL ? CUDA_ERROR_INVALID_VALUE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    const struct fc_range *range = fc_range_at(pointer);
    if (range == NULL)
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    switch (attribute) {
    case 1: *(CUcontext *)data = range->context; break;
    case 2: *(unsigned *)data = 2; break;
    case 3: *(CUdeviceptr *)data = pointer; break;
    case 7: *(unsigned long long *)data = range->id; break;
    case 8: *(unsigned *)data = range->what == FC_MANAGED; break;
    case 9: *(int *)data = range->device; break;
    case 11: *(CUdeviceptr *)data = range->start; break;
    case 12: *(size_t *)data = range->size; break;
    default: return fc_unlock(CUDA_ERROR_NOT_SUPPORTED);
    }
    return fc_unlock(CUDA_SUCCESS);
}

/* -- host memory: not the device's ---------------------------------------------------------------------------- */

CUresult fake_cuMemHostAlloc(void **pointer, size_t bytes, unsigned int flags)
{
    struct CUctx_st *context;
    (void)flags;
    CUresult result = pointer == NULL || bytes == 0 ? CUDA_ERROR_INVALID_VALUE : fc_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    return posix_memalign(pointer, 4096, bytes) == 0 ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult fake_cuMemAllocHost_v2(void **pointer, size_t bytes) { return fake_cuMemHostAlloc(pointer, bytes, 0); }

CUresult fake_cuMemFreeHost(void *pointer)
{
    free(pointer);
    return fc_ready();
}
