/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake CUDA driver: data. The first MiB of every block is kept in host memory, so that a program can check what it wrote;
 * what lies beyond reads as zero. Copies are done when the call returns, whatever the stream.
 */
#include "fake_cuda.h"

/* Where the bytes of a device address are and how many there are in a row; NULL: not a device address. */
static unsigned char *data(uint64_t address, size_t bytes, size_t *have, bool *device)
{
    struct fc_range *range = fc_range_at(address);
    *device = range != NULL;
    *have = 0;
    if (range == NULL)
        return NULL;
    uint64_t offset = address - range->start, kept = range->size < FC_SHADOW ? range->size : FC_SHADOW;
    fc_touch(range, offset + bytes);
    if (range->shadow == NULL)
        range->shadow = calloc(1, kept);
    if (offset < kept)
        *have = kept - offset < bytes ? kept - offset : bytes;
    return range->shadow + (offset < kept ? offset : 0);
}

static bool fits(uint64_t address, size_t bytes)
{
    const struct fc_range *range = fc_range_at(address);
    return range != NULL && bytes <= range->size - (address - range->start);
}

/* Either side may be on the device or, with unified addresses, on the host. */
static CUresult copy(uint64_t to, uint64_t from, size_t bytes)
{
    struct CUctx_st *context;
    CUresult result = fc_current(&context);
    if (result != CUDA_SUCCESS || bytes == 0)
        return result;
    fc_lock();
    bool device_to = fc_range_at(to) != NULL, device_from = fc_range_at(from) != NULL;
    if ((device_to && !fits(to, bytes)) || (device_from && !fits(from, bytes)))
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    size_t room = bytes, have = bytes;
    const unsigned char *source = device_from ? data(from, bytes, &have, &device_from) : (const void *)(uintptr_t)from;
    unsigned char *target = device_to ? data(to, bytes, &room, &device_to) : (void *)(uintptr_t)to;
    size_t real = have < room ? have : room;
    memmove(target, source, real);
    memset(target + real, 0, room - real);
    return fc_unlock(CUDA_SUCCESS);
}

static CUresult device_copy(uint64_t to, uint64_t from, size_t bytes, bool device_to, bool device_from)
{
    CUresult result = fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    bool known = (!device_to || fc_range_at(to) != NULL) && (!device_from || fc_range_at(from) != NULL);
    fc_unlock(CUDA_SUCCESS);
    return known ? copy(to, from, bytes) : CUDA_ERROR_INVALID_VALUE;
}

static uint64_t number(const void *pointer) { return (uint64_t)(uintptr_t)pointer; }

CUresult fake_cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) { return device_copy(to, number(from), bytes, true, false); }
CUresult fake_cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) { return device_copy(number(to), from, bytes, false, true); }
CUresult fake_cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) { return device_copy(to, from, bytes, true, true); }
CUresult fake_cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes) { return copy(to, from, bytes); }

CUresult fake_cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream)
{
    (void)stream;
    return device_copy(to, number(from), bytes, true, false);
}

CUresult fake_cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    (void)stream;
    return device_copy(number(to), from, bytes, false, true);
}

CUresult fake_cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    (void)stream;
    return device_copy(to, from, bytes, true, true);
}

CUresult fake_cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)
{
    (void)stream;
    return copy(to, from, bytes);
}

static CUresult set(CUdeviceptr to, const void *pattern, size_t width, size_t count)
{
    struct CUctx_st *context;
    size_t bytes, room;
    bool device;
    CUresult result = __builtin_mul_overflow(width, count, &bytes) ? CUDA_ERROR_INVALID_VALUE : fc_current(&context);
    if (result != CUDA_SUCCESS || bytes == 0)
        return result;
    fc_lock();
    if (!fits(to, bytes))
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    unsigned char *target = data(to, bytes, &room, &device);
    for (size_t i = 0; i + width <= room; i += width)
        memcpy(target + i, pattern, width);
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) { return set(to, &value, sizeof value, count); }
CUresult fake_cuMemsetD16_v2(CUdeviceptr to, unsigned short value, size_t count) { return set(to, &value, sizeof value, count); }
CUresult fake_cuMemsetD32_v2(CUdeviceptr to, unsigned int value, size_t count) { return set(to, &value, sizeof value, count); }

CUresult fake_cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream)
{
    (void)stream;
    return set(to, &value, sizeof value, count);
}

CUresult fake_cuMemsetD32Async(CUdeviceptr to, unsigned int value, size_t count, CUstream stream)
{
    (void)stream;
    return set(to, &value, sizeof value, count);
}

CUresult fake_cuMemPrefetchAsync_v2(CUdeviceptr pointer, size_t bytes, CUmemLocation location, unsigned int flags, CUstream stream)
{
    (void)stream;
    CUresult result = flags != 0 ? CUDA_ERROR_INVALID_VALUE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    struct fc_range *range = fc_range_at(pointer);
    if (range == NULL || range->what != FC_MANAGED)
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    if (location.type == CU_MEM_LOCATION_TYPE_DEVICE)
        fc_touch(range, pointer - range->start + bytes);
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuMemPrefetchAsync(CUdeviceptr pointer, size_t bytes, CUdevice device, CUstream stream)
{
    CUmemLocation location = {device >= 0 ? CU_MEM_LOCATION_TYPE_DEVICE : CU_MEM_LOCATION_TYPE_HOST, device};
    return fake_cuMemPrefetchAsync_v2(pointer, bytes, location, 0, stream);
}
