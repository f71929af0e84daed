/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A driver that does nothing as fast as it can: what is measured on top of it is the interceptor alone.
 *
 * One device, one context, addresses that count up, kernels that take 10 ns of device time by its own events.
 */
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define DRIVER __attribute__((visibility("default")))
#define DEVICE_UUID "\x11\x11\x11\x11\x22\x22\x33\x33\x44\x44\x55\x55\x55\x55\x55\x55"
#define CAPACITY (UINT64_C(80) << 30)

static _Atomic uint64_t next_pointer = UINT64_C(0x700000000000);
static char the_context, the_stream_event;

DRIVER int cuInit(unsigned flags) { return flags == 0 ? 0 : 1; }
DRIVER int cuDeviceGetCount(int *count) { *count = 1; return 0; }
DRIVER int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal == 0 ? 0 : 101; }
DRIVER int cuDeviceGetUuid(void *uuid, int device) { memcpy(uuid, DEVICE_UUID, 16); return device == 0 ? 0 : 101; }
DRIVER int cuDeviceGetUuid_v2(void *uuid, int device) { return cuDeviceGetUuid(uuid, device); }
DRIVER int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &the_context; return device == 0 ? 0 : 101; }
DRIVER int cuCtxSetCurrent(void *context) { (void)context; return 0; }
DRIVER int cuCtxGetCurrent(void **context) { *context = &the_context; return 0; }
DRIVER int cuCtxGetDevice(int *device) { *device = 0; return 0; }
DRIVER int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = *total = CAPACITY; return 0; }

DRIVER int cuMemAlloc_v2(uint64_t *out, size_t bytes)
{
    uint64_t size = (bytes + 0x1FFFFF) & ~UINT64_C(0x1FFFFF);
    *out = atomic_fetch_add_explicit(&next_pointer, size, memory_order_relaxed);
    return 0;
}

DRIVER int cuMemFree_v2(uint64_t pointer) { return pointer != 0 ? 0 : 1; }

DRIVER int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream,
                          void **parameters, void **extra)
{
    (void)function, (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz, (void)shared, (void)stream, (void)parameters, (void)extra;
    return 0;
}

DRIVER int cuStreamIsCapturing(void *stream, int *status) { (void)stream; *status = 0; return 0; }
DRIVER int cuEventCreate(void **event, unsigned flags) { (void)flags; *event = &the_stream_event; return 0; }
DRIVER int cuEventRecord(void *event, void *stream) { (void)event, (void)stream; return 0; }
DRIVER int cuEventQuery(void *event) { (void)event; return 0; }
DRIVER int cuEventSynchronize(void *event) { (void)event; return 0; }
DRIVER int cuEventElapsedTime(float *ms, void *from, void *to) { (void)from, (void)to; *ms = 0.00001f; return 0; }
DRIVER int cuEventElapsedTime_v2(float *ms, void *from, void *to) { return cuEventElapsedTime(ms, from, to); }
DRIVER int cuEventDestroy_v2(void *event) { (void)event; return 0; }
