/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory.c: a device's memory as its container may see it: the slice. A device of no record is shown as it is: one can look
 * at it but not use it. An error of the library stays its error.
 */
#include <string.h>

#include "nvml_hooks.h"

static bool by_uuid(nvmlDevice_t device, int *index, bool *slice) {
    nvmlDeviceGetUUID_fn get = nvml_real_nvmlDeviceGetUUID();
    char uuid[96] = "";
    if (get == NULL || get(device, uuid, sizeof uuid) != NVML_SUCCESS) return false;
    *slice = strncmp(uuid, "MIG-", 4) == 0;
    *index = hami_device_find(*slice ? "mig-uuid" : "uuid", uuid);
    return *index != HAMI_NO_DEVICE;
}

static int index_of(nvmlDevice_t device) {
    nvmlDeviceGetPciInfo_v3_fn get = nvml_real_nvmlDeviceGetPciInfo_v3();
    nvmlPciInfo_t pci;
    int index = HAMI_NO_DEVICE;
    bool slice = false;
    if (by_uuid(device, &index, &slice) || slice) return index;
    if (get == NULL || get(device, &pci) != NVML_SUCCESS) return HAMI_NO_DEVICE;
    size_t length = strnlen(pci.id, sizeof pci.id - 1);
    pci.id[length] = '\0';
    return length < 12 ? HAMI_NO_DEVICE : hami_device_find("pci", pci.id + length - 12); /* its domain has eight digits, the kernel's four */
}

static unsigned long long less(unsigned long long a, unsigned long long b) { return a < b ? a : b; }

nvmlReturn_t nvml_hook_nvmlDeviceGetMemoryInfo(nvmlDeviceGetMemoryInfo_fn real, nvmlDevice_t device, nvmlMemory_t *memory) {
    nvmlReturn_t result = real(device, memory);
    if (result != NVML_SUCCESS || memory == NULL) return result;
    struct hami_memory_view view = hami_memory_view(index_of(device));
    if (!view.limited) return result;
    *memory = (nvmlMemory_t){.total = less(memory->total, view.total), .free = less(memory->free, view.free), .used = view.used};
    return result;
}

nvmlReturn_t nvml_hook_nvmlDeviceGetMemoryInfo_v2(nvmlDeviceGetMemoryInfo_v2_fn real, nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    nvmlReturn_t result = real(device, memory);
    if (result != NVML_SUCCESS || memory == NULL) return result;
    struct hami_memory_view view = hami_memory_view(index_of(device));
    if (!view.limited) return result;
    memory->total = less(memory->total, view.total);
    memory->reserved = 0; /* the whole card's, not the slice's */
    memory->free = less(memory->free, view.free);
    memory->used = view.used;
    return result;
}
