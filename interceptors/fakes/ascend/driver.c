/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fake libruntime over fake_heap.h. The machine file is the one that HAMI_FAKE_ASCEND names; a device's key `phy` is its
 * physical number, else its place.
 */
#include "ascend_fake.h"

#define FH_VISIBLE "ASCEND_RT_VISIBLE_DEVICES"
#include "fake_heap.h"

#define MACHINE "HAMI_FAKE_ASCEND"
#define POINTER(address) ((void *)(uintptr_t)(address))
#define KEY(pointer) ((uint64_t)(uintptr_t)(pointer))

HAMI_FAKE_EXPORT rtError_t rtMalloc(void **out, uint64_t size, rtMemType_t type, uint16_t module);

static _Thread_local int32_t current = -1;

static rtError_t ready(int32_t device) {
    if (card_load(MACHINE) != 0) return 207004; /* no device */
    return device >= 0 && device < fh_count() ? ACL_RT_SUCCESS : ACL_ERROR_RT_INVALID_DEVICEID;
}
static rtError_t bound(void) { return current < 0 ? ACL_ERROR_RT_CONTEXT_NULL : ready(current); }
static rtError_t code(enum card_answer answer) { return answer == CARD_OK ? ACL_RT_SUCCESS : answer == CARD_FULL ? ACL_ERROR_RT_MEMORY_ALLOCATION : 507033; }
static rtError_t known(bool is) { return is ? ACL_RT_SUCCESS : ACL_ERROR_RT_PARAM_INVALID; }

/* -- devices ------------------------------------------------------------------------------------------------------ */

static int sets[CARD_DEVICES]; /* every set wants its reset; with the last one goes all that this process has there */

rtError_t fake_rtSetDevice(int32_t device) {
    rtError_t result = ready(device);
    if (result != ACL_RT_SUCCESS) return result;
    current = device;
    __atomic_fetch_add(&sets[device], 1, __ATOMIC_RELAXED);
    return result;
}
rtError_t fake_rtSetDeviceWithFlags(int32_t device, uint64_t flags) { return flags != 0 ? ACL_ERROR_RT_PARAM_INVALID : fake_rtSetDevice(device); }
rtError_t fake_rtDeviceResetForce(int32_t device) {
    rtError_t result = ready(device);
    if (result != ACL_RT_SUCCESS) return result;
    __atomic_store_n(&sets[device], 0, __ATOMIC_RELAXED);
    fh_reset(device);
    return result;
}
rtError_t fake_rtDeviceReset(int32_t device) {
    rtError_t result = ready(device);
    if (result != ACL_RT_SUCCESS || __atomic_sub_fetch(&sets[device], 1, __ATOMIC_RELAXED) > 0) return result;
    return fake_rtDeviceResetForce(device);
}
rtError_t fake_rtGetDevice(int32_t *device) {
    *device = current;
    return bound();
}
rtError_t fake_rtGetDeviceCount(int32_t *count) {
    *count = card_load(MACHINE) == 0 ? fh_count() : 0;
    return ACL_RT_SUCCESS;
}
rtError_t fake_rtGetDevicePhyIdByIndex(uint32_t index, uint32_t *physical) {
    rtError_t result = ready((int32_t)index);
    if (result == ACL_RT_SUCCESS) *physical = (uint32_t)hf_int("device", fh_visible((int)index), "phy", index);
    return result;
}
rtError_t fake_rtsGetPhyDevIdByLogicDevId(int32_t logical, int32_t *physical) { return fake_rtGetDevicePhyIdByIndex((uint32_t)logical, (uint32_t *)physical); }
rtError_t fake_rtMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    uint64_t capacity, used;
    rtError_t result = bound();
    if (result != ACL_RT_SUCCESS) return result;
    fh_card_memory(current, &capacity, &used);
    *free_bytes = capacity - used;
    *total_bytes = capacity;
    return ACL_RT_SUCCESS;
}
rtError_t fake_rtMemGetInfoEx(int kind, size_t *free_bytes, size_t *total_bytes) { return kind < 0 ? ACL_ERROR_RT_PARAM_INVALID : fake_rtMemGetInfo(free_bytes, total_bytes); }

/* -- memory ------------------------------------------------------------------------------------------------------- */

static rtError_t take(void **out, int32_t device, uint64_t bytes, enum fh_kind kind) {
    uint64_t address = 0;
    rtError_t result = ready(device);
    if (result == ACL_RT_SUCCESS) result = code(fh_take(device, bytes, kind, &address));
    if (result == ACL_RT_SUCCESS) *out = POINTER(address);
    return result;
}
rtError_t fake_rtMalloc(void **out, uint64_t size, rtMemType_t type, uint16_t module) {
    (void)module;
    if ((type & RT_MEMORY_KIND) != RT_MEMORY_HOST) return take(out, current, size, FH_LINEAR);
    *out = POINTER(fh_foreign(size, current)); /* of no device */
    return bound();
}
rtError_t fake_rtsMalloc(void **out, uint64_t size, int policy, int advise, void *config) {
    (void)policy, (void)advise, (void)config;
    return rtMalloc(out, size, 0, 0); /* through its own export, as the runtime does */
}
rtError_t fake_rtMemAllocManaged(void **out, uint64_t size, uint32_t flags, uint16_t module) {
    (void)flags, (void)module;
    return take(out, current, size, FH_LINEAR);
}
rtError_t fake_rtDvppMalloc(void **out, uint64_t size, uint16_t module) { return fake_rtMemAllocManaged(out, size, 0, module); }
rtError_t fake_rtDvppMallocWithFlag(void **out, uint64_t size, uint32_t flags, uint16_t module) { return fake_rtMemAllocManaged(out, size, flags, module); }
rtError_t fake_rtFree(void *pointer) { return known(fh_give(KEY(pointer))); }
rtError_t fake_rtMallocPhysical(rtDrvMemHandle *handle, size_t size, rtDrvMemProp_t *wanted, uint64_t flags) {
    return flags != 0 ? ACL_ERROR_RT_PARAM_INVALID : take(handle, (int32_t)wanted->device, size, FH_HANDLE);
}
rtError_t fake_rtsMemMallocPhysical(rtDrvMemHandle *handle, size_t size, int policy, void *config) {
    (void)policy, (void)config;
    return take(handle, current, size, FH_HANDLE);
}
rtError_t fake_rtFreePhysical(rtDrvMemHandle handle) { return known(fh_release(KEY(handle))); }
rtError_t fake_rtsMemFreePhysical(rtDrvMemHandle *handle) { return fake_rtFreePhysical(*handle); }
rtError_t fake_rtReserveMemAddress(void **address, size_t size, size_t alignment, void *wanted, uint64_t flags) {
    (void)alignment, (void)flags;
    *address = POINTER(fh_addresses(size));
    return known(wanted == NULL);
}
rtError_t fake_rtMapMem(void *address, size_t size, size_t offset, rtDrvMemHandle handle, uint64_t flags) {
    return known(offset == 0 && flags == 0 && fh_map(KEY(address), size, KEY(handle)));
}
rtError_t fake_rtUnmapMem(void *address) { return known(fh_unmap(KEY(address), 0)); }
rtError_t fake_rtMemRetainAllocationHandle(void *address, rtDrvMemHandle *handle) {
    *handle = POINTER(fh_retain(KEY(address)));
    return known(*handle != NULL);
}
rtError_t fake_rtMemExportToShareableHandle(rtDrvMemHandle handle, int type, uint64_t flags, uint64_t *shareable) {
    *shareable = (uint64_t)getpid() << 32 | (KEY(handle) >> 12 & 0xFFFFFFFF);
    return known(type >= 0 && flags == 0 && fh_asked(KEY(handle)) != 0);
}
rtError_t fake_rtMemImportFromShareableHandle(uint64_t shareable, int32_t device, rtDrvMemHandle *handle) {
    rtError_t result = shareable == 0 ? ACL_ERROR_RT_PARAM_INVALID : ready(device);
    if (result == ACL_RT_SUCCESS) *handle = POINTER(fh_imported(FH_PAGE, device));
    return result;
}
rtError_t fake_rtMemPoolCreate(rtMemPool_t *pool, const rtMemPoolProps *wanted) {
    struct fh_pool *made = calloc(1, sizeof *made);
    (void)wanted;
    made->device = current;
    *pool = made;
    return bound();
}
rtError_t fake_rtMemPoolMallocAsync(void **out, uint64_t size, rtMemPool_t pool, rtStream_t stream) {
    uint64_t address = 0;
    (void)stream;
    rtError_t result = code(fh_pool_take(pool, size, &address));
    if (result == ACL_RT_SUCCESS) *out = POINTER(address);
    return result;
}
rtError_t fake_rtMemPoolFreeAsync(void *pointer, rtStream_t stream) {
    (void)stream;
    return known(fh_give(KEY(pointer)));
}
rtError_t fake_rtMemPoolTrimTo(rtMemPool_t pool, uint64_t keep) {
    fh_pool_trim(pool, keep);
    return ACL_RT_SUCCESS;
}
rtError_t fake_rtMemPoolDestroy(rtMemPool_t pool) { return fake_rtMemPoolTrimTo(pool, 0); }
rtError_t fake_rtMemPoolGetAttr(rtMemPool_t pool, int attribute, void *value) {
    const struct fh_pool *it = pool;
    *(uint64_t *)value = attribute == RT_MEM_POOL_RESERVED_CURRENT ? it->reserved : it->used;
    return ACL_RT_SUCCESS;
}

/* -- work --------------------------------------------------------------------------------------------------------- */

rtError_t ascend_fake_launch(void *stream) {
    rtError_t result = bound();
    return result != ACL_RT_SUCCESS || fh_run(current, stream) ? result : ACL_ERROR_RT_PARAM_INVALID;
}
rtError_t fake_rtStreamSynchronize(rtStream_t stream) {
    fh_wait(stream);
    return ACL_RT_SUCCESS;
}
rtError_t fake_rtEventCreateWithFlag(rtEvent_t *event, uint32_t flags) {
    (void)flags;
    *event = calloc(1, sizeof(struct fh_event));
    return ACL_RT_SUCCESS;
}
rtError_t fake_rtEventDestroy(rtEvent_t event) {
    free(event);
    return ACL_RT_SUCCESS;
}
rtError_t fake_rtEventRecord(rtEvent_t event, rtStream_t stream) {
    fh_record(current, event, stream);
    return ACL_RT_SUCCESS;
}
rtError_t fake_rtEventQueryStatus(rtEvent_t event, int *status) {
    *status = ((struct fh_event *)event)->time <= card_now() ? RT_EVENT_RECORDED : 0;
    return ACL_RT_SUCCESS;
}
rtError_t fake_rtEventElapsedTime(float *ms, rtEvent_t start, rtEvent_t end) {
    *ms = (float)((double)(((struct fh_event *)end)->time - ((struct fh_event *)start)->time) / 1e6);
    return ACL_RT_SUCCESS;
}
