/* SPDX-License-Identifier: Apache-2.0 */
/*
 * query.c: what there is: the slice. An error of the driver stays its error; an answer of the driver stays an answer.
 *
 * Free is also bounded by what is physically free, since a neighbour that the node oversold may hold it.
 */
#include <limits.h>

#include "cuda_shim.h"

static uint64_t less(uint64_t a, uint64_t b) { return a < b ? a : b; }
static unsigned int narrow(uint64_t bytes) { return bytes > UINT_MAX ? UINT_MAX : (unsigned int)bytes; }

/* Programs ask for one figure of the two as well: what is not asked for is taken as unbounded. */
static void slice(uint64_t *free, uint64_t *total) {
    cuda_pools_settle();
    struct hami_memory_view view = hami_memory_view(cuda_current_index());
    if (!view.limited) return;
    *total = less(*total, view.total);
    *free = less(*free, less(view.free, *total));
}

CUresult cuda_hook_cuMemGetInfo_v2(cuMemGetInfo_v2_fn real, size_t *free, size_t *total) {
    CUresult result = real(free, total);
    if (result != CUDA_SUCCESS) return result;
    uint64_t f = free == NULL ? UINT64_MAX : *free, t = total == NULL ? UINT64_MAX : *total;
    slice(&f, &t);
    if (free != NULL) *free = (size_t)f;
    if (total != NULL) *total = (size_t)t;
    return result;
}

CUresult cuda_hook_cuMemGetInfo(cuMemGetInfo_fn real, unsigned int *free, unsigned int *total) {
    CUresult result = real(free, total);
    if (result != CUDA_SUCCESS) return result;
    uint64_t f = free == NULL ? UINT64_MAX : *free, t = total == NULL ? UINT64_MAX : *total;
    slice(&f, &t);
    if (free != NULL) *free = narrow(f);
    if (total != NULL) *total = narrow(t);
    return result;
}

CUresult cuda_hook_cuDeviceTotalMem_v2(cuDeviceTotalMem_v2_fn real, size_t *bytes, CUdevice device) {
    CUresult result = real(bytes, device);
    if (result != CUDA_SUCCESS || bytes == NULL) return result;
    struct hami_memory_view view = hami_memory_view(cuda_index(device));
    if (view.limited) *bytes = (size_t)less(*bytes, view.total);
    return result;
}

CUresult cuda_hook_cuDeviceTotalMem(cuDeviceTotalMem_fn real, unsigned int *bytes, CUdevice device) {
    CUresult result = real(bytes, device);
    if (result != CUDA_SUCCESS || bytes == NULL) return result;
    struct hami_memory_view view = hami_memory_view(cuda_index(device));
    if (view.limited) *bytes = narrow(less(*bytes, view.total));
    return result;
}
