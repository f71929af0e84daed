/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device.c: which of the policy's devices the calling thread uses, what queries show of it, the life of a device in this process,
 * and how launches are timed. A device is known by its physical number (a vNPU's is its own: 100 and above), else by the number it
 * has in the container.
 */
#include <stdatomic.h>
#include <stdio.h>

#include "ascend_hooks.h"

#include "../common/devices.h"
#include "ascend_shim.h"

enum { FIRST_VNPU = 100 };

static int by_number(const char *kind, uint32_t number) {
    char text[16];
    snprintf(text, sizeof text, "%u", number);
    return hami_device_find(kind, text);
}

static bool physical_number(int ordinal, uint32_t *physical) {
    rtGetDevicePhyIdByIndex_fn by_index = ascend_real_rtGetDevicePhyIdByIndex();
    rtsGetPhyDevIdByLogicDevId_fn by_logic = ascend_real_rtsGetPhyDevIdByLogicDevId();
    int32_t number = -1;
    if (by_index != NULL && by_index((uint32_t)ordinal, physical) == ACL_RT_SUCCESS) return true;
    if (by_logic == NULL || by_logic(ordinal, &number) != ACL_RT_SUCCESS || number < 0) return false;
    *physical = (uint32_t)number;
    return true;
}

static int find(int ordinal) {
    uint32_t physical = 0;
    int device = HAMI_NO_DEVICE;
    if (physical_number(ordinal, &physical)) {
        device = physical >= FIRST_VNPU ? by_number("vnpu", physical) : by_number("physical", physical);
    }
    return device != HAMI_NO_DEVICE ? device : by_number("logical", (uint32_t)ordinal);
}

static struct hami_ordinals ordinals = {.find = find};

static int32_t current(void) {
    rtGetDevice_fn get = ascend_real_rtGetDevice();
    int32_t device = -1;
    return get != NULL && get(&device) == ACL_RT_SUCCESS ? device : -1;
}

int ascend_device_of(int32_t device) { return hami_ordinal_device(&ordinals, device); }
int ascend_device(void) { return ascend_device_of(current()); }

uint64_t ascend_context(void) {
    rtCtxGetCurrent_fn get = ascend_real_rtCtxGetCurrent();
    rtContext_t context = NULL;
    return get != NULL && get(&context) == ACL_RT_SUCCESS ? (uint64_t)(uintptr_t)context : 0;
}

/* -- queries ---------------------------------------------------------------------------------------------------- */

static rtError_t show(rtError_t result, size_t *free_bytes, size_t *total_bytes) {
    if (result != ACL_RT_SUCCESS) return result;
    ascend_settled();
    uint64_t left = free_bytes == NULL ? 0 : *free_bytes, total = total_bytes == NULL ? 0 : *total_bytes;
    hami_show_slice(ascend_device(), &left, &total);
    if (free_bytes != NULL) *free_bytes = left;
    if (total_bytes != NULL) *total_bytes = total;
    return result;
}

rtError_t ascend_hook_rtMemGetInfo(rtMemGetInfo_fn real, size_t *free_bytes, size_t *total_bytes) {
    return show(real(free_bytes, total_bytes), free_bytes, total_bytes);
}

rtError_t ascend_hook_rtMemGetInfoEx(rtMemGetInfoEx_fn real, int kind, size_t *free_bytes, size_t *total_bytes) {
    return show(real(kind, free_bytes, total_bytes), free_bytes, total_bytes);
}

/* -- a device in this process: every set counts, and the last reset takes its memory ------------------------------- */

static _Atomic int sets[HAMI_ORDINALS];

static rtError_t opened(rtError_t result, int32_t device) {
    if (result != ACL_RT_SUCCESS) return result;
    (void)ascend_device_of(device); /* its first use charges the context */
    if (device >= 0 && device < HAMI_ORDINALS) atomic_fetch_add_explicit(&sets[device], 1, memory_order_relaxed);
    return result;
}

static void gone(int32_t device) {
    atomic_store_explicit(&sets[device], 0, memory_order_relaxed);
    hami_sample_forget(0);
    hami_device_gone(&ascend_linear, ascend_device_of(device));
}

rtError_t ascend_hook_rtSetDevice(rtSetDevice_fn real, int32_t device) { return opened(real(device), device); }
rtError_t ascend_hook_rtSetDeviceWithFlags(rtSetDeviceWithFlags_fn real, int32_t device, uint64_t flags) { return opened(real(device, flags), device); }

rtError_t ascend_hook_rtDeviceReset(rtDeviceReset_fn real, int32_t device) {
    rtError_t result = real(device);
    if (result != ACL_RT_SUCCESS || device < 0 || device >= HAMI_ORDINALS) return result;
    if (atomic_fetch_sub_explicit(&sets[device], 1, memory_order_relaxed) <= 1) gone(device);
    return result;
}

rtError_t ascend_hook_rtDeviceResetForce(rtDeviceResetForce_fn real, int32_t device) {
    rtError_t result = real(device);
    if (result == ACL_RT_SUCCESS && device >= 0 && device < HAMI_ORDINALS) gone(device);
    return result;
}

/* -- time ------------------------------------------------------------------------------------------------------- */

bool ascend_may_wait(void *stream) {
    rtStreamGetCaptureInfo_fn info = ascend_real_rtStreamGetCaptureInfo();
    rtModel_t model = NULL;
    int status = RT_STREAM_CAPTURE_STATUS_NONE;
    if (info == NULL || stream == NULL) return true; /* without capture; and the default stream cannot be captured */
    return info(stream, &status, &model) != ACL_RT_SUCCESS || status == RT_STREAM_CAPTURE_STATUS_NONE;
}

static bool event_create(void **event) {
    rtEventCreateWithFlag_fn create = ascend_real_rtEventCreateWithFlag();
    return create != NULL && create(event, RT_EVENT_TIME_LINE) == ACL_RT_SUCCESS;
}

static bool event_record(void *event, void *stream) {
    rtEventRecord_fn record = ascend_real_rtEventRecord();
    return record != NULL && record(event, stream) == ACL_RT_SUCCESS;
}

static bool event_done(void *event) {
    rtEventQueryStatus_fn query = ascend_real_rtEventQueryStatus();
    int status = 0;
    return query != NULL && query(event, &status) == ACL_RT_SUCCESS && status == RT_EVENT_RECORDED;
}

static bool event_elapsed_ns(void *from, void *to, uint64_t *ns) {
    rtEventElapsedTime_fn elapsed = ascend_real_rtEventElapsedTime();
    float ms = 0;
    if (elapsed == NULL || elapsed(&ms, from, to) != ACL_RT_SUCCESS || ms < 0) return false;
    *ns = (uint64_t)((double)ms * 1e6);
    return true;
}

static void event_destroy(void *event) {
    rtEventDestroy_fn destroy = ascend_real_rtEventDestroy();
    if (destroy != NULL) (void)destroy(event);
}

const struct hami_event_calls ascend_events = {
    .create = event_create, .record = event_record, .done = event_done, .elapsed_ns = event_elapsed_ns, .destroy = event_destroy,
};
