/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch.c: events for timing sampled launches, and the launches that the generated wrapper is too simple for: graphs, which
 * may take memory too, and one launch on several devices.
 */
#include "cuda_shim.h"

/* -- events ---------------------------------------------------------------------------------------------------------- */

/*
 * While any thread captures in the global mode, asking for an event (of whatever stream, from whatever thread) fails, and ends
 * that capture. A thread that has declared itself relaxed may ask; it is what it was before afterwards.
 */
static void exchange_mode(int *mode) {
    cuThreadExchangeStreamCaptureMode_fn exchange = cuda_captures() ? cuda_real_cuThreadExchangeStreamCaptureMode() : NULL;
    if (exchange == NULL || exchange(mode) != CUDA_SUCCESS) *mode = -1;
}

static int relax(void) {
    int mode = 2; /* CU_STREAM_CAPTURE_MODE_RELAXED */
    exchange_mode(&mode);
    return mode;
}

static void restore(int mode) {
    if (mode >= 0) exchange_mode(&mode);
}

static bool event_create(void **event) {
    cuEventCreate_fn create = cuda_real_cuEventCreate();
    int mode = relax();
    bool made = create != NULL && create((CUevent *)event, 0 /* with timing */) == CUDA_SUCCESS;
    restore(mode);
    return made;
}

static bool event_record(void *event, void *stream) {
    cuEventRecord_fn record = cuda_real_cuEventRecord();
    return record != NULL && record(event, stream) == CUDA_SUCCESS;
}

static bool event_done(void *event) {
    cuEventQuery_fn query = cuda_real_cuEventQuery();
    int mode = relax();
    bool done = query != NULL && query(event) == CUDA_SUCCESS;
    restore(mode);
    return done;
}

static bool event_elapsed(void *from, void *to, uint64_t *ns) {
    cuEventElapsedTime_fn elapsed = cuda_real_cuEventElapsedTime();
    float ms = 0;
    if (elapsed == NULL) elapsed = (cuEventElapsedTime_fn)cuda_real_cuEventElapsedTime_v2();
    if (elapsed == NULL || elapsed(&ms, from, to) != CUDA_SUCCESS || !(ms >= 0)) return false;
    *ns = (uint64_t)((double)ms * 1e6);
    return true;
}

static void event_destroy(void *event) {
    cuEventDestroy_v2_fn destroy = cuda_real_cuEventDestroy_v2();
    if (destroy != NULL) (void)destroy(event);
}

const struct hami_event_calls cuda_events = {
    .create = event_create, .record = event_record, .done = event_done, .elapsed_ns = event_elapsed, .destroy = event_destroy};

/* -- graphs: the cost is that of the executable graph ----------------------------------------------------------------- */

CUresult cuda_hook_cuGraphLaunch(cuGraphLaunch_fn real, CUgraphExec exec, CUstream stream) {
    if (HAMI_LIKELY(!hami_compute_limited())) return cuda_graph_launch(exec, real, stream);
    struct hami_launch launch;
    enum hami_verdict verdict = hami_launch_begin(cuda_device(), cuda_key(exec), 1, cuda_may_wait(stream), &launch);
    if (verdict != HAMI_OK) return cuda_refusal(verdict);
    bool timed = launch.sample && hami_sample_before(&cuda_events, &launch, stream, cuda_context());
    CUresult result = cuda_graph_launch(exec, real, stream);
    if (timed) hami_sample_after(&cuda_events, &launch, stream, result == CUDA_SUCCESS);
    if (result != CUDA_SUCCESS) hami_launch_failed(&launch);
    return result;
}

/* -- one launch on several devices ------------------------------------------------------------------------------------ */

static int device_of(CUstream stream) {
    cuStreamGetDevice_fn get = cuda_real_cuStreamGetDevice();
    CUdevice device;
    return get != NULL && get(stream, &device) == CUDA_SUCCESS ? cuda_index(device) : cuda_device();
}

CUresult cuda_hook_cuLaunchCooperativeKernelMultiDevice(cuLaunchCooperativeKernelMultiDevice_fn real, CUDA_LAUNCH_PARAMS *list, unsigned int count, unsigned int flags) {
    struct hami_launch launches[CUDA_DEVICES];
    unsigned int begun = 0;
    enum hami_verdict verdict = HAMI_OK;
    if (!hami_compute_limited() || list == NULL || count > CUDA_DEVICES) return real(list, count, flags);
    while (begun < count && verdict == HAMI_OK) {
        const CUDA_LAUNCH_PARAMS *one = &list[begun];
        uint64_t blocks = (uint64_t)one->grid_x * one->grid_y * one->grid_z;
        verdict = hami_launch_begin(device_of(one->stream), cuda_key(one->function), blocks, cuda_may_wait(one->stream), &launches[begun]);
        if (verdict == HAMI_OK) begun++;
    }
    CUresult result = verdict == HAMI_OK ? real(list, count, flags) : cuda_refusal(verdict);
    for (unsigned int i = 0; result != CUDA_SUCCESS && i < begun; i++) hami_launch_failed(&launches[i]);
    return result;
}
