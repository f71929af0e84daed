/* SPDX-License-Identifier: Apache-2.0 */
/*
 * measure.c: what the whole card holds, by the driver's management library.
 *
 * Before a process has a context the driver API cannot say it, and the first context is just what is to be measured. The
 * management library is asked behind our own view of it, once per container, and shut down again.
 */
#include "cuda_shim.h"

/* Absent when this library was built without the management front end. */
extern const struct hami_library hami_library_nvml __attribute__((weak, visibility("hidden")));

struct nvml_memory { unsigned long long total, free, used; };
typedef int (*plain_fn)(void);
typedef int (*find_fn)(const char *, void **);
typedef int (*memory_fn)(void *, struct nvml_memory *);

static void *nvml(const char *name) { return hami_driver_symbol(&hami_library_nvml, name); }

static bool find_handle(find_fn find, CUdevice device, void **handle) {
    char text[64];
    if (cuda_uuid_text(device, "GPU-", text, sizeof text) && find(text, handle) == 0) return true;
    return cuda_uuid_text(device, "MIG-", text, sizeof text) && find(text, handle) == 0;
}

bool cuda_card_used(CUdevice device, uint64_t *bytes) {
    if (&hami_library_nvml == NULL) return false;
    plain_fn init = (plain_fn)nvml("nvmlInit_v2"), end = (plain_fn)nvml("nvmlShutdown");
    find_fn find = (find_fn)nvml("nvmlDeviceGetHandleByUUID");
    memory_fn get = (memory_fn)nvml("nvmlDeviceGetMemoryInfo");
    if (init == NULL || end == NULL || find == NULL || get == NULL || init() != 0) return false;
    void *handle;
    struct nvml_memory memory = {0};
    bool known = find_handle(find, device, &handle) && get(handle, &memory) == 0;
    (void)end();
    *bytes = memory.used;
    return known;
}
