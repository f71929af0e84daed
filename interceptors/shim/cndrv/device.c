/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device.c: which of the policy's devices the calling thread's context is on, what queries show of it, how launches are timed
 * on it, the life of contexts, and the resolver. A device is known by its UUID, as CNDEV prints it ("MLU-" before it or not),
 * else by its PCI address.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "cndrv_hooks.h"

#include "../common/devices.h"
#include "cndrv_shim.h"

static int find(int ordinal) {
    cnDeviceGetUuidStr_fn uuid = cndrv_real_cnDeviceGetUuidStr();
    cnDeviceGetPCIBusId_fn pci = cndrv_real_cnDeviceGetPCIBusId();
    char text[48] = "MLU-";
    int device = HAMI_NO_DEVICE;
    if (uuid != NULL && uuid(text + 4, 40, ordinal) == CN_SUCCESS) {
        text[4 + 36] = '\0';
        device = hami_device_find("uuid", text);
        if (device == HAMI_NO_DEVICE) device = hami_device_find("uuid", text + 4);
    }
    if (device == HAMI_NO_DEVICE && pci != NULL && pci(text, 32, ordinal) == CN_SUCCESS) device = hami_device_find("pci", text);
    return device;
}

static struct hami_ordinals ordinals = {.find = find};

CNdev cndrv_current(void) {
    cnCtxGetDevice_fn get = cndrv_real_cnCtxGetDevice();
    CNdev device = -1;
    return get != NULL && get(&device) == CN_SUCCESS ? device : -1;
}

int cndrv_device_of(CNdev device) { return hami_ordinal_device(&ordinals, device); }
int cndrv_device(void) { return cndrv_device_of(cndrv_current()); }

uint64_t cndrv_context(void) {
    cnCtxGetCurrent_fn get = cndrv_real_cnCtxGetCurrent();
    CNcontext context = NULL;
    return get != NULL && get(&context) == CN_SUCCESS ? (uint64_t)(uintptr_t)context : 0;
}

/* -- queries ---------------------------------------------------------------------------------------------------- */

static CNresult show(CNresult result, cn_uint64_t *free_bytes, cn_uint64_t *total_bytes) {
    if (result != CN_SUCCESS) return result;
    cndrv_settled();
    hami_show_slice(cndrv_device(), free_bytes, total_bytes);
    return result;
}

CNresult cndrv_hook_cnMemGetInfo(cnMemGetInfo_fn real, cn_uint64_t *free_bytes, cn_uint64_t *total_bytes) {
    return show(real(free_bytes, total_bytes), free_bytes, total_bytes);
}

CNresult cndrv_hook_cnMemGetNodeInfo(cnMemGetNodeInfo_fn real, cn_uint64_t *free_bytes, cn_uint64_t *total_bytes, int node) {
    return show(real(free_bytes, total_bytes, node), free_bytes, total_bytes);
}

CNresult cndrv_hook_cnDeviceTotalMem(cnDeviceTotalMem_fn real, cn_uint64_t *bytes, CNdev device) {
    CNresult result = real(bytes, device);
    if (result == CN_SUCCESS) hami_show_slice(cndrv_device_of(device), NULL, bytes);
    return result;
}

/* -- contexts: a device's memory goes with the last of them ------------------------------------------------------- */

static _Atomic int contexts[HAMI_ORDINALS];

static void context_made(CNdev device) {
    (void)cndrv_device_of(device); /* its first use charges the context */
    if (device >= 0 && device < HAMI_ORDINALS) atomic_fetch_add_explicit(&contexts[device], 1, memory_order_relaxed);
}

static void context_gone(CNdev device) {
    if (device < 0 || device >= HAMI_ORDINALS) return;
    if (atomic_fetch_sub_explicit(&contexts[device], 1, memory_order_relaxed) == 1) hami_device_gone(&cndrv_linear, cndrv_device_of(device));
}

CNresult cndrv_hook_cnCtxCreate(cnCtxCreate_fn real, CNcontext *context, unsigned int flags, CNdev device) {
    CNresult result = real(context, flags, device);
    if (result == CN_SUCCESS) context_made(device);
    return result;
}

/* Which device a context is on, only the driver knows, and only of the current one. */
static CNdev device_of_context(CNcontext context) {
    cnCtxSetCurrent_fn set = cndrv_real_cnCtxSetCurrent();
    CNcontext before = (CNcontext)(uintptr_t)cndrv_context();
    if (context == before || set == NULL) return cndrv_current();
    CNdev device = set(context) == CN_SUCCESS ? cndrv_current() : -1;
    (void)set(before);
    return device;
}

CNresult cndrv_hook_cnCtxDestroy(cnCtxDestroy_fn real, CNcontext context) {
    CNdev device = device_of_context(context);
    hami_sample_forget((uint64_t)(uintptr_t)context);
    CNresult result = real(context);
    if (result == CN_SUCCESS) context_gone(device);
    return result;
}

CNresult cndrv_hook_cnSharedContextAcquire(cnSharedContextAcquire_fn real, CNcontext *context, CNdev device) {
    CNresult result = real(context, device);
    if (result == CN_SUCCESS) context_made(device);
    return result;
}

CNresult cndrv_hook_cnSharedContextRelease(cnSharedContextRelease_fn real, CNdev device) {
    CNresult result = real(device);
    if (result == CN_SUCCESS) context_gone(device);
    return result;
}

CNresult cndrv_hook_cnSharedContextReset(cnSharedContextReset_fn real, CNdev device) {
    CNresult result = real(device);
    if (result != CN_SUCCESS || device < 0 || device >= HAMI_ORDINALS) return result;
    atomic_store_explicit(&contexts[device], 0, memory_order_relaxed);
    hami_sample_forget(0);
    hami_device_gone(&cndrv_linear, cndrv_device_of(device));
    return result;
}

/* -- time ------------------------------------------------------------------------------------------------------- */

bool cndrv_may_wait(void *queue) {
    cnQueueIsCapturing_fn capturing = cndrv_real_cnQueueIsCapturing();
    int status = CN_QUEUE_CAPTURE_STATUS_NONE;
    if (capturing == NULL || queue == NULL) return true; /* the default queue cannot be captured */
    return capturing((CNqueue)queue, &status) == CN_SUCCESS && status == CN_QUEUE_CAPTURE_STATUS_NONE;
}

static bool event_create(void **event) {
    cnCreateNotifier_fn create = cndrv_real_cnCreateNotifier();
    return create != NULL && create((CNnotifier *)event, 0) == CN_SUCCESS;
}

static bool event_record(void *event, void *queue) {
    cnPlaceNotifier_fn place = cndrv_real_cnPlaceNotifier();
    return place != NULL && place((CNnotifier)event, (CNqueue)queue) == CN_SUCCESS;
}

static bool event_done(void *event) {
    cnQueryNotifier_fn query = cndrv_real_cnQueryNotifier();
    return query != NULL && query((CNnotifier)event) == CN_SUCCESS;
}

static bool event_elapsed_ns(void *from, void *to, uint64_t *ns) {
    cnNotifierElapsedTime_fn elapsed = cndrv_real_cnNotifierElapsedTime();
    float ms = 0;
    if (elapsed == NULL || elapsed(&ms, (CNnotifier)from, (CNnotifier)to) != CN_SUCCESS || ms < 0) return false;
    *ns = (uint64_t)((double)ms * 1e6);
    return true;
}

static void event_destroy(void *event) {
    cnDestroyNotifier_fn destroy = cndrv_real_cnDestroyNotifier();
    if (destroy != NULL) (void)destroy((CNnotifier)event);
}

const struct hami_event_calls cndrv_events = {
    .create = event_create, .record = event_record, .done = event_done, .elapsed_ns = event_elapsed_ns, .destroy = event_destroy,
};

/* -- the resolver: the driver's answer first, then our function for that address ----------------------------------- */

CNresult cndrv_hook_cnGetExportFunction(cnGetExportFunction_fn real, const char *name, const void **address) {
    CNresult result = real(name, address);
    if (result == CN_SUCCESS && name != NULL && address != NULL && *address != NULL) *address = hami_hook_for(&hami_library_cndrv, name, (void *)*address);
    return result;
}
