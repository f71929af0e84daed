/* SPDX-License-Identifier: Apache-2.0 */
/* launch.c: events for timing sampled launches, and the launch of graphs, which may take memory too. */
#include "hip_hooks.h"

#include "hip_shim.h"

bool hip_may_wait(void *stream) {
    hipStreamIsCapturing_fn capturing = hip_real_hipStreamIsCapturing();
    int status = hipStreamCaptureStatusNone;
    if (capturing == NULL) return true; /* a driver without capture */
    return capturing((hipStream_t)stream, &status) == hipSuccess && status == hipStreamCaptureStatusNone;
}

/* While any thread captures in the global mode, only a thread that has declared itself relaxed may make or ask an event; else that capture ends. */
static void exchange_mode(int *mode) {
    hipThreadExchangeStreamCaptureMode_fn exchange = hip_real_hipThreadExchangeStreamCaptureMode();
    if (exchange == NULL || exchange(mode) != hipSuccess) *mode = -1;
}

static int relax(void) {
    int mode = hipStreamCaptureModeRelaxed;
    exchange_mode(&mode);
    return mode;
}

static void restore(int mode) {
    if (mode >= 0) exchange_mode(&mode);
}

static bool event_create(void **event) {
    hipEventCreateWithFlags_fn create = hip_real_hipEventCreateWithFlags();
    int mode = relax();
    bool made = create != NULL && create((hipEvent_t *)event, 0) == hipSuccess;
    restore(mode);
    return made;
}

static bool event_record(void *event, void *stream) {
    hipEventRecord_fn record = hip_real_hipEventRecord();
    return record != NULL && record((hipEvent_t)event, (hipStream_t)stream) == hipSuccess;
}

static bool event_done(void *event) {
    hipEventQuery_fn query = hip_real_hipEventQuery();
    int mode = relax();
    bool done = query != NULL && query((hipEvent_t)event) == hipSuccess;
    restore(mode);
    return done;
}

static bool event_elapsed_ns(void *from, void *to, uint64_t *ns) {
    hipEventElapsedTime_fn elapsed = hip_real_hipEventElapsedTime();
    float ms = 0;
    if (elapsed == NULL || elapsed(&ms, (hipEvent_t)from, (hipEvent_t)to) != hipSuccess || ms < 0) return false;
    *ns = (uint64_t)((double)ms * 1e6);
    return true;
}

static void event_destroy(void *event) {
    hipEventDestroy_fn destroy = hip_real_hipEventDestroy();
    if (destroy != NULL) (void)destroy((hipEvent_t)event);
}

const struct hami_event_calls hip_events = {
    .create = event_create, .record = event_record, .done = event_done, .elapsed_ns = event_elapsed_ns, .destroy = event_destroy,
};

/* The cost of a graph is that of the executable one. */
hipError_t hip_hook_hipGraphLaunch(hipGraphLaunch_fn real, hipGraphExec_t exec, hipStream_t stream) {
    if (HAMI_LIKELY(!hami_compute_limited())) return hip_graph_launch(exec, real, stream);
    struct hami_launch launch;
    enum hami_verdict verdict = hami_launch_begin(hip_device(), (uint64_t)(uintptr_t)exec, 1, hip_may_wait(stream), &launch);
    if (verdict != HAMI_OK) return hip_refusal(verdict);
    bool timed = launch.sample && hami_sample_before(&hip_events, &launch, stream, hip_context());
    hipError_t result = hip_graph_launch(exec, real, stream);
    if (timed) hami_sample_after(&hip_events, &launch, stream, result == hipSuccess);
    if (result != hipSuccess) hami_launch_failed(&launch);
    return result;
}
