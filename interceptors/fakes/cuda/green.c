/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake CUDA driver: contexts by other names, and what a context can be asked to hold for kernels. A context for a graphics
 * API is one like any other; a green context holds its device's primary context; the heap that kernels allocate from and the
 * buffer that they print into are the device's memory as far as they are larger than what a context has from the start.
 */
#include "fake_cuda.h"

CUresult fake_cuGLCtxCreate(CUcontext *context, unsigned int flags, CUdevice device) { return fake_cuCtxCreate_v2(context, flags, device); }
CUresult fake_cuGLCtxCreate_v2(CUcontext *context, unsigned int flags, CUdevice device) { return fake_cuCtxCreate_v2(context, flags, device); }

CUresult fake_cuVDPAUCtxCreate(CUcontext *context, unsigned int flags, CUdevice device, uint32_t display, void *get)
{
    (void)display, (void)get;
    return fake_cuCtxCreate_v2(context, flags, device);
}

CUresult fake_cuVDPAUCtxCreate_v2(CUcontext *context, unsigned int flags, CUdevice device, uint32_t display, void *get)
{
    return fake_cuVDPAUCtxCreate(context, flags, device, display, get);
}

/* -- green contexts ------------------------------------------------------------------------------------------- */

enum { OF_THE_DEFAULT_STREAM = 1 };

struct CUgreenCtx_st {
    CUdevice device;
    struct CUgreenCtx_st *next;
};

static struct CUgreenCtx_st *greens;

CUresult fake_cuGreenCtxCreate(CUgreenCtx *out, void *description, CUdevice device, unsigned int flags)
{
    CUcontext primary;
    CUresult result = out == NULL || description == NULL || flags != OF_THE_DEFAULT_STREAM ? CUDA_ERROR_INVALID_VALUE
                                                                                          : fake_cuDevicePrimaryCtxRetain(&primary, device);
    if (result != CUDA_SUCCESS)
        return result;
    struct CUgreenCtx_st *green = calloc(1, sizeof *green);
    fc_lock();
    *green = (struct CUgreenCtx_st){.device = device, .next = greens};
    greens = green;
    *out = green;
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuGreenCtxDestroy(CUgreenCtx context)
{
    CUresult result = fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    struct CUgreenCtx_st **link = &greens;
    while (*link != NULL && *link != context)
        link = &(*link)->next;
    if (*link == NULL)
        return fc_unlock(CUDA_ERROR_INVALID_CONTEXT);
    *link = context->next;
    fc_unlock(CUDA_SUCCESS);
    result = fake_cuDevicePrimaryCtxRelease_v2(context->device);
    free(context);
    return result;
}

/* -- heaps of the device's own -------------------------------------------------------------------------------- */

static struct fc_heap *heap_of(struct CUctx_st *context, int limit)
{
    if (limit != CU_LIMIT_MALLOC_HEAP_SIZE && limit != CU_LIMIT_PRINTF_FIFO_SIZE)
        return NULL;
    struct fc_heap *heap = &context->heaps[limit == CU_LIMIT_MALLOC_HEAP_SIZE];
    if (heap->bytes == 0)
        heap->bytes = limit == CU_LIMIT_MALLOC_HEAP_SIZE ? 8 * FC_MIB : FC_MIB;
    return heap;
}

static CUresult resize(struct CUctx_st *context, struct fc_heap *heap, int limit, size_t bytes)
{
    uint64_t start = limit == CU_LIMIT_MALLOC_HEAP_SIZE ? 8 * FC_MIB : FC_MIB, more = bytes > start ? fc_round(bytes - start, FC_GRANULE) : 0;
    if (bytes > start && more < bytes - start)
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (more > heap->physical) {
        CUresult result = fc_code(card_take(fc_card(context->device), more - heap->physical, CARD_CONTEXT));
        if (result != CUDA_SUCCESS)
            return result;
    } else {
        card_give(fc_card(context->device), heap->physical - more, CARD_CONTEXT);
    }
    *heap = (struct fc_heap){.bytes = bytes, .physical = more};
    return CUDA_SUCCESS;
}

CUresult fake_cuCtxSetLimit(int limit, size_t bytes)
{
    struct CUctx_st *context;
    CUresult result = fc_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    struct fc_heap *heap = heap_of(context, limit);
    return fc_unlock(heap != NULL ? resize(context, heap, limit, bytes) : CUDA_SUCCESS);
}

CUresult fake_cuCtxGetLimit(size_t *bytes, int limit)
{
    struct CUctx_st *context;
    CUresult result = bytes == NULL ? CUDA_ERROR_INVALID_VALUE : fc_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    const struct fc_heap *heap = heap_of(context, limit);
    *bytes = heap != NULL ? heap->bytes : 1024;
    return fc_unlock(CUDA_SUCCESS);
}

void fc_context_heaps_gone(struct CUctx_st *context)
{
    for (int i = 0; i < 2; i++) {
        card_give(fc_card(context->device), context->heaps[i].physical, CARD_CONTEXT);
        context->heaps[i] = (struct fc_heap){.bytes = 0};
    }
}
