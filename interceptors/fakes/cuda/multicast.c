/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake CUDA driver: multicast objects. One has no memory of its own; memory that is bound to it stays taken until it is
 * unbound, whatever becomes of its handle and its mappings meanwhile.
 */
#include "fake_cuda.h"

struct binding {
    uint64_t object, offset, size;
    struct fc_handle *handle;
    struct binding *next;
};

static uint64_t objects; /* they are numbered from 1, and live as long as the process */
static struct binding *bindings;

static bool known(CUmemGenericAllocationHandle object) { return object >= 1 && object <= objects; }

CUresult fake_cuMulticastCreate(CUmemGenericAllocationHandle *object, const void *properties)
{
    CUresult result = object == NULL || properties == NULL ? CUDA_ERROR_INVALID_VALUE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    *object = ++objects;
    return fc_unlock(CUDA_SUCCESS);
}

/* With the lock held; gives it back. */
static CUresult bind(CUmemGenericAllocationHandle object, size_t offset, struct fc_handle *handle, size_t size)
{
    if (!known(object) || handle == NULL || size == 0 || size > handle->size)
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    struct binding *binding = calloc(1, sizeof *binding);
    *binding = (struct binding){.object = object, .offset = offset, .size = size, .handle = handle, .next = bindings};
    bindings = binding;
    fc_handle_mapped(handle, 1);
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuMulticastBindMem(CUmemGenericAllocationHandle object, size_t offset, CUmemGenericAllocationHandle memory, size_t from, size_t size, unsigned long long flags)
{
    CUresult result = flags != 0 || from != 0 ? CUDA_ERROR_INVALID_VALUE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    return bind(object, offset, fc_handle_of(memory), size);
}

CUresult fake_cuMulticastBindMem_v2(CUmemGenericAllocationHandle object, CUdevice device, size_t offset, CUmemGenericAllocationHandle memory, size_t from, size_t size,
                                    unsigned long long flags)
{
    CUresult result = fc_known(device);
    return result == CUDA_SUCCESS ? fake_cuMulticastBindMem(object, offset, memory, from, size, flags) : result;
}

CUresult fake_cuMulticastBindAddr(CUmemGenericAllocationHandle object, size_t offset, CUdeviceptr address, size_t size, unsigned long long flags)
{
    CUresult result = flags != 0 ? CUDA_ERROR_INVALID_VALUE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    const struct fc_range *range = fc_range_at(address);
    return bind(object, offset, range != NULL && range->what == FC_MAPPED ? range->handle : NULL, size);
}

CUresult fake_cuMulticastBindAddr_v2(CUmemGenericAllocationHandle object, CUdevice device, size_t offset, CUdeviceptr address, size_t size, unsigned long long flags)
{
    CUresult result = fc_known(device);
    return result == CUDA_SUCCESS ? fake_cuMulticastBindAddr(object, offset, address, size, flags) : result;
}

CUresult fake_cuMulticastUnbind(CUmemGenericAllocationHandle object, CUdevice device, size_t offset, size_t size)
{
    CUresult result = fc_known(device);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    struct binding **link = &bindings, *found;
    while (*link != NULL && ((*link)->object != object || (*link)->offset != offset || (*link)->size != size))
        link = &(*link)->next;
    if ((found = *link) == NULL)
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    *link = found->next;
    fc_handle_mapped(found->handle, -1);
    free(found);
    return fc_unlock(CUDA_SUCCESS);
}
