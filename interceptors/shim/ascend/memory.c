/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory.c: the memory of CANN's runtime that a table row cannot say: pools, physical memory behind handles, and what is
 * exchanged between processes. Blocks above a MiB come as huge pages of 2 MiB; smaller ones are charged as shares of such a
 * page, which errs upwards.
 */
#include "ascend_hooks.h"

#include "../common/pools.h"
#include "../common/vmm.h"
#include "ascend_shim.h"

#define KEY(handle) ((uint64_t)(uintptr_t)(handle))

const struct hami_linear ascend_linear = {.granule = 2u << 20, .small_below = 1u << 20, .chunk = 2u << 20};

/* It can be asked for memory of the host, which costs the device nothing. */
rtError_t ascend_hook_rtMalloc(rtMalloc_fn real, void **out, uint64_t size, rtMemType_t type, uint16_t module) {
    rtMemType_t kind = type & RT_MEMORY_KIND;
    struct hami_hold hold;
    if (out == NULL || kind == RT_MEMORY_HOST || kind == RT_MEMORY_HOST_SVM) return real(out, size, type, module);
    enum hami_verdict verdict = hami_linear_reserve(&ascend_linear, ascend_device(), size, &hold);
    if (verdict != HAMI_OK) return ascend_refusal(verdict);
    rtError_t result = real(out, size, type, module);
    if (result == ACL_RT_SUCCESS) {
        (void)hami_linear_keep(&ascend_linear, KEY(*out), size, &hold);
    } else {
        hami_give_back(&hold);
    }
    return result;
}

/* -- pools ------------------------------------------------------------------------------------------------------ */

static bool pool_attribute(uint64_t pool, int attribute, uint64_t *bytes) {
    rtMemPoolGetAttr_fn get = ascend_real_rtMemPoolGetAttr();
    return get != NULL && get((rtMemPool_t)(uintptr_t)pool, attribute, bytes) == ACL_RT_SUCCESS;
}
static bool pool_reserved(uint64_t pool, uint64_t *bytes) { return pool_attribute(pool, RT_MEM_POOL_RESERVED_CURRENT, bytes); }
static bool pool_used(uint64_t pool, uint64_t *bytes) { return pool_attribute(pool, RT_MEM_POOL_USED_CURRENT, bytes); }

static struct hami_pools pools = {.granule = 2u << 20, .reserved = pool_reserved, .used = pool_used};

void ascend_settled(void) { hami_pools_reread(&pools); }

static rtError_t undo_from_pool(void *pointer, rtMemPool_t pool, rtStream_t stream) {
    rtMemPoolFreeAsync_fn give = ascend_real_rtMemPoolFreeAsync();
    rtStreamSynchronize_fn wait = ascend_real_rtStreamSynchronize();
    rtMemPoolTrimTo_fn trim = ascend_real_rtMemPoolTrimTo();
    if (give != NULL) (void)give(pointer, stream);
    if (wait != NULL) (void)wait(stream);
    if (trim != NULL) (void)trim(pool, 0);
    hami_pool_reread(&pools, KEY(pool));
    return ACL_ERROR_RT_MEMORY_ALLOCATION;
}

rtError_t ascend_hook_rtMemPoolMallocAsync(rtMemPoolMallocAsync_fn real, void **out, uint64_t size, rtMemPool_t pool, rtStream_t stream) {
    struct hami_hold hold;
    if (out == NULL) return real(out, size, pool, stream);
    enum hami_verdict verdict = hami_pool_reserve(&pools, KEY(pool), ascend_device(), size, &hold);
    if (verdict != HAMI_OK) return ascend_refusal(verdict);
    rtError_t result = real(out, size, pool, stream);
    if (result != ACL_RT_SUCCESS) {
        hami_give_back(&hold);
        return result;
    }
    if (hami_pool_took(&pools, KEY(pool), KEY(*out), &hold) != HAMI_OK) {
        result = undo_from_pool(*out, pool, stream);
        *out = NULL;
    }
    return result;
}

rtError_t ascend_hook_rtMemPoolFreeAsync(rtMemPoolFreeAsync_fn real, void *pointer, rtStream_t stream) {
    struct hami_entry entry;
    bool pooled = hami_pool_take(KEY(pointer), &entry);
    rtError_t result = real(pointer, stream);
    if (pooled) hami_pool_freed(&pools, &entry, result == ACL_RT_SUCCESS);
    return result;
}

rtError_t ascend_hook_rtMemPoolTrimTo(rtMemPoolTrimTo_fn real, rtMemPool_t pool, uint64_t keep) {
    rtError_t result = real(pool, keep);
    hami_pool_reread(&pools, KEY(pool));
    return result;
}

rtError_t ascend_hook_rtMemPoolDestroy(rtMemPoolDestroy_fn real, rtMemPool_t pool) {
    rtError_t result = real(pool);
    if (result == ACL_RT_SUCCESS) hami_pool_destroyed(&pools, KEY(pool));
    return result;
}

rtError_t ascend_hook_rtStreamSynchronize(rtStreamSynchronize_fn real, rtStream_t stream) {
    rtError_t result = real(stream);
    ascend_settled();
    return result;
}

/* -- physical memory behind handles: charged here, whatever is mapped later ---------------------------------------- */

rtError_t ascend_hook_rtMallocPhysical(rtMallocPhysical_fn real, rtDrvMemHandle *handle, size_t size, rtDrvMemProp_t *wanted, uint64_t flags) {
    struct hami_hold hold;
    if (handle == NULL || wanted == NULL || wanted->side != RT_MEM_SIDE_DEVICE) return real(handle, size, wanted, flags);
    enum hami_verdict verdict = hami_reserve(ascend_device_of((int32_t)wanted->device), size, &hold);
    if (verdict != HAMI_OK) return ascend_refusal(verdict);
    rtError_t result = real(handle, size, wanted, flags);
    if (result == ACL_RT_SUCCESS) {
        hami_vmm_created(KEY(*handle), &hold, size);
    } else {
        hami_give_back(&hold);
    }
    return result;
}

rtError_t ascend_hook_rtsMemMallocPhysical(rtsMemMallocPhysical_fn real, rtDrvMemHandle *handle, size_t size, int policy, void *config) {
    struct hami_hold hold;
    if (handle == NULL) return real(handle, size, policy, config);
    enum hami_verdict verdict = hami_reserve(ascend_device(), size, &hold);
    if (verdict != HAMI_OK) return ascend_refusal(verdict);
    rtError_t result = real(handle, size, policy, config);
    if (result == ACL_RT_SUCCESS) {
        hami_vmm_created(KEY(*handle), &hold, size);
    } else {
        hami_give_back(&hold);
    }
    return result;
}

rtError_t ascend_hook_rtFreePhysical(rtFreePhysical_fn real, rtDrvMemHandle handle) {
    struct hami_entry entry;
    bool known = hami_book_find(HAMI_BOOK_HANDLE, KEY(handle), &entry), last = known && hami_vmm_release(KEY(handle), &entry);
    rtError_t result = real(handle);
    if (known) hami_vmm_released(KEY(handle), &entry, last, result == ACL_RT_SUCCESS);
    return result;
}

rtError_t ascend_hook_rtsMemFreePhysical(rtsMemFreePhysical_fn real, rtDrvMemHandle *handle) {
    struct hami_entry entry;
    uint64_t key = handle == NULL ? 0 : KEY(*handle);
    bool known = hami_book_find(HAMI_BOOK_HANDLE, key, &entry), last = known && hami_vmm_release(key, &entry);
    rtError_t result = real(handle);
    if (known) hami_vmm_released(key, &entry, last, result == ACL_RT_SUCCESS);
    return result;
}

rtError_t ascend_hook_rtMemRetainAllocationHandle(rtMemRetainAllocationHandle_fn real, void *address, rtDrvMemHandle *handle) {
    struct hami_entry entry;
    rtError_t result = real(address, handle);
    if (result == ACL_RT_SUCCESS && handle != NULL) (void)hami_book_refer(HAMI_BOOK_HANDLE, KEY(*handle), 1, &entry);
    return result;
}

rtError_t ascend_hook_rtMapMem(rtMapMem_fn real, void *address, size_t size, size_t offset, rtDrvMemHandle handle, uint64_t flags) {
    rtError_t result = real(address, size, offset, handle, flags);
    if (result == ACL_RT_SUCCESS) hami_vmm_mapped(KEY(address), size, KEY(handle));
    return result;
}

rtError_t ascend_hook_rtUnmapMem(rtUnmapMem_fn real, void *address) {
    struct hami_vmm_unmap taken;
    hami_vmm_unmap(&taken, KEY(address), 0);
    rtError_t result = real(address);
    hami_vmm_unmapped(&taken, result == ACL_RT_SUCCESS);
    return result;
}

/* -- between processes: a shareable handle is a number that names its memory everywhere ------------------------------- */

rtError_t ascend_hook_rtMemExportToShareableHandle(rtMemExportToShareableHandle_fn real, rtDrvMemHandle handle, int type, uint64_t flags, uint64_t *shareable) {
    struct hami_entry entry;
    rtError_t result = real(handle, type, flags, shareable);
    if (result == ACL_RT_SUCCESS && shareable != NULL && hami_book_find(HAMI_BOOK_HANDLE, KEY(handle), &entry)) {
        hami_export_note(shareable, sizeof *shareable, entry.tag);
    }
    return result;
}

/* Memory of another container stays that container's: the handle does not say its size. It is only counted by reference. */
rtError_t ascend_hook_rtMemImportFromShareableHandle(rtMemImportFromShareableHandle_fn real, uint64_t shareable, int32_t device, rtDrvMemHandle *handle) {
    struct hami_hold hold = {.device = ascend_device_of(device)};
    if (hold.device == HAMI_NO_DEVICE) return ascend_refusal(HAMI_REFUSED);
    rtError_t result = real(shareable, device, handle);
    if (result == ACL_RT_SUCCESS && handle != NULL) hami_vmm_created(KEY(*handle), &hold, 0);
    return result;
}
