/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hip_api.h: HIP as far as it concerns us (ROCm and Hygon's DTK), written from facts: names, numbers and layouts of the ABI.
 * Handles are opaque, enumerations are ints, and a struct appears only where a hook or the fake driver looks inside it.
 * HIP has no code for "not permitted": a refusal is hipErrorNotSupported.
 */
#ifndef HAMI_HIP_API_H
#define HAMI_HIP_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hami_core.h"

typedef int hipError_t;
enum {
    hipSuccess = 0,
    hipErrorInvalidValue = 1,
    hipErrorOutOfMemory = 2,
    hipErrorInvalidDevicePointer = 17,
    hipErrorInvalidDevice = 101,
    hipErrorInvalidHandle = 400,
    hipErrorNotFound = 500,
    hipErrorNotReady = 600,
    hipErrorNotSupported = 801,
};

typedef int hipDevice_t;
typedef void *hipDeviceptr_t;
typedef struct ihipCtx_t *hipCtx_t;
typedef struct ihipStream_t *hipStream_t;
typedef struct ihipEvent_t *hipEvent_t;
typedef struct ihipModuleSymbol_t *hipFunction_t;
typedef struct hipArray *hipArray_t;
typedef struct hipMipmappedArray *hipMipmappedArray_t;
typedef struct ihipMemPoolHandle_t *hipMemPool_t;
typedef struct ihipMemGenericAllocationHandle *hipMemGenericAllocationHandle_t;
typedef struct ihipGraph *hipGraph_t;
typedef struct hipGraphNode *hipGraphNode_t;
typedef struct hipGraphExec *hipGraphExec_t;
typedef void *hipExternalMemory_t;

enum { hipMemLocationTypeDevice = 1, hipMemHandleTypePosixFileDescriptor = 1, hipExternalMemoryHandleTypeOpaqueFd = 1 };
enum { hipMemPoolAttrReservedMemCurrent = 5, hipMemPoolAttrUsedMemCurrent = 7 };
enum { hipGraphMemAttrReservedMemCurrent = 2 };
enum { hipGraphNodeTypeGraph = 4, hipGraphNodeTypeMemAlloc = 10 };
enum { hipStreamCaptureStatusNone = 0, hipStreamCaptureModeRelaxed = 2 };

/* -- structs that we look into -------------------------------------------------------------------------------------- */

typedef struct { uint32_t x, y, z; } dim3;
typedef struct { char bytes[16]; } hipUUID;
typedef struct { char reserved[64]; } hipIpcMemHandle_t;
typedef struct { size_t width, height, depth; } hipExtent;
typedef struct { void *ptr; size_t pitch, xsize, ysize; } hipPitchedPtr;
typedef struct { int x, y, z, w, kind; } hipChannelFormatDesc;
typedef struct { size_t width, height; int format; unsigned int channels; } HIP_ARRAY_DESCRIPTOR;
typedef struct { size_t width, height, depth; int format; unsigned int channels, flags; } HIP_ARRAY3D_DESCRIPTOR;
typedef struct { int type, id; } hipMemLocation;

typedef struct {
    int type, handle_type;
    hipMemLocation location;
    void *win32;
    struct { unsigned char compression, rdma_capable; unsigned short usage; } flags;
} hipMemAllocationProp;

typedef struct {
    int alloc_type, handle_types;
    hipMemLocation location;
    void *win32;
    size_t max_size;
    unsigned char reserved[56];
} hipMemPoolProps;

typedef struct {
    hipMemPoolProps pool;
    const void *access;
    size_t access_count, bytes;
    void *pointer;
} hipMemAllocNodeParams;

typedef struct {
    int type, reserved[3];
    union {
        hipMemAllocNodeParams alloc;
        struct { hipGraph_t graph; } child;
        long long words[29];
    } of;
    long long reserved_end;
} hipGraphNodeParams;

typedef struct { void *function; dim3 grid, block; void **args; size_t shared; hipStream_t stream; } hipLaunchParams;

typedef struct {
    hipFunction_t function;
    unsigned int grid_x, grid_y, grid_z, block_x, block_y, block_z, shared;
    hipStream_t stream;
    void **parameters;
} hipFunctionLaunchParams;

typedef struct { dim3 grid, block; size_t shared; hipStream_t stream; void *attributes; unsigned int attribute_count; } hipLaunchConfig_t;

typedef struct {
    unsigned int grid_x, grid_y, grid_z, block_x, block_y, block_z, shared;
    hipStream_t stream;
    void *attributes;
    unsigned int attribute_count;
} HIP_LAUNCH_CONFIG;

typedef struct {
    int type;
    union { int file; void *words[2]; } handle;
    unsigned long long size;
    unsigned int flags, reserved[16];
} hipExternalMemoryHandleDesc;

_Static_assert(sizeof(dim3) == 12 && sizeof(hipIpcMemHandle_t) == 64, "ABI of what is passed by value");
_Static_assert(offsetof(hipMemAllocationProp, location) == 8, "ABI of hipMemAllocationProp");
_Static_assert(sizeof(hipMemPoolProps) == 88 && offsetof(hipMemAllocNodeParams, bytes) == 104, "ABI of the mem-alloc node");
_Static_assert(sizeof(hipGraphNodeParams) == 256, "ABI of hipGraphNodeParams");
_Static_assert(sizeof(hipLaunchParams) == 56 && offsetof(hipLaunchConfig_t, stream) == 32 && offsetof(HIP_LAUNCH_CONFIG, stream) == 32, "ABI of launches");
_Static_assert(offsetof(hipExternalMemoryHandleDesc, size) == 24, "ABI of external memory");

/* Where a device's properties say how much memory it has: since ROCm 6 a UUID and more come before it. */
enum { HIP_PROPERTIES_TOTAL_R0000 = 256, HIP_PROPERTIES_TOTAL_R0600 = 288 };

/* -- what the shim gives the generated code ------------------------------------------------------------------------- */

int hip_device(void);
int hip_device_of(int ordinal);
bool hip_may_wait(void *stream);
uint64_t hip_context(void);
extern const struct hami_linear hip_linear;
extern const struct hami_event_calls hip_events;

/* Upper bounds of what rows and images take, padding included. */
uint64_t hip_pitched_bound(size_t width, size_t rows);
uint64_t hip_texels_bound(uint64_t element_bytes, size_t width, size_t height, size_t depth, unsigned int levels);
uint64_t hip_descriptor_bound(const HIP_ARRAY_DESCRIPTOR *descriptor);
uint64_t hip_descriptor3d_bound(const HIP_ARRAY3D_DESCRIPTOR *descriptor, unsigned int levels);
uint64_t hip_external_bytes(const hipExternalMemoryHandleDesc *descriptor); /* 0: this container's own memory */

static inline uint64_t hip_channel_bytes(const hipChannelFormatDesc *channels) {
    return channels == NULL ? 0 : (uint64_t)(channels->x + channels->y + channels->z + channels->w + 7) / 8;
}
static inline uint64_t hip_blocks(dim3 grid) { return (uint64_t)grid.x * grid.y * grid.z; }
/* Some launches are measured in threads, not in blocks. */
static inline uint64_t hip_thread_blocks(uint32_t x, uint32_t y, uint32_t z, uint32_t bx, uint32_t by, uint32_t bz) {
    uint64_t threads = (uint64_t)bx * by * bz;
    return (uint64_t)x * y * z / (threads == 0 ? 1 : threads);
}

#endif
