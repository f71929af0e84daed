/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fake libamdhip64 over fake_heap.h. The machine file is the one that HAMI_FAKE_HYGON names. As in ROCm, some exports are made
 * of other exports (hipArrayCreate calls hipMalloc3DArray, hipMalloc3D calls hipMallocPitch), so that an interceptor
 * sees calls that are the driver's own. Its handles for sharing within a machine carry the size, not the memory.
 */
#include "hip_fake_own.h"

#define FH_VISIBLE "HIP_VISIBLE_DEVICES"
#include "fake_heap.h"

#define MACHINE "HAMI_FAKE_HYGON"
#define PITCH 256u
#define POINTER(address) ((void *)(uintptr_t)(address))
#define KEY(pointer) ((uint64_t)(uintptr_t)(pointer))

/* The exports that are made of others call them by name, through whatever stands before them. */
HAMI_FAKE_EXPORT hipError_t hipMalloc(void **out, size_t bytes);
HAMI_FAKE_EXPORT hipError_t hipMallocPitch(void **out, size_t *pitch, size_t width, size_t height);
HAMI_FAKE_EXPORT hipError_t hipMalloc3DArray(hipArray_t *out, const hipChannelFormatDesc *channels, hipExtent extent, unsigned int flags);
HAMI_FAKE_EXPORT hipError_t hipMallocFromPoolAsync(void **out, size_t bytes, hipMemPool_t pool, hipStream_t stream);
HAMI_FAKE_EXPORT hipError_t hipLaunchKernel(const void *function, dim3 grid, dim3 block, void **args, size_t shared, hipStream_t stream);
HAMI_FAKE_EXPORT hipError_t hipModuleLaunchKernel(hipFunction_t function, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx, unsigned int by, unsigned int bz, unsigned int shared, hipStream_t stream, void **parameters, void **extra);

static _Thread_local int current;

hipError_t hip_fake_ready(int device) {
    if (card_load(MACHINE) != 0) return 100; /* hipErrorNoDevice */
    return device >= 0 && device < fh_count() ? hipSuccess : hipErrorInvalidDevice;
}

int hip_fake_place(int device) { return fh_visible(device); }
static hipError_t ready(int device) { return hip_fake_ready(device); }
static hipError_t code(enum card_answer answer) { return answer == CARD_OK ? hipSuccess : answer == CARD_FULL ? hipErrorOutOfMemory : 719; }

/* -- devices ---------------------------------------------------------------------------------------------------- */

hipError_t fake_hipInit(unsigned int flags) { return flags != 0 ? hipErrorInvalidValue : ready(0); }
hipError_t fake_hipSetDevice(int device) {
    hipError_t result = ready(device);
    if (result == hipSuccess) current = device;
    return result;
}
hipError_t fake_hipGetDevice(int *device) {
    *device = current;
    return ready(current);
}
hipError_t fake_hipGetDeviceCount(int *count) {
    *count = card_load(MACHINE) == 0 ? fh_count() : 0;
    return *count > 0 ? hipSuccess : 100;
}
hipError_t fake_hipDeviceGetPCIBusId(char *text, int length, int device) {
    hipError_t result = ready(device);
    if (result == hipSuccess) snprintf(text, (size_t)length, "%s", hf_str("device", fh_visible(device), "pci", ""));
    return result;
}
hipError_t fake_hipDeviceGetUuid(hipUUID *uuid, hipDevice_t device) {
    hipError_t result = ready(device);
    memset(uuid, 0, sizeof *uuid);
    return result;
}
hipError_t fake_hipDeviceTotalMem(size_t *bytes, hipDevice_t device) {
    uint64_t capacity, used;
    hipError_t result = ready(device);
    if (result != hipSuccess) return result;
    fh_card_memory(device, &capacity, &used);
    *bytes = capacity;
    return hipSuccess;
}
hipError_t fake_hipMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    uint64_t capacity, used;
    hipError_t result = ready(current);
    if (result != hipSuccess) return result;
    fh_card_memory(current, &capacity, &used);
    *free_bytes = capacity - used;
    *total_bytes = capacity;
    return hipSuccess;
}
static hipError_t properties(void *out, size_t bytes, size_t offset, int device) {
    size_t total = 0;
    hipError_t result = fake_hipDeviceTotalMem(&total, device);
    if (result != hipSuccess) return result;
    memset(out, 0, bytes);
    memcpy((char *)out + offset, &total, sizeof total);
    return hipSuccess;
}
hipError_t fake_hipGetDeviceProperties(void *out, int device) { return properties(out, 792, HIP_PROPERTIES_TOTAL_R0000, device); }
hipError_t fake_hipGetDevicePropertiesR0600(void *out, int device) { return properties(out, 1472, HIP_PROPERTIES_TOTAL_R0600, device); }
hipError_t fake_hipDeviceReset(void) {
    fh_reset(current);
    return ready(current);
}
hipError_t fake_hipDevicePrimaryCtxReset(hipDevice_t device) {
    fh_reset(device);
    return ready(device);
}
hipError_t fake_hipDeviceSynchronize(void) {
    fh_wait(NULL);
    return hipSuccess;
}

/* -- memory ----------------------------------------------------------------------------------------------------- */

static hipError_t take(void **out, uint64_t bytes, enum fh_kind kind) {
    uint64_t address = 0;
    hipError_t result = out == NULL ? hipErrorInvalidValue : ready(current);
    if (result == hipSuccess) result = code(fh_take(current, bytes, kind, &address));
    if (result == hipSuccess) *out = POINTER(address);
    return result;
}
static hipError_t give(const void *pointer) { return pointer == NULL || fh_give(KEY(pointer)) || hip_fake_graph_free(pointer) ? hipSuccess : hipErrorInvalidValue; }

hipError_t fake_hipMalloc(void **out, size_t bytes) { return take(out, bytes, FH_LINEAR); }
hipError_t fake_hipExtMallocWithFlags(void **out, size_t bytes, unsigned int flags) {
    (void)flags;
    return take(out, bytes, FH_LINEAR);
}
hipError_t fake_hipMallocManaged(void **out, size_t bytes, unsigned int flags) {
    (void)flags;
    return take(out, bytes, FH_LINEAR);
}
hipError_t fake_hipMallocPitch(void **out, size_t *pitch, size_t width, size_t height) {
    *pitch = fh_round(width, PITCH);
    return hipMalloc(out, *pitch * height); /* its own export */
}
hipError_t fake_hipMemAllocPitch(hipDeviceptr_t *out, size_t *pitch, size_t width, size_t height, unsigned int element_bytes) {
    return element_bytes == 0 ? hipErrorInvalidValue : hipMallocPitch(out, pitch, width, height);
}
hipError_t fake_hipMalloc3D(hipPitchedPtr *out, hipExtent extent) {
    *out = (hipPitchedPtr){.xsize = extent.width, .ysize = extent.height};
    return hipMallocPitch(&out->ptr, &out->pitch, extent.width, extent.height * extent.depth);
}
static hipError_t image(void *out, uint64_t element, uint64_t width, uint64_t height, uint64_t depth, unsigned int levels) {
    uint64_t bytes = 0;
    for (unsigned int level = 0; level == 0 || level < levels; level++) {
        uint64_t w = width >> level, h = height >> level, d = depth >> level;
        bytes += fh_round((w == 0 ? 1 : w) * element, PITCH) * (h == 0 ? 1 : h) * (d == 0 ? 1 : d);
    }
    return take(out, bytes, FH_ARRAY);
}
static uint64_t texel(int format) { return format == 1 || format == 8 ? 1 : format == 2 || format == 9 || format == 16 ? 2 : 4; }
hipError_t fake_hipMalloc3DArray(hipArray_t *out, const hipChannelFormatDesc *channels, hipExtent extent, unsigned int flags) {
    (void)flags;
    return image(out, hip_channel_bytes(channels), extent.width, extent.height, extent.depth, 1);
}
hipError_t fake_hipMallocArray(hipArray_t *out, const hipChannelFormatDesc *channels, size_t width, size_t height, unsigned int flags) {
    return hipMalloc3DArray(out, channels, (hipExtent){width, height, 1}, flags);
}
hipError_t fake_hipArrayCreate(hipArray_t *out, const HIP_ARRAY_DESCRIPTOR *wanted) {
    return image(out, texel(wanted->format) * wanted->channels, wanted->width, wanted->height, 1, 1);
}
hipError_t fake_hipArray3DCreate(hipArray_t *out, const HIP_ARRAY3D_DESCRIPTOR *wanted) {
    return image(out, texel(wanted->format) * wanted->channels, wanted->width, wanted->height, wanted->depth, 1);
}
hipError_t fake_hipMallocMipmappedArray(hipMipmappedArray_t *out, const hipChannelFormatDesc *channels, hipExtent extent, unsigned int levels, unsigned int flags) {
    (void)flags;
    return image(out, hip_channel_bytes(channels), extent.width, extent.height, extent.depth, levels);
}
hipError_t fake_hipMipmappedArrayCreate(hipMipmappedArray_t *out, const HIP_ARRAY3D_DESCRIPTOR *wanted, unsigned int levels) {
    return image(out, texel(wanted->format) * wanted->channels, wanted->width, wanted->height, wanted->depth, levels);
}
hipError_t fake_hipFree(void *pointer) { return give(pointer); }
hipError_t fake_hipFreeArray(hipArray_t array) { return give(array); }
hipError_t fake_hipArrayDestroy(hipArray_t array) { return give(array); }
hipError_t fake_hipFreeMipmappedArray(hipMipmappedArray_t array) { return give(array); }
hipError_t fake_hipMipmappedArrayDestroy(hipMipmappedArray_t array) { return give(array); }
hipError_t fake_hipMemGetAddressRange(hipDeviceptr_t *base, size_t *bytes, hipDeviceptr_t pointer) {
    *base = pointer;
    *bytes = fh_asked(KEY(pointer));
    return *bytes == 0 ? hipErrorInvalidValue : hipSuccess;
}

/* -- pools ------------------------------------------------------------------------------------------------------ */

hipError_t fake_hipDeviceGetMemPool(hipMemPool_t *pool, int device) {
    hipError_t result = ready(device);
    if (result == hipSuccess) *pool = (hipMemPool_t)fh_default_pool(device);
    return result;
}
hipError_t fake_hipDeviceGetDefaultMemPool(hipMemPool_t *pool, int device) { return fake_hipDeviceGetMemPool(pool, device); }
hipError_t fake_hipDeviceSetMemPool(int device, hipMemPool_t pool) {
    (void)pool;
    return ready(device);
}
hipError_t fake_hipMemPoolCreate(hipMemPool_t *pool, const hipMemPoolProps *wanted) {
    struct fh_pool *made = calloc(1, sizeof *made);
    made->device = wanted->location.id;
    *pool = (hipMemPool_t)made;
    return hipSuccess;
}
hipError_t fake_hipMallocFromPoolAsync(void **out, size_t bytes, hipMemPool_t pool, hipStream_t stream) {
    uint64_t address = 0;
    if (hip_fake_capturing(stream)) return hip_fake_capture(current, bytes, out);
    hipError_t result = code(fh_pool_take((struct fh_pool *)pool, bytes, &address));
    if (result == hipSuccess) *out = POINTER(address);
    return result;
}
hipError_t fake_hipMallocAsync(void **out, size_t bytes, hipStream_t stream) {
    hipMemPool_t pool;
    hipError_t result = fake_hipDeviceGetMemPool(&pool, current);
    return result == hipSuccess ? hipMallocFromPoolAsync(out, bytes, pool, stream) : result;
}
hipError_t fake_hipFreeAsync(void *pointer, hipStream_t stream) {
    (void)stream;
    return give(pointer);
}
hipError_t fake_hipMemPoolTrimTo(hipMemPool_t pool, size_t keep) {
    fh_pool_trim((struct fh_pool *)pool, keep);
    return hipSuccess;
}
hipError_t fake_hipMemPoolDestroy(hipMemPool_t pool) {
    fh_pool_trim((struct fh_pool *)pool, 0);
    return hipSuccess;
}
hipError_t fake_hipMemPoolGetAttribute(hipMemPool_t pool, int attribute, void *value) {
    const struct fh_pool *it = (const struct fh_pool *)pool;
    if (attribute != hipMemPoolAttrReservedMemCurrent && attribute != hipMemPoolAttrUsedMemCurrent) return hipErrorInvalidValue;
    *(uint64_t *)value = attribute == hipMemPoolAttrReservedMemCurrent ? it->reserved : it->used;
    return hipSuccess;
}

/* -- handles and mappings ----------------------------------------------------------------------------------------- */

hipError_t fake_hipMemCreate(hipMemGenericAllocationHandle_t *handle, size_t bytes, const hipMemAllocationProp *wanted, unsigned long long flags) {
    uint64_t address = 0;
    hipError_t result = flags != 0 || bytes % FH_PAGE != 0 ? hipErrorInvalidValue : ready(wanted->location.id);
    if (result == hipSuccess) result = code(fh_take(wanted->location.id, bytes, FH_HANDLE, &address));
    if (result == hipSuccess) *handle = POINTER(address);
    return result;
}
hipError_t fake_hipMemRelease(hipMemGenericAllocationHandle_t handle) { return fh_release(KEY(handle)) ? hipSuccess : hipErrorInvalidValue; }
hipError_t fake_hipMemAddressReserve(void **address, size_t size, size_t alignment, void *wanted, unsigned long long flags) {
    (void)alignment;
    if (wanted != NULL || flags != 0) return hipErrorInvalidValue;
    *address = POINTER(fh_addresses(size));
    return hipSuccess;
}
hipError_t fake_hipMemAddressFree(void *address, size_t size) { return address == NULL || size == 0 ? hipErrorInvalidValue : hipSuccess; }
hipError_t fake_hipMemMap(void *address, size_t size, size_t offset, hipMemGenericAllocationHandle_t handle, unsigned long long flags) {
    return offset == 0 && flags == 0 && fh_map(KEY(address), size, KEY(handle)) ? hipSuccess : hipErrorInvalidValue;
}
hipError_t fake_hipMemUnmap(void *address, size_t size) { return fh_unmap(KEY(address), size) ? hipSuccess : hipErrorInvalidValue; }
hipError_t fake_hipMemRetainAllocationHandle(hipMemGenericAllocationHandle_t *handle, void *address) {
    *handle = POINTER(fh_retain(KEY(address)));
    return *handle == NULL ? hipErrorInvalidValue : hipSuccess;
}

/* -- between processes -------------------------------------------------------------------------------------------- */

hipError_t fake_hipIpcGetMemHandle(hipIpcMemHandle_t *handle, void *pointer) {
    uint64_t words[3] = {(uint64_t)getpid(), KEY(pointer), fh_asked(KEY(pointer))};
    memset(handle, 0, sizeof *handle);
    memcpy(handle, words, sizeof words);
    return words[2] == 0 ? hipErrorInvalidValue : hipSuccess;
}
hipError_t fake_hipIpcOpenMemHandle(void **pointer, hipIpcMemHandle_t handle, unsigned int flags) {
    uint64_t words[3];
    (void)flags;
    memcpy(words, &handle, sizeof words);
    *pointer = POINTER(fh_foreign(words[2], current));
    return hipSuccess;
}
hipError_t fake_hipIpcCloseMemHandle(void *pointer) { return give(pointer); }
hipError_t fake_hipMemExportToShareableHandle(void *shareable, hipMemGenericAllocationHandle_t handle, int type, unsigned long long flags) {
    if (type != hipMemHandleTypePosixFileDescriptor || flags != 0) return hipErrorInvalidValue;
    return fh_export(KEY(handle), shareable) ? hipSuccess : hipErrorInvalidHandle;
}
hipError_t fake_hipMemImportFromShareableHandle(hipMemGenericAllocationHandle_t *handle, void *shareable, int type) {
    uint64_t address = type == hipMemHandleTypePosixFileDescriptor ? fh_import((int)(intptr_t)shareable, current) : 0;
    *handle = POINTER(address);
    return address != 0 ? hipSuccess : hipErrorInvalidValue;
}
hipError_t fake_hipImportExternalMemory(hipExternalMemory_t *memory, const hipExternalMemoryHandleDesc *descriptor) {
    *memory = POINTER(fh_foreign(descriptor->size, current));
    return descriptor->size != 0 ? hipSuccess : hipErrorInvalidValue;
}
hipError_t fake_hipDestroyExternalMemory(hipExternalMemory_t memory) { return give(memory); }

/* -- work --------------------------------------------------------------------------------------------------------- */

hipError_t hip_fake_launch(void *stream) { return ready(current) == hipSuccess && fh_run(current, stream) ? hipSuccess : hipErrorInvalidValue; }

hipError_t fake_hipExtLaunchKernel(const void *function, dim3 grid, dim3 block, void **args, size_t shared, hipStream_t stream, hipEvent_t start, hipEvent_t stop, int flags) {
    (void)start, (void)stop, (void)flags;
    return hipLaunchKernel(function, grid, block, args, shared, stream);
}
hipError_t fake_hipLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **args, unsigned int shared, hipStream_t stream) {
    return hipLaunchKernel(function, grid, block, args, shared, stream);
}
hipError_t fake_hipLaunchCooperativeKernelMultiDevice(hipLaunchParams *list, int count, unsigned int flags) {
    (void)flags;
    for (int at = 0; at < count; at++) (void)hip_fake_launch(list[at].stream);
    return hipSuccess;
}
hipError_t fake_hipModuleLaunchCooperativeKernel(hipFunction_t function, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx, unsigned int by,
                                                 unsigned int bz, unsigned int shared, hipStream_t stream, void **parameters) {
    return hipModuleLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, stream, parameters, NULL);
}
hipError_t fake_hipModuleLaunchCooperativeKernelMultiDevice(hipFunctionLaunchParams *list, unsigned int count, unsigned int flags) {
    (void)flags;
    for (unsigned int at = 0; at < count; at++) (void)hip_fake_launch(list[at].stream);
    return hipSuccess;
}
hipError_t fake_hipExtModuleLaunchKernel(hipFunction_t function, uint32_t x, uint32_t y, uint32_t z, uint32_t bx, uint32_t by, uint32_t bz, size_t shared,
                                         hipStream_t stream, void **parameters, void **extra, hipEvent_t start, hipEvent_t stop, uint32_t flags) {
    (void)start, (void)stop, (void)flags;
    return hipModuleLaunchKernel(function, x, y, z, bx, by, bz, (unsigned int)shared, stream, parameters, extra);
}

hipError_t fake_hipStreamCreate(hipStream_t *stream) {
    *stream = calloc(1, sizeof(struct fh_stream));
    return hipSuccess;
}
hipError_t fake_hipStreamDestroy(hipStream_t stream) {
    free(stream);
    return hipSuccess;
}
hipError_t fake_hipStreamSynchronize(hipStream_t stream) {
    fh_wait((struct fh_stream *)stream);
    return hipSuccess;
}
hipError_t fake_hipEventCreate(hipEvent_t *event) {
    *event = calloc(1, sizeof(struct fh_event));
    return hipSuccess;
}
hipError_t fake_hipEventCreateWithFlags(hipEvent_t *event, unsigned int flags) {
    (void)flags;
    return fake_hipEventCreate(event);
}
hipError_t fake_hipEventDestroy(hipEvent_t event) {
    free(event);
    return hipSuccess;
}
hipError_t fake_hipEventRecord(hipEvent_t event, hipStream_t stream) {
    fh_record(current, (struct fh_event *)event, (struct fh_stream *)stream);
    return hipSuccess;
}
hipError_t fake_hipEventQuery(hipEvent_t event) { return ((struct fh_event *)event)->time <= card_now() ? hipSuccess : hipErrorNotReady; }
hipError_t fake_hipEventSynchronize(hipEvent_t event) {
    card_wait(((struct fh_event *)event)->time);
    return hipSuccess;
}
hipError_t fake_hipEventElapsedTime(float *ms, hipEvent_t start, hipEvent_t stop) {
    *ms = (float)((double)(((struct fh_event *)stop)->time - ((struct fh_event *)start)->time) / 1e6);
    return hipSuccess;
}

/* -- resolvers ---------------------------------------------------------------------------------------------------- */

static hipError_t resolve(const char *name, void **address) {
    for (size_t at = 0; at < hip_fake_count; at++) {
        if (strcmp(hip_fake_rows[at].name, name) != 0) continue;
        *address = hip_fake_rows[at].address;
        return hipSuccess;
    }
    return hipErrorNotFound;
}
hipError_t fake_hipGetProcAddress(const char *name, void **address, int version, uint64_t flags, void *status) {
    (void)version, (void)flags, (void)status;
    return resolve(name, address);
}
hipError_t fake_hipGetDriverEntryPoint(const char *name, void **address, unsigned long long flags, void *status) {
    (void)flags, (void)status;
    return resolve(name, address);
}
