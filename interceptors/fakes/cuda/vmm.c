/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake CUDA driver: physical memory and addresses apart. Memory of cuMemCreate lives as long as a handle or a mapping
 * refers to it. An imported handle costs the importer nothing: the memory stays with the process that made it.
 */
#include "fake_cuda.h"

#include <sys/syscall.h>

#define EXPORT_MAGIC 0x48414d4946414b45u

struct exported {
    uint64_t magic, id, size;
    int64_t pid;
    int32_t card, unused;
};

static struct fc_handle *handles;

struct fc_handle *fc_handle_of(CUmemGenericAllocationHandle wanted)
{
    struct fc_handle *at = handles;
    while (at != NULL && (CUmemGenericAllocationHandle)(uintptr_t)at != wanted)
        at = at->next;
    return at;
}

static struct fc_handle *make(int device, uint64_t size)
{
    struct fc_handle *handle = calloc(1, sizeof *handle);
    *handle = (struct fc_handle){.id = fc_next_id(), .size = size, .device = device, .references = 1, .next = handles};
    handles = handle;
    return handle;
}

static void check(struct fc_handle *handle)
{
    if (handle->references > 0 || handle->mappings > 0)
        return;
    struct fc_handle **link = &handles;
    while (*link != handle)
        link = &(*link)->next;
    *link = handle->next;
    if (!handle->imported)
        card_give(fc_card(handle->device), handle->size, CARD_HANDLE);
    free(handle);
}

void fc_handle_mapped(struct fc_handle *handle, long change)
{
    handle->mappings += change;
    check(handle);
}

CUresult fake_cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *properties, int option)
{
    (void)option;
    if (granularity == NULL || properties == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *granularity = FC_GRANULE;
    return fc_ready();
}

CUresult fake_cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *properties, unsigned long long flags)
{
    if (handle == NULL || properties == NULL || flags != 0 || size == 0 || size % FC_GRANULE != 0 || properties->type != CU_MEM_ALLOCATION_TYPE_PINNED)
        return CUDA_ERROR_INVALID_VALUE;
    bool host = properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE;
    CUresult result = host ? fc_ready() : fc_known(properties->location.id);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    result = host ? CUDA_SUCCESS : fc_code(card_take(fc_card(properties->location.id), size, CARD_HANDLE));
    if (result == CUDA_SUCCESS) {
        struct fc_handle *made = make(host ? 0 : properties->location.id, size);
        made->imported = host; /* host memory is not the card's either */
        *handle = (CUmemGenericAllocationHandle)(uintptr_t)made;
    }
    return fc_unlock(result);
}

CUresult fake_cuMemRelease(CUmemGenericAllocationHandle wanted)
{
    CUresult result = fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    struct fc_handle *handle = fc_handle_of(wanted);
    if (handle == NULL || handle->references == 0)
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    handle->references--;
    check(handle);
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address)
{
    CUresult result = handle == NULL ? CUDA_ERROR_INVALID_VALUE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    const struct fc_range *range = fc_range_at((uint64_t)(uintptr_t)address);
    if (range == NULL || range->what != FC_MAPPED)
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    range->handle->references++;
    *handle = (CUmemGenericAllocationHandle)(uintptr_t)range->handle;
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *properties, CUmemGenericAllocationHandle wanted)
{
    CUresult result = properties == NULL ? CUDA_ERROR_INVALID_VALUE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    const struct fc_handle *handle = fc_handle_of(wanted);
    if (handle == NULL)
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    *properties = (CUmemAllocationProp){.type = CU_MEM_ALLOCATION_TYPE_PINNED, .requested_handle_types = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                                        .location = {CU_MEM_LOCATION_TYPE_DEVICE, handle->device}};
    return fc_unlock(CUDA_SUCCESS);
}

/* -- addresses ---------------------------------------------------------------------------------------------- */

CUresult fake_cuMemAddressReserve(CUdeviceptr *pointer, size_t size, size_t alignment, CUdeviceptr wanted, unsigned long long flags)
{
    (void)wanted; /* a wish: the driver need not grant it */
    if (pointer == NULL || size == 0 || size % FC_GRANULE != 0 || flags != 0 || (alignment & (alignment - 1)) != 0)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    uint64_t start = fc_address(alignment > FC_GRANULE ? size + alignment : size);
    if (alignment > FC_GRANULE)
        start = fc_round(start, alignment);
    *pointer = fc_range_add(start, size, size, FC_RESERVED, 0)->start;
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuMemAddressFree(CUdeviceptr pointer, size_t size)
{
    CUresult result = fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    struct fc_range *range = fc_range_from(pointer);
    if (range == NULL || range->what != FC_RESERVED || range->size != size)
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    for (uint64_t at = pointer; at < pointer + size; at += FC_GRANULE)
        if (fc_range_at(at)->what == FC_MAPPED)
            return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    fc_range_drop(range);
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuMemMap(CUdeviceptr pointer, size_t size, size_t offset, CUmemGenericAllocationHandle wanted, unsigned long long flags)
{
    if (size == 0 || size % FC_GRANULE != 0 || pointer % FC_GRANULE != 0 || flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    struct fc_handle *handle = fc_handle_of(wanted);
    if (handle == NULL || offset != 0 || size > handle->size)
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    for (uint64_t at = pointer; at < pointer + size; at += FC_GRANULE) {
        const struct fc_range *there = fc_range_at(at);
        if (there == NULL || there->what != FC_RESERVED)
            return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    }
    fc_range_add(pointer, size, size, FC_MAPPED, handle->device)->handle = handle;
    fc_handle_mapped(handle, 1);
    return fc_unlock(CUDA_SUCCESS);
}

/* One call may undo several mappings, but only whole ones. */
CUresult fake_cuMemUnmap(CUdeviceptr pointer, size_t size)
{
    CUresult result = fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    for (uint64_t at = pointer; at < pointer + size;) {
        const struct fc_range *there = fc_range_at(at);
        if (there == NULL || there->what != FC_MAPPED || there->start != at || at + there->size > pointer + size)
            return fc_unlock(CUDA_ERROR_INVALID_VALUE);
        at += there->size;
    }
    for (uint64_t at = pointer; at < pointer + size;) {
        struct fc_range *there = fc_range_at(at);
        struct fc_handle *handle = there->handle;
        at += there->size;
        fc_range_drop(there);
        fc_handle_mapped(handle, -1);
    }
    return fc_unlock(CUDA_SUCCESS);
}

/* The tiles of sparse arrays: what is asked is checked, and nothing more is done: their memory is that of the handles. */
CUresult fake_cuMemMapArrayAsync(CUarrayMapInfo *list, unsigned int count, CUstream given)
{
    struct CUstream_st *stream;
    CUresult result = list == NULL || count == 0 ? CUDA_ERROR_INVALID_VALUE : fc_stream(given, &stream);
    fc_lock();
    for (unsigned i = 0; result == CUDA_SUCCESS && i < count; i++)
        if (list[i].operation != CU_MEM_OPERATION_TYPE_UNMAP && (list[i].operation != CU_MEM_OPERATION_TYPE_MAP || fc_handle_of(list[i].handle) == NULL))
            result = CUDA_ERROR_INVALID_VALUE;
    return fc_unlock(result);
}

/* -- between processes -------------------------------------------------------------------------------------- */

CUresult fake_cuMemExportToShareableHandle(void *out, CUmemGenericAllocationHandle wanted, int type, unsigned long long flags)
{
    CUresult result = out == NULL || flags != 0 ? CUDA_ERROR_INVALID_VALUE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    const struct fc_handle *handle = fc_handle_of(wanted);
    if (handle == NULL)
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    struct exported exported = {.magic = EXPORT_MAGIC, .id = handle->imported ? handle->origin_id : handle->id, .size = handle->size,
                                .pid = handle->imported ? handle->origin_pid : getpid(), .card = fc_card(handle->device)};
    fc_unlock(CUDA_SUCCESS);
    if (type == CU_MEM_HANDLE_TYPE_FABRIC) {
        memset(out, 0, sizeof(CUmemFabricHandle));
        memcpy(out, &exported, sizeof exported);
        return CUDA_SUCCESS;
    }
    if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_NOT_SUPPORTED;
    int file = (int)syscall(SYS_memfd_create, "hami-fake-memory", 1u /* close on exec */);
    if (file < 0 || write(file, &exported, sizeof exported) != (ssize_t)sizeof exported)
        return CUDA_ERROR_UNKNOWN;
    *(int *)out = file;
    return CUDA_SUCCESS;
}

static struct fc_handle *own(const struct exported *exported)
{
    struct fc_handle *at = handles;
    for (; at != NULL; at = at->next)
        if (exported->pid == (at->imported ? at->origin_pid : getpid()) && exported->id == (at->imported ? at->origin_id : at->id))
            break;
    return at;
}

CUresult fake_cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *given, int type)
{
    struct exported exported = {.magic = 0};
    CUresult result = handle == NULL ? CUDA_ERROR_INVALID_VALUE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    if (type == CU_MEM_HANDLE_TYPE_FABRIC && given != NULL)
        memcpy(&exported, given, sizeof exported);
    else if (type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR && pread((int)(intptr_t)given, &exported, sizeof exported, 0) != (ssize_t)sizeof exported)
        return CUDA_ERROR_INVALID_VALUE;
    if (exported.magic != EXPORT_MAGIC)
        return CUDA_ERROR_INVALID_VALUE;
    fc_lock();
    struct fc_handle *found = own(&exported);
    if (found != NULL)
        found->references++;
    for (int i = 0; found == NULL && i < fc_device_count; i++)
        if (fc_card(i) == exported.card) {
            found = make(i, exported.size);
            found->imported = true;
            found->origin_id = exported.id;
            found->origin_pid = exported.pid;
        }
    *handle = (CUmemGenericAllocationHandle)(uintptr_t)found;
    return fc_unlock(found != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE);
}
