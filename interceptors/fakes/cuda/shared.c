/* SPDX-License-Identifier: Apache-2.0 */
/* The fake CUDA driver: memory of other processes and of other APIs. It costs nothing here: who made it has paid. */
#include "fake_cuda.h"

#define IPC_MAGIC 0x4841494350494841u

struct ipc {
    uint64_t magic, pointer, size;
    int64_t pid;
    int32_t card, unused;
};

_Static_assert(sizeof(struct ipc) <= sizeof(CUipcMemHandle), "an IPC handle has 64 bytes");

CUresult fake_cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr pointer)
{
    CUresult result = handle == NULL ? CUDA_ERROR_INVALID_VALUE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    const struct fc_range *range = fc_range_at(pointer);
    if (range == NULL || (range->what != FC_LINEAR && range->what != FC_SMALL))
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    struct ipc ipc = {.magic = IPC_MAGIC, .pointer = range->start, .size = range->size, .pid = getpid(), .card = fc_card(range->device)};
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &ipc, sizeof ipc);
    return fc_unlock(CUDA_SUCCESS);
}

static CUdeviceptr foreign(struct CUctx_st *context, uint64_t size)
{
    uint64_t span = fc_round(size, FC_GRANULE);
    struct fc_range *range = fc_range_add(fc_address(span), span, size, FC_FOREIGN, context->device);
    range->context = context;
    return range->start;
}

CUresult fake_cuIpcOpenMemHandle_v2(CUdeviceptr *pointer, CUipcMemHandle handle, unsigned int flags)
{
    struct CUctx_st *context;
    struct ipc ipc;
    memcpy(&ipc, &handle, sizeof ipc);
    CUresult result = pointer == NULL || flags != 1 || ipc.magic != IPC_MAGIC ? CUDA_ERROR_INVALID_VALUE : fc_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    if (ipc.pid == getpid())
        return CUDA_ERROR_INVALID_CONTEXT; /* not for the process that made it */
    fc_lock();
    *pointer = foreign(context, ipc.size);
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuIpcOpenMemHandle(CUdeviceptr *pointer, CUipcMemHandle handle, unsigned int flags) { return fake_cuIpcOpenMemHandle_v2(pointer, handle, flags); }

CUresult fake_cuIpcCloseMemHandle(CUdeviceptr pointer)
{
    CUresult result = fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    struct fc_range *range = fc_range_from(pointer);
    if (range == NULL || range->what != FC_FOREIGN)
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    fc_range_drop(range);
    return fc_unlock(CUDA_SUCCESS);
}

/* -- memory of graphics APIs ---------------------------------------------------------------------------------- */

struct CUextMemory_st {
    uint64_t size;
};

CUresult fake_cuImportExternalMemory(CUexternalMemory *memory, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *description)
{
    struct CUctx_st *context;
    CUresult result = memory == NULL || description == NULL || description->size == 0 ? CUDA_ERROR_INVALID_VALUE : fc_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    *memory = calloc(1, sizeof **memory);
    (*memory)->size = description->size;
    return CUDA_SUCCESS;
}

/* The description: offset, size, flags. */
CUresult fake_cuExternalMemoryGetMappedBuffer(CUdeviceptr *pointer, CUexternalMemory memory, const void *description)
{
    struct CUctx_st *context;
    unsigned long long part[2];
    CUresult result = pointer == NULL || memory == NULL || description == NULL ? CUDA_ERROR_INVALID_VALUE : fc_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    memcpy(part, description, sizeof part);
    if (part[1] == 0 || part[0] > memory->size || part[1] > memory->size - part[0])
        return CUDA_ERROR_INVALID_VALUE;
    fc_lock();
    *pointer = foreign(context, part[1]);
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuDestroyExternalMemory(CUexternalMemory memory)
{
    free(memory);
    return fc_ready();
}
