/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory.c: the memory of CNDrv that a table row cannot say: pools and what is freed into them, physical memory behind handles,
 * and memory that comes from other processes. Public sources do not say how the driver rounds: blocks from a MiB on are
 * taken as pages of 2 MiB, smaller ones as shares of such a page, which errs upwards.
 */
#include "cndrv_hooks.h"

#include "../common/exchange.h"
#include "../common/pools.h"
#include "../common/vmm.h"
#include "cndrv_shim.h"

#define KEY(handle) ((uint64_t)(uintptr_t)(handle))

const struct hami_linear cndrv_linear = {.granule = 2u << 20, .small_below = 1u << 20, .chunk = 2u << 20};

/* -- pools ------------------------------------------------------------------------------------------------------ */

static bool pool_attribute(uint64_t pool, int attribute, uint64_t *bytes) {
    cnMemPoolGetAttribute_fn get = cndrv_real_cnMemPoolGetAttribute();
    return get != NULL && get((CNmemoryPool)(uintptr_t)pool, attribute, bytes) == CN_SUCCESS;
}
static bool pool_reserved(uint64_t pool, uint64_t *bytes) { return pool_attribute(pool, CN_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, bytes); }
static bool pool_used(uint64_t pool, uint64_t *bytes) { return pool_attribute(pool, CN_MEMPOOL_ATTR_USED_MEM_CURRENT, bytes); }

static struct hami_pools pools = {.granule = 2u << 20, .reserved = pool_reserved, .used = pool_used};

void cndrv_settled(void) { hami_pools_reread(&pools); }

static CNmemoryPool current_pool(void) {
    cnDeviceGetMemPool_fn get = cndrv_real_cnDeviceGetMemPool();
    CNmemoryPool pool = NULL;
    return get != NULL && get(&pool, cndrv_current()) == CN_SUCCESS ? pool : NULL;
}

static CNresult undo_from_pool(CNaddr address, CNmemoryPool pool, CNqueue queue) {
    cnMemFreeAsync_fn give = cndrv_real_cnMemFreeAsync();
    cnQueueSync_fn wait = cndrv_real_cnQueueSync();
    cnMemPoolTrimTo_fn trim = cndrv_real_cnMemPoolTrimTo();
    if (give != NULL) (void)give(address, queue);
    if (wait != NULL) (void)wait(queue);
    if (trim != NULL) (void)trim(pool, 0);
    hami_pool_reread(&pools, KEY(pool));
    return CN_MEMORY_ERROR_OUT_OF_MEMORY;
}

CNresult cndrv_hook_cnMemAllocFromPoolAsync(cnMemAllocFromPoolAsync_fn real, CNaddr *out, size_t bytes, CNmemoryPool pool, CNqueue queue) {
    struct hami_hold hold;
    if (out == NULL || pool == NULL) return real(out, bytes, pool, queue);
    enum hami_verdict verdict = hami_pool_reserve(&pools, KEY(pool), cndrv_device(), bytes, &hold);
    if (verdict != HAMI_OK) return cndrv_refusal(verdict);
    CNresult result = real(out, bytes, pool, queue);
    if (result != CN_SUCCESS) {
        hami_give_back(&hold);
        return result;
    }
    if (hami_pool_took(&pools, KEY(pool), *out, &hold) != HAMI_OK) {
        result = undo_from_pool(*out, pool, queue);
        *out = 0;
    }
    return result;
}

CNresult cndrv_hook_cnMemAllocAsync(cnMemAllocAsync_fn real, CNaddr *out, size_t bytes, CNqueue queue) {
    cnMemAllocFromPoolAsync_fn from_pool = cndrv_real_cnMemAllocFromPoolAsync();
    CNmemoryPool pool = current_pool();
    if (from_pool == NULL || pool == NULL) return real(out, bytes, queue);
    return cndrv_hook_cnMemAllocFromPoolAsync(from_pool, out, bytes, pool, queue);
}

/* Any block may be freed either way. */
CNresult cndrv_hook_cnFree(cnFree_fn real, CNaddr address) {
    struct hami_freeing it = hami_pool_or_linear_take(&cndrv_linear, address);
    CNresult result = real(address);
    hami_pool_or_linear_freed(&pools, &cndrv_linear, &it, result == CN_SUCCESS);
    return result;
}

CNresult cndrv_hook_cnMemFreeAsync(cnMemFreeAsync_fn real, CNaddr address, CNqueue queue) {
    struct hami_freeing it = hami_pool_or_linear_take(&cndrv_linear, address);
    CNresult result = real(address, queue);
    hami_pool_or_linear_freed(&pools, &cndrv_linear, &it, result == CN_SUCCESS);
    return result;
}

CNresult cndrv_hook_cnMemPoolTrimTo(cnMemPoolTrimTo_fn real, CNmemoryPool pool, size_t keep) {
    CNresult result = real(pool, keep);
    hami_pool_reread(&pools, KEY(pool));
    return result;
}

CNresult cndrv_hook_cnMemPoolDestroy(cnMemPoolDestroy_fn real, CNmemoryPool pool) {
    CNresult result = real(pool);
    if (result == CN_SUCCESS) hami_pool_destroyed(&pools, KEY(pool));
    return result;
}

CNresult cndrv_hook_cnQueueSync(cnQueueSync_fn real, CNqueue queue) {
    CNresult result = real(queue);
    cndrv_settled();
    return result;
}

CNresult cndrv_hook_cnCtxSync(cnCtxSync_fn real) {
    CNresult result = real();
    cndrv_settled();
    return result;
}

/* -- physical memory behind handles ------------------------------------------------------------------------------ */

CNresult cndrv_hook_cnMemCreate(cnMemCreate_fn real, CNmemGenericAllocationHandle *handle, cn_uint64_t bytes, CNmemAllocationProp *wanted, cn_uint64_t flags) {
    struct hami_hold hold;
    if (handle == NULL || wanted == NULL || wanted->location.type != CN_MEM_LOCATION_TYPE_DEVICE) return real(handle, bytes, wanted, flags);
    enum hami_verdict verdict = hami_reserve(cndrv_device_of((CNdev)wanted->location.id), bytes, &hold);
    if (verdict != HAMI_OK) return cndrv_refusal(verdict);
    CNresult result = real(handle, bytes, wanted, flags);
    if (result == CN_SUCCESS) {
        hami_vmm_created(*handle, &hold, bytes);
    } else {
        hami_give_back(&hold);
    }
    return result;
}

CNresult cndrv_hook_cnMemRelease(cnMemRelease_fn real, CNmemGenericAllocationHandle handle) {
    struct hami_entry entry;
    bool known = hami_book_find(HAMI_BOOK_HANDLE, handle, &entry), last = known && hami_vmm_release(handle, &entry);
    CNresult result = real(handle);
    if (known) hami_vmm_released(handle, &entry, last, result == CN_SUCCESS);
    return result;
}

CNresult cndrv_hook_cnMemRetainAllocationHandle(cnMemRetainAllocationHandle_fn real, CNmemGenericAllocationHandle *handle, CNaddr address) {
    struct hami_entry entry;
    CNresult result = real(handle, address);
    if (result == CN_SUCCESS && handle != NULL) (void)hami_book_refer(HAMI_BOOK_HANDLE, *handle, 1, &entry);
    return result;
}

CNresult cndrv_hook_cnMemMap(cnMemMap_fn real, CNaddr address, cn_uint64_t size, cn_uint64_t offset, CNmemGenericAllocationHandle handle, cn_uint64_t flags) {
    CNresult result = real(address, size, offset, handle, flags);
    if (result == CN_SUCCESS) hami_vmm_mapped(address, size, handle);
    return result;
}

CNresult cndrv_hook_cnMemUnmap(cnMemUnmap_fn real, CNaddr address, cn_uint64_t size) {
    struct hami_vmm_unmap taken;
    hami_vmm_unmap(&taken, address, size);
    CNresult result = real(address, size);
    hami_vmm_unmapped(&taken, result == CN_SUCCESS);
    return result;
}

/* -- between processes -------------------------------------------------------------------------------------------- */

static uint64_t bytes_behind(CNaddr address) {
    cnMemGetAddressRange_fn range = cndrv_real_cnMemGetAddressRange();
    CNaddr base = 0;
    cn_uint64_t bytes = 0;
    return range != NULL && range(&base, &bytes, address) == CN_SUCCESS ? bytes : 0;
}

CNresult cndrv_hook_cnIpcGetMemHandle(cnIpcGetMemHandle_fn real, CNIpcMemHandle *handle, CNaddr address) {
    CNresult result = real(handle, address);
    if (result == CN_SUCCESS && handle != NULL) hami_export_note(handle, sizeof *handle, bytes_behind(address));
    return result;
}

CNresult cndrv_hook_cnIpcOpenMemHandle(cnIpcOpenMemHandle_fn real, CNaddr *address, CNIpcMemHandle handle, unsigned int flags) {
    struct hami_hold hold;
    CNresult result = real(address, handle, flags);
    if (result != CN_SUCCESS || !hami_imports_charged(cndrv_device()) || hami_export_known(&handle, sizeof handle)) return result;
    uint64_t bytes = bytes_behind(*address);
    enum hami_verdict verdict = hami_reserve(cndrv_device(), bytes, &hold); /* the memory is there already: only who pays is asked */
    if (verdict == HAMI_OK) {
        (void)hami_book_keep(HAMI_BOOK_OTHER, *address, &hold, bytes, 0);
        return result;
    }
    cnIpcCloseMemHandle_fn close_handle = cndrv_real_cnIpcCloseMemHandle();
    if (close_handle != NULL) (void)close_handle(*address);
    *address = 0;
    return cndrv_refusal(verdict);
}

CNresult cndrv_hook_cnMemExportToShareableHandle(cnMemExportToShareableHandle_fn real, void *shareable, CNmemGenericAllocationHandle handle, int type, cn_uint64_t flags) {
    struct hami_entry entry;
    CNresult result = real(shareable, handle, type, flags);
    if (result != CN_SUCCESS || type != CN_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || shareable == NULL) return result;
    if (hami_book_find(HAMI_BOOK_HANDLE, handle, &entry)) hami_export_file(*(int *)shareable, entry.tag);
    return result;
}

CNresult cndrv_hook_cnMemImportFromShareableHandle(cnMemImportFromShareableHandle_fn real, CNmemGenericAllocationHandle *handle, void *shareable, int type) {
    struct hami_hold hold;
    uint64_t bytes = type == CN_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR && hami_imports_charged(cndrv_device()) ? hami_import_file_bytes((int)(intptr_t)shareable) : 0;
    enum hami_verdict verdict = hami_reserve(cndrv_device(), bytes, &hold);
    if (verdict != HAMI_OK) return cndrv_refusal(verdict);
    CNresult result = real(handle, shareable, type);
    if (result == CN_SUCCESS && handle != NULL) {
        hami_vmm_created(*handle, &hold, bytes);
    } else {
        hami_give_back(&hold);
    }
    return result;
}
