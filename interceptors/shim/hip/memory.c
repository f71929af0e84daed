/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory.c: the memory of HIP that a table row cannot say: pools and what is freed into them, physical memory behind handles,
 * and memory that comes from other processes.
 */
#include "hip_hooks.h"

#include "../common/exchange.h"
#include "../common/pools.h"
#include "../common/vmm.h"
#include "hip_shim.h"

#define KEY(pointer) ((uint64_t)(uintptr_t)(pointer))

/* -- pools ------------------------------------------------------------------------------------------------------ */

static bool pool_attribute(uint64_t pool, int attribute, uint64_t *bytes) {
    hipMemPoolGetAttribute_fn get = hip_real_hipMemPoolGetAttribute();
    return get != NULL && get((hipMemPool_t)(uintptr_t)pool, attribute, bytes) == hipSuccess;
}
static bool pool_reserved(uint64_t pool, uint64_t *bytes) { return pool_attribute(pool, hipMemPoolAttrReservedMemCurrent, bytes); }
static bool pool_used(uint64_t pool, uint64_t *bytes) { return pool_attribute(pool, hipMemPoolAttrUsedMemCurrent, bytes); }

static struct hami_pools pools = {.granule = 2u << 20, .reserved = pool_reserved, .used = pool_used};

void hip_settled(void) { hami_pools_reread(&pools); }

static hipMemPool_t current_pool(void) {
    hipDeviceGetMemPool_fn get = hip_real_hipDeviceGetMemPool();
    hipMemPool_t pool = NULL;
    return get != NULL && get(&pool, hip_ordinal()) == hipSuccess ? pool : NULL;
}

static hipError_t undo_from_pool(void *pointer, hipMemPool_t pool, hipStream_t stream) {
    hipFreeAsync_fn give = hip_real_hipFreeAsync();
    hipStreamSynchronize_fn wait = hip_real_hipStreamSynchronize();
    hipMemPoolTrimTo_fn trim = hip_real_hipMemPoolTrimTo();
    if (give != NULL) (void)give(pointer, stream);
    if (wait != NULL) (void)wait(stream);
    if (trim != NULL) (void)trim(pool, 0);
    hami_pool_reread(&pools, KEY(pool));
    return hipErrorOutOfMemory;
}

hipError_t hip_hook_hipMallocFromPoolAsync(hipMallocFromPoolAsync_fn real, void **out, size_t bytes, hipMemPool_t pool, hipStream_t stream) {
    struct hami_hold hold;
    if (out == NULL || pool == NULL) return real(out, bytes, pool, stream);
    if (!hip_may_wait(stream)) return hip_graph_captured(real, out, bytes, pool, stream);
    enum hami_verdict verdict = hami_pool_reserve(&pools, KEY(pool), hip_device(), bytes, &hold);
    if (verdict != HAMI_OK) return hip_refusal(verdict);
    hipError_t result = real(out, bytes, pool, stream);
    if (result != hipSuccess) {
        hami_give_back(&hold);
        return result;
    }
    if (hami_pool_took(&pools, KEY(pool), KEY(*out), &hold) != HAMI_OK) {
        result = undo_from_pool(*out, pool, stream);
        *out = NULL;
    }
    return result;
}

hipError_t hip_hook_hipMallocAsync(hipMallocAsync_fn real, void **out, size_t bytes, hipStream_t stream) {
    hipMallocFromPoolAsync_fn from_pool = hip_real_hipMallocFromPoolAsync();
    hipMemPool_t pool = current_pool();
    if (from_pool == NULL || pool == NULL) return real(out, bytes, stream);
    return hip_hook_hipMallocFromPoolAsync(from_pool, out, bytes, pool, stream);
}

/* Any block may be freed either way. */
static void after_free(struct hami_freeing *it, hipError_t result) {
    hami_pool_or_linear_freed(&pools, &hip_linear, it, result == hipSuccess);
    if (it->kind == HAMI_FREEING_UNKNOWN && result == hipSuccess) hip_graph_memory_freed(hip_ordinal());
}

hipError_t hip_hook_hipFreeAsync(hipFreeAsync_fn real, void *pointer, hipStream_t stream) {
    struct hami_freeing it = hami_pool_or_linear_take(&hip_linear, KEY(pointer));
    hipError_t result = real(pointer, stream);
    after_free(&it, result);
    return result;
}

hipError_t hip_hook_hipFree(hipFree_fn real, void *pointer) {
    struct hami_freeing it = hami_pool_or_linear_take(&hip_linear, KEY(pointer));
    hipError_t result = real(pointer);
    after_free(&it, result);
    return result;
}

hipError_t hip_hook_hipMemPoolTrimTo(hipMemPoolTrimTo_fn real, hipMemPool_t pool, size_t keep) {
    hipError_t result = real(pool, keep);
    hami_pool_reread(&pools, KEY(pool));
    return result;
}

hipError_t hip_hook_hipMemPoolDestroy(hipMemPoolDestroy_fn real, hipMemPool_t pool) {
    hipError_t result = real(pool);
    if (result == hipSuccess) hami_pool_destroyed(&pools, KEY(pool));
    return result;
}

hipError_t hip_hook_hipStreamSynchronize(hipStreamSynchronize_fn real, hipStream_t stream) {
    hipError_t result = real(stream);
    hip_settled();
    return result;
}

hipError_t hip_hook_hipDeviceSynchronize(hipDeviceSynchronize_fn real) {
    hipError_t result = real();
    hip_settled();
    return result;
}

/* -- physical memory behind handles ------------------------------------------------------------------------------ */

hipError_t hip_hook_hipMemCreate(hipMemCreate_fn real, hipMemGenericAllocationHandle_t *handle, size_t bytes, const hipMemAllocationProp *wanted,
                                 unsigned long long flags) {
    struct hami_hold hold;
    if (handle == NULL || wanted == NULL || wanted->location.type != hipMemLocationTypeDevice) return real(handle, bytes, wanted, flags);
    enum hami_verdict verdict = hami_reserve(hip_device_of(wanted->location.id), bytes, &hold);
    if (verdict != HAMI_OK) return hip_refusal(verdict);
    hipError_t result = real(handle, bytes, wanted, flags);
    if (result == hipSuccess) {
        hami_vmm_created(KEY(*handle), &hold, bytes);
    } else {
        hami_give_back(&hold);
    }
    return result;
}

hipError_t hip_hook_hipMemRelease(hipMemRelease_fn real, hipMemGenericAllocationHandle_t handle) {
    struct hami_entry entry;
    bool known = hami_book_find(HAMI_BOOK_HANDLE, KEY(handle), &entry), last = known && hami_vmm_release(KEY(handle), &entry);
    hipError_t result = real(handle);
    if (known) hami_vmm_released(KEY(handle), &entry, last, result == hipSuccess);
    return result;
}

hipError_t hip_hook_hipMemRetainAllocationHandle(hipMemRetainAllocationHandle_fn real, hipMemGenericAllocationHandle_t *handle, void *address) {
    struct hami_entry entry;
    hipError_t result = real(handle, address);
    if (result == hipSuccess && handle != NULL) (void)hami_book_refer(HAMI_BOOK_HANDLE, KEY(*handle), 1, &entry);
    return result;
}

hipError_t hip_hook_hipMemMap(hipMemMap_fn real, void *address, size_t size, size_t offset, hipMemGenericAllocationHandle_t handle, unsigned long long flags) {
    hipError_t result = real(address, size, offset, handle, flags);
    if (result == hipSuccess) hami_vmm_mapped(KEY(address), size, KEY(handle));
    return result;
}

hipError_t hip_hook_hipMemUnmap(hipMemUnmap_fn real, void *address, size_t size) {
    struct hami_vmm_unmap taken;
    hami_vmm_unmap(&taken, KEY(address), size);
    hipError_t result = real(address, size);
    hami_vmm_unmapped(&taken, result == hipSuccess);
    return result;
}

/* -- between processes -------------------------------------------------------------------------------------------- */

static uint64_t bytes_behind(void *pointer) {
    hipMemGetAddressRange_fn range = hip_real_hipMemGetAddressRange();
    hipDeviceptr_t base = NULL;
    size_t bytes = 0;
    return range != NULL && range(&base, &bytes, pointer) == hipSuccess ? bytes : 0;
}

hipError_t hip_hook_hipIpcGetMemHandle(hipIpcGetMemHandle_fn real, hipIpcMemHandle_t *handle, void *pointer) {
    hipError_t result = real(handle, pointer);
    if (result == hipSuccess && handle != NULL) hami_export_note(handle, sizeof *handle, bytes_behind(pointer));
    return result;
}

hipError_t hip_hook_hipIpcOpenMemHandle(hipIpcOpenMemHandle_fn real, void **pointer, hipIpcMemHandle_t handle, unsigned int flags) {
    struct hami_hold hold;
    hipError_t result = real(pointer, handle, flags);
    if (result != hipSuccess || !hami_imports_charged(hip_device()) || hami_export_known(&handle, sizeof handle)) return result;
    uint64_t bytes = bytes_behind(*pointer);
    enum hami_verdict verdict = hami_reserve(hip_device(), bytes, &hold); /* the memory is there already: only who pays is asked */
    if (verdict == HAMI_OK) {
        (void)hami_book_keep(HAMI_BOOK_OTHER, KEY(*pointer), &hold, bytes, 0);
        return result;
    }
    hipIpcCloseMemHandle_fn close_handle = hip_real_hipIpcCloseMemHandle();
    if (close_handle != NULL) (void)close_handle(*pointer);
    *pointer = NULL;
    return hip_refusal(verdict);
}

hipError_t hip_hook_hipMemExportToShareableHandle(hipMemExportToShareableHandle_fn real, void *shareable, hipMemGenericAllocationHandle_t handle, int type,
                                                  unsigned long long flags) {
    struct hami_entry entry;
    hipError_t result = real(shareable, handle, type, flags);
    if (result != hipSuccess || type != hipMemHandleTypePosixFileDescriptor || shareable == NULL) return result;
    if (hami_book_find(HAMI_BOOK_HANDLE, KEY(handle), &entry)) hami_export_file(*(int *)shareable, entry.tag);
    return result;
}

hipError_t hip_hook_hipMemImportFromShareableHandle(hipMemImportFromShareableHandle_fn real, hipMemGenericAllocationHandle_t *handle, void *shareable, int type) {
    struct hami_hold hold;
    uint64_t bytes = type == hipMemHandleTypePosixFileDescriptor && hami_imports_charged(hip_device()) ? hami_import_file_bytes((int)(intptr_t)shareable) : 0;
    enum hami_verdict verdict = hami_reserve(hip_device(), bytes, &hold);
    if (verdict != HAMI_OK) return hip_refusal(verdict);
    hipError_t result = real(handle, shareable, type);
    if (result == hipSuccess && handle != NULL) {
        hami_vmm_created(KEY(*handle), &hold, bytes);
    } else {
        hami_give_back(&hold);
    }
    return result;
}
