/* SPDX-License-Identifier: Apache-2.0 */
/* The fake CUDA driver: streams and events. A stream is first in, first out; it knows when all that it was given will be done. */
#include "fake_cuda.h"

static pthread_cond_t callback_done = PTHREAD_COND_INITIALIZER;
static struct CUstream_st *stale; /* destroyed streams: kept, since a callback may still count itself off there */

enum { NON_BLOCKING = 1 };

static struct CUstream_st *make(struct CUctx_st *context, unsigned flags, int priority)
{
    struct CUstream_st *stream = calloc(1, sizeof *stream);
    stream->context = context;
    stream->flags = flags;
    stream->priority = priority;
    stream->id = fc_next_id();
    stream->next = context->streams;
    context->streams = stream;
    return stream;
}

static bool in(const struct CUctx_st *context, const struct CUstream_st *stream)
{
    const struct CUstream_st *at = context->streams;
    while (at != NULL && at != stream)
        at = at->next;
    return at != NULL;
}

/* Per-thread default streams are one per context here: what matters is that they are not the legacy one. */
CUresult fc_stream(CUstream given, struct CUstream_st **stream)
{
    struct CUctx_st *context;
    CUresult result = fc_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    const char *called = cuda_fake_called != NULL ? cuda_fake_called : "";
    bool twin = strstr(called, "_ptsz") != NULL || strstr(called, "_ptds") != NULL;
    bool per_thread = given == CU_STREAM_PER_THREAD || (given == NULL && twin);
    fc_lock();
    if (given == NULL || given == CU_STREAM_LEGACY || per_thread) {
        struct CUstream_st **fixed = per_thread ? &context->per_thread : &context->legacy;
        if (*fixed == NULL)
            *fixed = make(context, 0, 0);
        *stream = *fixed;
        return fc_unlock(CUDA_SUCCESS);
    }
    *stream = given;
    for (int i = 0; !in(context, given) && i < fc_depth; i++)
        context = fc_stack[i];
    for (int i = 0; !in(context, given) && i < fc_device_count; i++) /* a stream of a context that is not current is fine for most calls */
        context = fc_devices[i].primary != NULL ? fc_devices[i].primary : context;
    return fc_unlock(in(context, given) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE);
}

void fc_stream_wait_order(struct CUstream_st *stream)
{
    struct CUctx_st *context = stream->context;
    if (stream == context->legacy) {
        for (const struct CUstream_st *at = context->streams; at != NULL; at = at->next)
            if ((at->flags & NON_BLOCKING) == 0 && at->tail > stream->tail)
                stream->tail = at->tail;
    } else if (context->legacy != NULL && (stream->flags & NON_BLOCKING) == 0 && context->legacy->tail > stream->tail)
        stream->tail = context->legacy->tail;
}

void fc_context_streams_gone(struct CUctx_st *context)
{
    while (context->streams != NULL) {
        struct CUstream_st *stream = context->streams;
        context->streams = stream->next;
        stream->next = stale;
        stale = stream;
    }
    context->legacy = context->per_thread = NULL;
}

/* -- streams ------------------------------------------------------------------------------------------------ */

CUresult fake_cuStreamCreateWithPriority(CUstream *stream, unsigned int flags, int priority)
{
    struct CUctx_st *context;
    CUresult result = stream == NULL || flags > NON_BLOCKING ? CUDA_ERROR_INVALID_VALUE : fc_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    *stream = make(context, flags, priority);
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuStreamCreate(CUstream *stream, unsigned int flags) { return fake_cuStreamCreateWithPriority(stream, flags, 0); }

CUresult fake_cuStreamDestroy_v2(CUstream given)
{
    struct CUstream_st *stream;
    CUresult result = given == NULL ? CUDA_ERROR_INVALID_HANDLE : fc_stream(given, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    struct CUstream_st **link = &stream->context->streams;
    while (*link != stream)
        link = &(*link)->next;
    *link = stream->next;
    stream->next = stale;
    stale = stream;
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuStreamDestroy(CUstream stream) { return fake_cuStreamDestroy_v2(stream); }

CUresult fc_stream_done(struct CUstream_st *stream)
{
    fc_lock();
    fc_stream_wait_order(stream);
    uint64_t tail = stream->tail;
    fc_unlock(CUDA_SUCCESS);
    card_wait(tail);
    fc_lock();
    while (stream->callbacks > 0)
        pthread_cond_wait(&callback_done, &fc_mutex);
    fc_pools_trim(stream->context->device);
    return fc_unlock(fc_known(stream->context->device));
}

CUresult fc_context_done(struct CUctx_st *context)
{
    uint64_t tail = 0;
    fc_lock();
    for (const struct CUstream_st *at = context->streams; at != NULL; at = at->next) {
        if (at->capture != NULL)
            return fc_unlock(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        tail = at->tail > tail ? at->tail : tail;
    }
    fc_unlock(CUDA_SUCCESS);
    card_wait(tail);
    fc_lock();
    for (const struct CUstream_st *at = context->streams; at != NULL; at = at->next)
        while (at->callbacks > 0)
            pthread_cond_wait(&callback_done, &fc_mutex);
    fc_pools_trim(context->device);
    return fc_unlock(fc_known(context->device));
}

CUresult fake_cuStreamSynchronize(CUstream given)
{
    struct CUstream_st *stream;
    CUresult result = fc_stream(given, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    return stream->capture != NULL ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : fc_stream_done(stream);
}

CUresult fake_cuStreamQuery(CUstream given)
{
    struct CUstream_st *stream;
    CUresult result = fc_stream(given, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    if (stream->capture != NULL)
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    fc_lock();
    fc_stream_wait_order(stream);
    return fc_unlock(stream->tail <= card_now() && stream->callbacks == 0 ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY);
}

CUresult fake_cuStreamGetCtx(CUstream given, CUcontext *context)
{
    struct CUstream_st *stream;
    CUresult result = context == NULL ? CUDA_ERROR_INVALID_VALUE : fc_stream(given, &stream);
    if (result == CUDA_SUCCESS)
        *context = stream->context;
    return result;
}

CUresult fake_cuStreamGetDevice(CUstream given, CUdevice *device)
{
    struct CUstream_st *stream;
    CUresult result = device == NULL ? CUDA_ERROR_INVALID_VALUE : fc_stream(given, &stream);
    if (result == CUDA_SUCCESS)
        *device = stream->context->device;
    return result;
}

CUresult fake_cuStreamGetFlags(CUstream given, unsigned int *flags)
{
    struct CUstream_st *stream;
    CUresult result = flags == NULL ? CUDA_ERROR_INVALID_VALUE : fc_stream(given, &stream);
    if (result == CUDA_SUCCESS)
        *flags = stream->flags;
    return result;
}

CUresult fake_cuStreamGetPriority(CUstream given, int *priority)
{
    struct CUstream_st *stream;
    CUresult result = priority == NULL ? CUDA_ERROR_INVALID_VALUE : fc_stream(given, &stream);
    if (result == CUDA_SUCCESS)
        *priority = stream->priority;
    return result;
}

CUresult fake_cuStreamGetId(CUstream given, unsigned long long *id)
{
    struct CUstream_st *stream;
    CUresult result = id == NULL ? CUDA_ERROR_INVALID_VALUE : fc_stream(given, &stream);
    if (result == CUDA_SUCCESS)
        *id = stream->id;
    return result;
}

/* -- events ------------------------------------------------------------------------------------------------- */

CUresult fake_cuEventCreate(CUevent *event, unsigned int flags)
{
    struct CUctx_st *context;
    CUresult result = event == NULL ? CUDA_ERROR_INVALID_VALUE : fc_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    *event = calloc(1, sizeof **event);
    **event = (struct CUevent_st){.context = context, .flags = flags};
    return CUDA_SUCCESS;
}

CUresult fake_cuEventDestroy_v2(CUevent event)
{
    if (event == NULL)
        return CUDA_ERROR_INVALID_HANDLE;
    free(event);
    return fc_ready();
}

CUresult fake_cuEventDestroy(CUevent event) { return fake_cuEventDestroy_v2(event); }

CUresult fake_cuEventRecordWithFlags(CUevent event, CUstream given, unsigned int flags)
{
    struct CUstream_st *stream;
    CUresult result = event == NULL || flags > 1 ? CUDA_ERROR_INVALID_VALUE : fc_stream(given, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    if (stream->context->device != event->context->device)
        return CUDA_ERROR_INVALID_HANDLE;
    fc_lock();
    fc_stream_wait_order(stream);
    event->capture = stream->capture;
    event->time = stream->capture != NULL ? 0 : card_mark(fc_card(stream->context->device), stream->tail);
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuEventRecord(CUevent event, CUstream stream) { return fake_cuEventRecordWithFlags(event, stream, 0); }

CUresult fake_cuEventQuery(CUevent event)
{
    CUresult result = event == NULL ? CUDA_ERROR_INVALID_HANDLE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    if (event->capture != NULL || fc_capture_forbids())
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return event->time <= card_now() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult fake_cuEventSynchronize(CUevent event)
{
    CUresult result = event == NULL ? CUDA_ERROR_INVALID_HANDLE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    if (event->capture != NULL)
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    card_wait(event->time);
    fc_lock();
    fc_pools_trim(event->context->device);
    return fc_unlock(CUDA_SUCCESS);
}

enum { DISABLE_TIMING = 2 };

CUresult fake_cuEventElapsedTime(float *milliseconds, CUevent from, CUevent to)
{
    CUresult result = milliseconds == NULL ? CUDA_ERROR_INVALID_VALUE : from == NULL || to == NULL ? CUDA_ERROR_INVALID_HANDLE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    if (from->time == 0 || to->time == 0 || ((from->flags | to->flags) & DISABLE_TIMING) != 0)
        return CUDA_ERROR_INVALID_HANDLE;
    uint64_t now = card_now();
    if (from->time > now || to->time > now)
        return CUDA_ERROR_NOT_READY;
    *milliseconds = (float)((double)((int64_t)to->time - (int64_t)from->time) / 1e6);
    return CUDA_SUCCESS;
}

CUresult fake_cuEventElapsedTime_v2(float *milliseconds, CUevent from, CUevent to) { return fake_cuEventElapsedTime(milliseconds, from, to); }

/* An event of a capturing stream draws the waiting stream into the same capture. */
CUresult fake_cuStreamWaitEvent(CUstream given, CUevent event, unsigned int flags)
{
    struct CUstream_st *stream;
    (void)flags;
    CUresult result = event == NULL ? CUDA_ERROR_INVALID_HANDLE : fc_stream(given, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    if (event->capture != NULL && stream->capture == NULL)
        stream->capture = event->capture;
    else if (event->time > stream->tail)
        stream->tail = event->time;
    return fc_unlock(CUDA_SUCCESS);
}

/* -- host functions ----------------------------------------------------------------------------------------- */

struct callback {
    struct CUstream_st *stream;
    uint64_t when;
    CUhostFn function;
    void *data;
};

static void *call(void *given)
{
    struct callback *callback = given;
    card_wait(callback->when);
    callback->function(callback->data);
    fc_lock();
    callback->stream->callbacks--;
    pthread_cond_broadcast(&callback_done);
    fc_unlock(CUDA_SUCCESS);
    free(callback);
    return NULL;
}

CUresult fake_cuLaunchHostFunc(CUstream given, CUhostFn function, void *data)
{
    struct CUstream_st *stream;
    pthread_t thread;
    CUresult result = function == NULL ? CUDA_ERROR_INVALID_VALUE : fc_stream(given, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    if (stream->capture != NULL)
        return fc_unlock(CUDA_SUCCESS);
    struct callback *callback = malloc(sizeof *callback);
    *callback = (struct callback){.stream = stream, .when = stream->tail, .function = function, .data = data};
    if (pthread_create(&thread, NULL, call, callback) != 0) {
        free(callback);
        return fc_unlock(CUDA_ERROR_UNKNOWN);
    }
    pthread_detach(thread);
    stream->callbacks++;
    return fc_unlock(CUDA_SUCCESS);
}
