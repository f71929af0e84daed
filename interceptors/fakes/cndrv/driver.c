/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fake libcndrv over fake_heap.h. The machine file is the one that HAMI_FAKE_CAMBRICON names. cnZmalloc and its like are
 * rows of the table that are like cnMalloc, so one function answers for all of them.
 */
#include "cndrv_fake.h"

#define FH_VISIBLE "MLU_VISIBLE_DEVICES"
#include "fake_heap.h"

#define MACHINE "HAMI_FAKE_CAMBRICON"
#define KEY(pointer) ((uint64_t)(uintptr_t)(pointer))

struct CNcontext_st { CNdev device; };
static struct CNcontext_st shared[CARD_DEVICES];
static int contexts[CARD_DEVICES]; /* a device's memory goes with the last of them */
static _Thread_local CNcontext current;

static CNresult ready(CNdev device) {
    if (card_load(MACHINE) != 0) return 100002; /* not initialised */
    return device >= 0 && device < fh_count() ? CN_SUCCESS : CN_ERROR_INVALID_DEVICE;
}
static CNresult bound(void) { return current == NULL ? CN_CONTEXT_ERROR_INVALID : ready(current->device); }
static CNresult code(enum card_answer answer) { return answer == CARD_OK ? CN_SUCCESS : answer == CARD_FULL ? CN_MEMORY_ERROR_OUT_OF_MEMORY : 100016; }
static CNresult known(bool is) { return is ? CN_SUCCESS : CN_MEMORY_ERROR_INVALID_ADDRESS; }

/* -- devices and contexts ----------------------------------------------------------------------------------------- */

CNresult fake_cnInit(unsigned int flags) { return flags != 0 ? CN_ERROR_INVALID_VALUE : ready(0); }
CNresult fake_cnDeviceGet(CNdev *device, int ordinal) {
    *device = ordinal;
    return ready(ordinal);
}
CNresult fake_cnDeviceGetCount(int *count) {
    *count = card_load(MACHINE) == 0 ? fh_count() : 0;
    return CN_SUCCESS;
}
CNresult fake_cnDeviceGetPCIBusId(char *text, int length, CNdev device) {
    CNresult result = ready(device);
    if (result == CN_SUCCESS) snprintf(text, (size_t)length, "%s", hf_str("device", fh_visible(device), "pci", ""));
    return result;
}
CNresult fake_cnDeviceGetUuidStr(char *text, int length, CNdev device) {
    CNresult result = ready(device);
    if (result == CN_SUCCESS) snprintf(text, (size_t)length, "%s", hf_str("device", fh_visible(device), "uuid", ""));
    return result;
}
CNresult fake_cnDeviceTotalMem(cn_uint64_t *bytes, CNdev device) {
    uint64_t used;
    CNresult result = ready(device);
    if (result == CN_SUCCESS) fh_card_memory(device, bytes, &used);
    return result;
}
CNresult fake_cnMemGetInfo(cn_uint64_t *free_bytes, cn_uint64_t *total_bytes) {
    uint64_t used;
    CNresult result = bound();
    if (result != CN_SUCCESS) return result;
    fh_card_memory(current->device, total_bytes, &used);
    *free_bytes = *total_bytes - used;
    return CN_SUCCESS;
}
CNresult fake_cnMemGetNodeInfo(cn_uint64_t *free_bytes, cn_uint64_t *total_bytes, int node) { return node < 0 ? CN_ERROR_INVALID_VALUE : fake_cnMemGetInfo(free_bytes, total_bytes); }
CNresult fake_cnCtxCreate(CNcontext *context, unsigned int flags, CNdev device) {
    (void)flags;
    CNresult result = ready(device);
    if (result != CN_SUCCESS) return result;
    *context = calloc(1, sizeof **context);
    (*context)->device = device;
    current = *context;
    __atomic_fetch_add(&contexts[device], 1, __ATOMIC_RELAXED);
    return CN_SUCCESS;
}
static void context_gone(CNdev device) {
    if (__atomic_sub_fetch(&contexts[device], 1, __ATOMIC_RELAXED) <= 0) fh_reset(device);
}
CNresult fake_cnCtxDestroy(CNcontext context) {
    context_gone(context->device);
    if (current == context) current = NULL;
    free(context);
    return CN_SUCCESS;
}
CNresult fake_cnSharedContextAcquire(CNcontext *context, CNdev device) {
    CNresult result = ready(device);
    if (result != CN_SUCCESS) return result;
    shared[device].device = device;
    *context = &shared[device];
    __atomic_fetch_add(&contexts[device], 1, __ATOMIC_RELAXED);
    return CN_SUCCESS;
}
CNresult fake_cnSharedContextReset(CNdev device) {
    fh_reset(device);
    return ready(device);
}
CNresult fake_cnSharedContextRelease(CNdev device) {
    context_gone(device);
    return ready(device);
}
CNresult fake_cnCtxSetCurrent(CNcontext context) {
    current = context;
    return CN_SUCCESS;
}
CNresult fake_cnCtxGetCurrent(CNcontext *context) {
    *context = current;
    return CN_SUCCESS;
}
CNresult fake_cnCtxGetDevice(CNdev *device) {
    CNresult result = bound();
    if (result == CN_SUCCESS) *device = current->device;
    return result;
}
CNresult fake_cnCtxSync(void) {
    fh_wait(NULL);
    return CN_SUCCESS;
}

/* -- memory ------------------------------------------------------------------------------------------------------- */

CNresult fake_cnMalloc(CNaddr *out, cn_uint64_t bytes) {
    CNresult result = bound();
    return result == CN_SUCCESS ? code(fh_take(current->device, bytes, FH_LINEAR, out)) : result;
}
CNresult fake_cnMallocNode(CNaddr *out, cn_uint64_t bytes, int node) { return node < 0 ? CN_ERROR_INVALID_VALUE : fake_cnMalloc(out, bytes); }
CNresult fake_cnFree(CNaddr address) { return known(fh_give(address)); }
CNresult fake_cnMemGetAddressRange(CNaddr *base, cn_uint64_t *bytes, CNaddr address) {
    *base = address;
    *bytes = fh_asked(address);
    return known(*bytes != 0);
}
CNresult fake_cnDeviceGetMemPool(CNmemoryPool *pool, CNdev device) {
    CNresult result = ready(device);
    if (result == CN_SUCCESS) *pool = (CNmemoryPool)fh_default_pool(device);
    return result;
}
CNresult fake_cnDeviceGetDefaultMemPool(CNmemoryPool *pool, CNdev device) { return fake_cnDeviceGetMemPool(pool, device); }
CNresult fake_cnDeviceSetMemPool(CNdev device, CNmemoryPool pool) { return pool == NULL ? CN_ERROR_INVALID_VALUE : ready(device); }
CNresult fake_cnMemPoolCreate(CNmemoryPool *pool, CNmemPoolProps *wanted) {
    struct fh_pool *made = calloc(1, sizeof *made);
    made->device = (int)wanted->location.id;
    *pool = (CNmemoryPool)made;
    return CN_SUCCESS;
}
CNresult fake_cnMemAllocFromPoolAsync(CNaddr *out, size_t bytes, CNmemoryPool pool, CNqueue queue) {
    (void)queue;
    return code(fh_pool_take((struct fh_pool *)pool, bytes, out));
}
CNresult fake_cnMemAllocAsync(CNaddr *out, size_t bytes, CNqueue queue) {
    CNresult result = bound();
    return result == CN_SUCCESS ? fake_cnMemAllocFromPoolAsync(out, bytes, (CNmemoryPool)fh_default_pool(current->device), queue) : result;
}
CNresult fake_cnMemFreeAsync(CNaddr address, CNqueue queue) {
    (void)queue;
    return known(fh_give(address));
}
CNresult fake_cnMemPoolTrimTo(CNmemoryPool pool, size_t keep) {
    fh_pool_trim((struct fh_pool *)pool, keep);
    return CN_SUCCESS;
}
CNresult fake_cnMemPoolDestroy(CNmemoryPool pool) { return fake_cnMemPoolTrimTo(pool, 0); }
CNresult fake_cnMemPoolGetAttribute(CNmemoryPool pool, int attribute, void *value) {
    const struct fh_pool *it = (const struct fh_pool *)pool;
    *(uint64_t *)value = attribute == CN_MEMPOOL_ATTR_RESERVED_MEM_CURRENT ? it->reserved : it->used;
    return CN_SUCCESS;
}
CNresult fake_cnMemCreate(CNmemGenericAllocationHandle *handle, cn_uint64_t bytes, CNmemAllocationProp *wanted, cn_uint64_t flags) {
    CNresult result = flags != 0 || bytes % FH_PAGE != 0 ? CN_ERROR_INVALID_VALUE : ready((CNdev)wanted->location.id);
    return result == CN_SUCCESS ? code(fh_take((int)wanted->location.id, bytes, FH_HANDLE, handle)) : result;
}
CNresult fake_cnMemRelease(CNmemGenericAllocationHandle handle) { return known(fh_release(handle)); }
CNresult fake_cnMemAddressReserve(CNaddr *address, cn_uint64_t size, cn_uint64_t alignment, CNaddr start, cn_uint64_t flags) {
    (void)alignment;
    if (start != 0 || flags != 0) return CN_ERROR_INVALID_VALUE;
    *address = fh_addresses(size);
    return CN_SUCCESS;
}
CNresult fake_cnMemAddressFree(CNaddr address, cn_uint64_t size) { return known(address != 0 && size != 0); }
CNresult fake_cnMemMap(CNaddr address, cn_uint64_t size, cn_uint64_t offset, CNmemGenericAllocationHandle handle, cn_uint64_t flags) {
    return known(offset == 0 && flags == 0 && fh_map(address, size, handle));
}
CNresult fake_cnMemUnmap(CNaddr address, cn_uint64_t size) { return known(fh_unmap(address, size)); }
CNresult fake_cnMemRetainAllocationHandle(CNmemGenericAllocationHandle *handle, CNaddr address) {
    *handle = fh_retain(address);
    return known(*handle != 0);
}
CNresult fake_cnIpcGetMemHandle(CNIpcMemHandle *handle, CNaddr address) {
    uint64_t words[3] = {(uint64_t)getpid(), address, fh_asked(address)};
    memset(handle, 0, sizeof *handle);
    memcpy(handle, words, sizeof words);
    return known(words[2] != 0);
}
CNresult fake_cnIpcOpenMemHandle(CNaddr *address, CNIpcMemHandle handle, unsigned int flags) {
    uint64_t words[3];
    CNresult result = flags != 0 ? CN_ERROR_INVALID_VALUE : bound();
    if (result != CN_SUCCESS) return result;
    memcpy(words, &handle, sizeof words);
    *address = fh_foreign(words[2], current->device);
    return CN_SUCCESS;
}
CNresult fake_cnIpcCloseMemHandle(CNaddr address) { return known(fh_give(address)); }
CNresult fake_cnMemExportToShareableHandle(void *shareable, CNmemGenericAllocationHandle handle, int type, cn_uint64_t flags) {
    if (type != CN_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || flags != 0) return CN_ERROR_INVALID_VALUE;
    return known(fh_export(handle, shareable));
}
CNresult fake_cnMemImportFromShareableHandle(CNmemGenericAllocationHandle *handle, void *shareable, int type) {
    CNresult result = type != CN_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR ? CN_ERROR_INVALID_VALUE : bound();
    if (result == CN_SUCCESS) *handle = fh_import((int)(intptr_t)shareable, current->device);
    return result == CN_SUCCESS ? known(*handle != 0) : result;
}

/* -- work --------------------------------------------------------------------------------------------------------- */

CNresult cndrv_fake_launch(void *queue) {
    CNresult result = bound();
    return result != CN_SUCCESS || fh_run(current->device, queue) ? result : CN_ERROR_INVALID_VALUE;
}
CNresult fake_cnCreateQueue(CNqueue *queue, unsigned int flags) {
    *queue = calloc(1, sizeof(struct fh_stream));
    return flags == 0 ? CN_SUCCESS : CN_ERROR_INVALID_VALUE;
}
CNresult fake_cnDestroyQueue(CNqueue queue) {
    free(queue);
    return CN_SUCCESS;
}
CNresult fake_cnQueueSync(CNqueue queue) {
    fh_wait((struct fh_stream *)queue);
    return CN_SUCCESS;
}
CNresult fake_cnQueueIsCapturing(CNqueue queue, int *status) {
    (void)queue;
    *status = CN_QUEUE_CAPTURE_STATUS_NONE;
    return CN_SUCCESS;
}
CNresult fake_cnCreateNotifier(CNnotifier *notifier, unsigned int flags) {
    (void)flags;
    *notifier = calloc(1, sizeof(struct fh_event));
    return CN_SUCCESS;
}
CNresult fake_cnDestroyNotifier(CNnotifier notifier) {
    free(notifier);
    return CN_SUCCESS;
}
CNresult fake_cnPlaceNotifier(CNnotifier notifier, CNqueue queue) {
    CNresult result = bound();
    if (result == CN_SUCCESS) fh_record(current->device, (struct fh_event *)notifier, (struct fh_stream *)queue);
    return result;
}
CNresult fake_cnQueryNotifier(CNnotifier notifier) { return ((struct fh_event *)notifier)->time <= card_now() ? CN_SUCCESS : CN_ERROR_NOT_READY; }
CNresult fake_cnWaitNotifier(CNnotifier notifier) {
    card_wait(((struct fh_event *)notifier)->time);
    return CN_SUCCESS;
}
CNresult fake_cnNotifierElapsedTime(float *ms, CNnotifier start, CNnotifier end) {
    *ms = (float)((double)(((struct fh_event *)end)->time - ((struct fh_event *)start)->time) / 1e6);
    return CN_SUCCESS;
}
CNresult fake_cnGetExportFunction(const char *name, const void **address) {
    for (size_t at = 0; at < cndrv_fake_count; at++) {
        if (strcmp(cndrv_fake_rows[at].name, name) != 0) continue;
        *address = cndrv_fake_rows[at].address;
        return CN_SUCCESS;
    }
    return CN_ERROR_NOT_FOUND;
}
