/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device.c: which of the policy's devices the calling thread uses, what queries show of it, and the resolvers. A device is known by its PCI address, and by its UUID where the driver reports one as 16 hexadecimal digits.
 */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "hip_hooks.h"

#include "../common/devices.h"
#include "hip_shim.h"

static bool uuid_text(int ordinal, char text[24]) {
    hipDeviceGetUuid_fn get = hip_real_hipDeviceGetUuid();
    hipUUID uuid;
    if (get == NULL || get(&uuid, ordinal) != hipSuccess) return false;
    for (size_t at = 0; at < sizeof uuid.bytes; at++) {
        if (!isxdigit((unsigned char)uuid.bytes[at])) return false;
    }
    snprintf(text, 24, "GPU-%.16s", uuid.bytes);
    return true;
}

static int find(int ordinal) {
    char text[24];
    int device = uuid_text(ordinal, text) ? hami_device_find("uuid", text) : HAMI_NO_DEVICE;
    if (device != HAMI_NO_DEVICE) return device;
    hipDeviceGetPCIBusId_fn get = hip_real_hipDeviceGetPCIBusId();
    if (get == NULL || get(text, (int)sizeof text, ordinal) != hipSuccess) return HAMI_NO_DEVICE;
    text[sizeof text - 1] = '\0';
    return hami_device_find("pci", text);
}

static struct hami_ordinals ordinals = {.find = find};

int hip_ordinal(void) {
    hipGetDevice_fn get = hip_real_hipGetDevice();
    int ordinal = -1;
    return get != NULL && get(&ordinal) == hipSuccess ? ordinal : -1;
}

int hip_device_of(int ordinal) { return hami_ordinal_device(&ordinals, ordinal); }
int hip_device(void) { return hip_device_of(hip_ordinal()); }
uint64_t hip_context(void) { return (uint64_t)(hip_ordinal() + 1); } /* one context per device */

/* -- queries ---------------------------------------------------------------------------------------------------- */

hipError_t hip_hook_hipMemGetInfo(hipMemGetInfo_fn real, size_t *free_bytes, size_t *total_bytes) {
    hipError_t result = real(free_bytes, total_bytes);
    if (result != hipSuccess) return result;
    hip_settled();
    uint64_t left = free_bytes == NULL ? 0 : *free_bytes, total = total_bytes == NULL ? 0 : *total_bytes;
    hami_show_slice(hip_device(), &left, &total);
    if (free_bytes != NULL) *free_bytes = left;
    if (total_bytes != NULL) *total_bytes = total;
    return result;
}

hipError_t hip_hook_hipDeviceTotalMem(hipDeviceTotalMem_fn real, size_t *bytes, hipDevice_t device) {
    hipError_t result = real(bytes, device);
    if (result != hipSuccess || bytes == NULL) return result;
    uint64_t total = *bytes;
    hami_show_slice(hip_device_of(device), NULL, &total);
    *bytes = total;
    return result;
}

static hipError_t show_total(hipError_t result, void *properties, size_t offset, int device) {
    uint64_t total;
    if (result != hipSuccess || properties == NULL) return result;
    memcpy(&total, (char *)properties + offset, sizeof total);
    hami_show_slice(hip_device_of(device), NULL, &total);
    memcpy((char *)properties + offset, &total, sizeof total);
    return result;
}

hipError_t hip_hook_hipGetDeviceProperties(hipGetDeviceProperties_fn real, void *properties, int device) {
    return show_total(real(properties, device), properties, HIP_PROPERTIES_TOTAL_R0000, device);
}

hipError_t hip_hook_hipGetDevicePropertiesR0600(hipGetDevicePropertiesR0600_fn real, void *properties, int device) {
    return show_total(real(properties, device), properties, HIP_PROPERTIES_TOTAL_R0600, device);
}

/* -- the device as a whole -------------------------------------------------------------------------------------- */

hipError_t hip_hook_hipDeviceReset(hipDeviceReset_fn real) {
    int device = hip_device();
    hami_sample_forget(hip_context());
    hipError_t result = real();
    if (result == hipSuccess) hami_device_gone(&hip_linear, device);
    return result;
}

hipError_t hip_hook_hipDevicePrimaryCtxReset(hipDevicePrimaryCtxReset_fn real, hipDevice_t ordinal) {
    int device = hip_device_of(ordinal);
    hami_sample_forget((uint64_t)(ordinal + 1));
    hipError_t result = real(ordinal);
    if (result == hipSuccess) hami_device_gone(&hip_linear, device);
    return result;
}

/* -- resolvers: the driver's answer first, then our function for that address ------------------------------------ */

static hipError_t hooked(hipError_t result, const char *name, void **address) {
    if (result == hipSuccess && name != NULL && address != NULL && *address != NULL) *address = hami_hook_for(&hami_library_hip, name, *address);
    return result;
}

hipError_t hip_hook_hipGetProcAddress(hipGetProcAddress_fn real, const char *name, void **address, int version, uint64_t flags, void *status) {
    return hooked(real(name, address, version, flags, status), name, address);
}

hipError_t hip_hook_hipGetDriverEntryPoint(hipGetDriverEntryPoint_fn real, const char *name, void **address, unsigned long long flags, void *status) {
    return hooked(real(name, address, flags, status), name, address);
}
