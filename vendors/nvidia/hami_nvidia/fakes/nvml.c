/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fake libnvidia-ml.so.1 with NVML's true ABI: suffixed symbols, checked version words, two-call buffers.
 * It plays the machine in the file that HAMI_FAKE_NVIDIA names, and reads the file again when it changes:
 *
 *     health = ok | lost | reset-required | ecc | remap-failed     in [device N]; at once, and back again with ok
 *     xid = 79                             one XID event for each new value
 *     memory_used_mib, utilization, processes = PID:MIB,PID:MIB
 *     unsupported = serial,numa,memory     facts that this GPU answers with NVML_ERROR_NOT_SUPPORTED
 *
 * What programs take and run on the fake CUDA driver (hami_card.h) comes on top of memory_used_mib, utilization and processes.
 * MIG instances live in the memory of the process that made them.
 * Layouts and numbers: nvml.h as published in NVIDIA/go-nvml (Apache-2.0); sizes are asserted below.
 */
#include "hami_card_time.h"

#include <strings.h>
#include <time.h>

enum {
    OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9,
    TIMEOUT = 10, GPU_IS_LOST = 15, RESET_REQUIRED = 16, IN_USE = 19, INSUFFICIENT_RESOURCES = 23, VERSION_MISMATCH = 25, UNKNOWN = 999
};
enum { MAX_GPUS = 16, MAX_GIS = 8, MAX_CIS = 8, MAX_LINKS = 18, MEMORY_SLICES = 8, XID_EVENT = 8, MAX_USERS = 128 };

typedef unsigned int uint;
typedef struct { uint start, size; } placement_t;
struct ci { int used; uint id, profile, start, size, serial; struct gi *gi; };
struct gi { int used; uint id; int profile; placement_t place; struct ci ci[MAX_CIS]; struct gpu *gpu; };
struct gpu { int index; struct gi gi[MAX_GIS]; int mig; int registered; int64_t told_xid; };
/* A handle names a GPU, or one compute instance of it (a MIG device). */
typedef struct handle { struct gpu *gpu; struct ci *ci; } *dev_t_;

typedef struct { char busIdLegacy[16]; uint domain, bus, device, pciDeviceId, pciSubSystemId; char busId[32]; } pci_t;
typedef struct { uint64_t total, free, used; } memory_t;
typedef struct { uint version; uint64_t total, reserved, free, used; } memory_v2_t;
typedef struct { uint gpu, memory; } utilization_t;
typedef struct { uint pid; uint64_t used; uint gi, ci; } process_t;
typedef struct { uint pid; uint64_t timestamp; uint sm, memory, encoder, decoder; } process_sample_t;
typedef struct { uint sms, copy, decoder, encoder, jpeg, ofa, giSlices, ciSlices; uint64_t memoryMB; } attributes_t;
typedef struct { uint id, p2p, slices, instances, sms, copy, decoder, encoder, jpeg, ofa; uint64_t memoryMB; } gi_profile_t;
typedef struct { uint version, id, p2p, slices, instances, sms, copy, decoder, encoder, jpeg, ofa; uint64_t memoryMB; char name[96]; } gi_profile_v2_t;
typedef struct { dev_t_ device; uint id, profileId; placement_t place; } gi_info_t;
typedef struct { uint id, slices, instances, sms, copy, decoder, encoder, jpeg, ofa; } ci_profile_t;
typedef struct { dev_t_ device; struct gi *gi; uint id, profileId; placement_t place; } ci_info_t;
typedef struct { dev_t_ device; uint64_t type, data; uint gi, ci; } event_t;

_Static_assert(sizeof(pci_t) == 68 && sizeof(memory_t) == 24 && sizeof(memory_v2_t) == 40 && sizeof(process_t) == 24, "nvml.h");
_Static_assert(sizeof(process_sample_t) == 32, "nvml.h");
_Static_assert(sizeof(attributes_t) == 40 && sizeof(gi_profile_t) == 48 && sizeof(gi_profile_v2_t) == 152, "nvml.h");
_Static_assert(sizeof(gi_info_t) == 24 && sizeof(ci_profile_t) == 36 && sizeof(ci_info_t) == 32 && sizeof(event_t) == 32, "nvml.h");

static int users;
static struct gpu gpus[MAX_GPUS];
static struct handle gpu_handles[MAX_GPUS];
static struct handle mig_handles[MAX_GPUS][MAX_GIS * MAX_CIS];
static uint mig_serial;

/* -- what the machine file says ----------------------------------------------------------------------------- */

static int says(const char *list, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = list; (at = strstr(at, word)) != NULL; at += length)
        if ((at == list || at[-1] == ',' || at[-1] == ' ') && (at[length] == '\0' || at[length] == ','))
            return 1;
    return 0;
}

static int lacks(const struct gpu *gpu, const char *fact)
{
    return says(hf_str("device", gpu->index, "unsupported", ""), fact);
}

static const char *health(int index)
{
    return hf_str("device", index, "health", "ok");
}

static int condition(int index)
{
    if (strcmp(health(index), "lost") == 0)
        return GPU_IS_LOST;
    return strcmp(health(index), "reset-required") == 0 ? RESET_REQUIRED : OK;
}

static int ready(void)
{
    if (users == 0)
        return UNINITIALIZED;
    return card_load("HAMI_FAKE_NVIDIA") == 0 ? OK : UNKNOWN;
}

static int known(const struct handle *handle)
{
    const struct handle *first = &mig_handles[0][0];
    return (handle >= gpu_handles && handle < gpu_handles + MAX_GPUS && handle->gpu != NULL) ||
           (handle >= first && handle < first + MAX_GPUS * MAX_GIS * MAX_CIS && handle->ci != NULL && handle->ci->used);
}

static int check(const struct handle *handle)
{
    int status = ready();
    if (status != OK)
        return status;
    return known(handle) ? condition(handle->gpu->index) : INVALID_ARGUMENT;
}

#define ENTER(handle, ...)                                     \
    do {                                                       \
        const void *out_[] = {__VA_ARGS__};                    \
        for (size_t i_ = 0; i_ < sizeof out_ / sizeof *out_; i_++) \
            if (out_[i_] == NULL)                              \
                return INVALID_ARGUMENT;                       \
        int status_ = check(handle);                           \
        if (status_ != OK)                                     \
            return status_;                                    \
    } while (0)

#define ENTER_FACT(handle, fact, out)       \
    do {                                    \
        ENTER(handle, out);                 \
        if (lacks((handle)->gpu, fact))     \
            return NOT_SUPPORTED;           \
    } while (0)

static int text(char *to, uint length, const char *from)
{
    if (to == NULL)
        return INVALID_ARGUMENT;
    if (strlen(from) >= length)
        return INSUFFICIENT_SIZE;
    snprintf(to, length, "%s", from);
    return OK;
}

static uint64_t mib(int index, const char *key)
{
    return hf_u64("device", index, key, 0) << 20;
}

/* -- library and system ------------------------------------------------------------------------------------- */

HF_EXPORT int nvmlInitWithFlags(uint flags)
{
    (void)flags;
    if (card_load("HAMI_FAKE_NVIDIA") != 0)
        return DRIVER_NOT_LOADED;
    for (int i = 0; users == 0 && i < hf_count("device") && i < MAX_GPUS; i++) {
        gpus[i].index = i;
        gpu_handles[i].gpu = &gpus[i];
    }
    users++;
    return OK;
}

HF_EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

HF_EXPORT int nvmlShutdown(void)
{
    if (users == 0)
        return UNINITIALIZED;
    users--;
    return OK;
}

HF_EXPORT const char *nvmlErrorString(int code)
{
    switch (code) {
    case OK: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case TIMEOUT: return "Timeout";
    case GPU_IS_LOST: return "GPU is lost";
    case RESET_REQUIRED: return "GPU requires restart";
    case IN_USE: return "In use by another client";
    case INSUFFICIENT_RESOURCES: return "Insufficient Resources";
    case VERSION_MISMATCH: return "Argument version mismatch";
    default: return "Unknown Error";
    }
}

static int system_text(const char *key, char *to, uint length)
{
    int status = ready();
    return status != OK ? status : text(to, length, hf_str("machine", -1, key, ""));
}

HF_EXPORT int nvmlSystemGetDriverVersion(char *to, uint length) { return system_text("driver", to, length); }
HF_EXPORT int nvmlSystemGetNVMLVersion(char *to, uint length) { return system_text("nvml", to, length); }

HF_EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    if (version == NULL)
        return INVALID_ARGUMENT;
    int status = ready();
    *version = status == OK ? (int)hf_int("machine", -1, "cuda", 0) : 0;
    return status;
}

/* -- handles and identity ----------------------------------------------------------------------------------- */

HF_EXPORT int nvmlDeviceGetCount_v2(uint *count)
{
    if (count == NULL)
        return INVALID_ARGUMENT;
    int status = ready();
    if (status == OK)
        *count = (uint)hf_count("device");
    return status;
}

HF_EXPORT int nvmlDeviceGetHandleByIndex_v2(uint index, dev_t_ *device)
{
    int status = ready();
    if (status != OK)
        return status;
    if (device == NULL || index >= (uint)hf_count("device") || index >= MAX_GPUS)
        return INVALID_ARGUMENT;
    *device = &gpu_handles[index];
    return condition((int)index);
}

static int by_key(const char *key, const char *wanted, dev_t_ *device)
{
    int status = ready();
    if (status != OK)
        return status;
    if (device == NULL || wanted == NULL)
        return INVALID_ARGUMENT;
    size_t length = strlen(wanted); /* bus ids are compared from the end: NVML writes eight digits of domain, the file four */
    for (int i = 0; i < hf_count("device") && i < MAX_GPUS; i++) {
        const char *own = hf_str("device", i, key, "");
        size_t shorter = strlen(own) < length ? strlen(own) : length;
        if (shorter > 0 && strcasecmp(own + strlen(own) - shorter, wanted + length - shorter) == 0) {
            *device = &gpu_handles[i];
            return condition(i);
        }
    }
    return NOT_FOUND;
}

HF_EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, dev_t_ *device) { return by_key("pci", bus_id, device); }

static void mig_uuid(const struct handle *handle, char *to, size_t size)
{
    snprintf(to, size, "MIG-%08x-0000-5000-8000-%012x", handle->ci->serial, (uint)handle->gpu->index);
}

HF_EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, dev_t_ *device)
{
    char own[80];
    for (int i = 0; uuid != NULL && device != NULL && strncmp(uuid, "MIG-", 4) == 0 && i < MAX_GPUS * MAX_GIS * MAX_CIS; i++) {
        struct handle *handle = &mig_handles[0][0] + i;
        if (!known(handle))
            continue;
        mig_uuid(handle, own, sizeof own);
        if (strcmp(own, uuid) == 0) {
            *device = handle;
            return check(handle);
        }
    }
    return by_key("uuid", uuid, device);
}

HF_EXPORT int nvmlDeviceGetUUID(dev_t_ device, char *to, uint length)
{
    char own[80];
    ENTER(device, to);
    if (device->ci == NULL)
        return text(to, length, hf_str("device", device->gpu->index, "uuid", ""));
    mig_uuid(device, own, sizeof own);
    return text(to, length, own);
}

HF_EXPORT int nvmlDeviceGetName(dev_t_ device, char *to, uint length)
{
    ENTER(device, to);
    return text(to, length, hf_str("device", device->gpu->index, "name", ""));
}

HF_EXPORT int nvmlDeviceGetSerial(dev_t_ device, char *to, uint length)
{
    ENTER_FACT(device, "serial", to);
    return text(to, length, hf_str("device", device->gpu->index, "serial", ""));
}

HF_EXPORT int nvmlDeviceGetIndex(dev_t_ device, uint *index)
{
    ENTER(device, index);
    *index = (uint)device->gpu->index;
    return OK;
}

static int number(dev_t_ device, const char *key, uint *to)
{
    ENTER_FACT(device, key, to);
    if (hf_str("device", device->gpu->index, key, NULL) == NULL)
        return NOT_SUPPORTED;
    *to = (uint)hf_int("device", device->gpu->index, key, 0);
    return OK;
}

HF_EXPORT int nvmlDeviceGetMinorNumber(dev_t_ device, uint *minor) { return number(device, "minor", minor); }
HF_EXPORT int nvmlDeviceGetNumaNodeId(dev_t_ device, uint *node) { return number(device, "numa", node); }
HF_EXPORT int nvmlDeviceGetBoardId(dev_t_ device, uint *board) { return number(device, "board", board); }
HF_EXPORT int nvmlDeviceGetNumGpuCores(dev_t_ device, uint *cores) { return number(device, "cores", cores); }
HF_EXPORT int nvmlDeviceGetPowerUsage(dev_t_ device, uint *milliwatt) { return number(device, "power_mw", milliwatt); }

HF_EXPORT int nvmlDeviceGetTemperature(dev_t_ device, int sensor, uint *celsius)
{
    return sensor == 0 ? number(device, "temperature", celsius) : INVALID_ARGUMENT;
}

static void fill_pci(int index, pci_t *pci)
{
    uint function = 0;
    memset(pci, 0, sizeof *pci);
    sscanf(hf_str("device", index, "pci", ""), "%x:%x:%x.%x", &pci->domain, &pci->bus, &pci->device, &function);
    pci->pciDeviceId = (uint)hf_u64("device", index, "pci_device_id", 0);
    snprintf(pci->busId, sizeof pci->busId, "%08X:%02X:%02X.0", pci->domain & 0xffffffffu, pci->bus & 0xffu, pci->device & 0xffu);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", pci->domain & 0xffffu, pci->bus & 0xffu, pci->device & 0xffu);
}

HF_EXPORT int nvmlDeviceGetPciInfo_v3(dev_t_ device, pci_t *pci)
{
    ENTER(device, pci);
    fill_pci(device->gpu->index, pci);
    return OK;
}

HF_EXPORT int nvmlDeviceGetCudaComputeCapability(dev_t_ device, int *major, int *minor)
{
    ENTER(device, major, minor);
    return sscanf(hf_str("device", device->gpu->index, "compute_capability", ""), "%d.%d", major, minor) == 2 ? OK : NOT_SUPPORTED;
}

/* -- amounts and health ------------------------------------------------------------------------------------- */

/* What the machine file says is used, and what programs have taken. */
static uint64_t used_bytes(int index)
{
    uint64_t capacity, used;
    card_memory(index, &capacity, &used);
    return mib(index, "memory_used_mib") + used;
}

HF_EXPORT int nvmlDeviceGetMemoryInfo(dev_t_ device, memory_t *memory)
{
    ENTER_FACT(device, "memory", memory);
    memory->total = mib(device->gpu->index, "memory_mib");
    memory->used = used_bytes(device->gpu->index);
    memory->free = memory->total - memory->used;
    return OK;
}

HF_EXPORT int nvmlDeviceGetMemoryInfo_v2(dev_t_ device, memory_v2_t *memory)
{
    ENTER_FACT(device, "memory", memory);
    if (memory->version != 0x02000028u)
        return VERSION_MISMATCH;
    memory->total = mib(device->gpu->index, "memory_mib");
    memory->reserved = mib(device->gpu->index, "memory_reserved_mib");
    memory->used = used_bytes(device->gpu->index);
    memory->free = memory->total - memory->reserved - memory->used;
    return OK;
}

static int mig_on(const struct gpu *gpu)
{
    return gpu->mig != 0 ? gpu->mig > 0 : strcmp(hf_str("device", gpu->index, "mig", "off"), "on") == 0;
}

HF_EXPORT int nvmlDeviceGetUtilizationRates(dev_t_ device, utilization_t *rates)
{
    ENTER_FACT(device, "utilization", rates);
    if (mig_on(device->gpu))
        return NOT_SUPPORTED;
    uint busy = (uint)hf_int("device", device->gpu->index, "utilization", 0) + card_utilization(device->gpu->index);
    rates->gpu = busy > 100 ? 100 : busy;
    rates->memory = rates->gpu / 2;
    return OK;
}

HF_EXPORT int nvmlDeviceGetTotalEccErrors(dev_t_ device, int type, int counter, uint64_t *count)
{
    ENTER_FACT(device, "ecc", count);
    (void)counter;
    *count = type == 1 && strcmp(health(device->gpu->index), "ecc") == 0 ? 5 : 0;
    return OK;
}

HF_EXPORT int nvmlDeviceGetRemappedRows(dev_t_ device, uint *corrected, uint *uncorrected, uint *pending, uint *failed)
{
    ENTER(device, corrected, uncorrected, pending, failed);
    if (lacks(device->gpu, "remapped-rows"))
        return NOT_SUPPORTED;
    *corrected = *uncorrected = *pending = 0;
    *failed = strcmp(health(device->gpu->index), "remap-failed") == 0;
    return OK;
}

HF_EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(dev_t_ device, uint *count, process_t *processes)
{
    ENTER(device, count);
    uint room = *count, found = 0;
    char list[HF_VALUE];
    char *rest = NULL;
    snprintf(list, sizeof list, "%s", hf_str("device", device->gpu->index, "processes", ""));
    for (char *item = strtok_r(list, ",", &rest); item != NULL; item = strtok_r(NULL, ",", &rest), found++) {
        uint pid = 0, used = 0;
        if (sscanf(item, "%u:%u", &pid, &used) == 2 && processes != NULL && found < room)
            processes[found] = (process_t){.pid = pid, .used = (uint64_t)used << 20, .gi = ~0u, .ci = ~0u};
    }
    struct card_user users[MAX_USERS];
    uint ours = card_users(device->gpu->index, users, MAX_USERS);
    for (uint i = 0; i < ours && i < MAX_USERS; i++, found++)
        if (processes != NULL && found < room)
            processes[found] = (process_t){.pid = users[i].host_pid, .used = users[i].bytes, .gi = ~0u, .ci = ~0u};
    *count = found;
    return found > room || (found > 0 && processes == NULL) ? INSUFFICIENT_SIZE : OK;
}

/* One sample per process that used the device in the last window; NOT_FOUND when there is none that is newer than `since`. */
HF_EXPORT int nvmlDeviceGetProcessUtilization(dev_t_ device, process_sample_t *samples, uint *count, uint64_t since)
{
    ENTER_FACT(device, "utilization", count);
    struct card_user users[MAX_USERS];
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t lag_us = hf_u64("device", device->gpu->index, "utilization_lag_ms", 100) * 1000;
    uint64_t timestamp = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000 - lag_us;
    uint room = *count, found = 0, ours = card_users(device->gpu->index, users, MAX_USERS);
    for (uint i = 0; i < ours && i < MAX_USERS && timestamp > since; i++) {
        if (users[i].percent == 0)
            continue;
        if (samples != NULL && found < room)
            samples[found] = (process_sample_t){.pid = users[i].host_pid, .timestamp = timestamp, .sm = users[i].percent, .memory = users[i].percent / 2};
        found++;
    }
    *count = found;
    if (found == 0)
        return NOT_FOUND;
    return samples == NULL || found > room ? INSUFFICIENT_SIZE : OK;
}

#include "nvml_mig.h"

/* -- topology ----------------------------------------------------------------------------------------------- */

static int same(const char *key, int first, int second)
{
    const char *one = hf_str("device", first, key, NULL);
    const char *other = hf_str("device", second, key, NULL);
    return one != NULL && other != NULL && strcmp(one, other) == 0;
}

HF_EXPORT int nvmlDeviceGetTopologyCommonAncestor(dev_t_ first, dev_t_ second, int *level)
{
    ENTER(first, level);
    ENTER(second, level);
    int one = first->gpu->index, other = second->gpu->index;
    *level = same("board", one, other) ? 0 : same("pcie_switch", one, other) ? 10 : same("host_bridge", one, other) ? 30 : same("numa", one, other) ? 40 : 50;
    return OK;
}

HF_EXPORT int nvmlDeviceGetP2PStatus(dev_t_ first, dev_t_ second, int index, int *status)
{
    ENTER(first, status);
    ENTER(second, status);
    (void)index;
    *status = 0;
    return OK;
}

/* The GPU at the far end of a link: `nvlink_peers = 1,1,2,…` (one per link); -1 for a switch; -2 when there is no such link. */
static int link_end(const struct gpu *gpu, uint link)
{
    char list[HF_VALUE];
    char *rest = NULL;
    uint at = 0;
    snprintf(list, sizeof list, "%s", hf_str("device", gpu->index, "nvlink_peers", ""));
    for (char *item = strtok_r(list, ",", &rest); item != NULL; item = strtok_r(NULL, ",", &rest), at++)
        if (at == link)
            return atoi(item);
    return link < (uint)hf_int("device", gpu->index, "nvswitch_links", 0) ? -1 : -2;
}

HF_EXPORT int nvmlDeviceGetNvLinkState(dev_t_ device, uint link, uint *active)
{
    ENTER_FACT(device, "nvlink", active);
    if (link >= MAX_LINKS)
        return INVALID_ARGUMENT;
    *active = link_end(device->gpu, link) != -2;
    return *active ? OK : NOT_SUPPORTED;
}

HF_EXPORT int nvmlDeviceGetNvLinkRemoteDeviceType(dev_t_ device, uint link, int *type)
{
    ENTER_FACT(device, "nvlink", type);
    int end = link_end(device->gpu, link);
    *type = end == -1 ? 2 : end >= 0 ? 0 : 255;
    return end == -2 ? INVALID_ARGUMENT : OK;
}

HF_EXPORT int nvmlDeviceGetNvLinkRemotePciInfo_v2(dev_t_ device, uint link, pci_t *pci)
{
    ENTER_FACT(device, "nvlink", pci);
    int end = link_end(device->gpu, link);
    if (end == -2)
        return INVALID_ARGUMENT;
    memset(pci, 0, sizeof *pci);
    if (end >= 0)
        fill_pci(end, pci);
    return OK;
}

/* -- events ------------------------------------------------------------------------------------------------- */

static int event_set; /* one is enough: its address is the handle */

HF_EXPORT int nvmlEventSetCreate(void **set)
{
    if (set == NULL)
        return INVALID_ARGUMENT;
    *set = &event_set;
    return ready();
}

HF_EXPORT int nvmlEventSetFree(void *set) { return set == &event_set ? ready() : INVALID_ARGUMENT; }

HF_EXPORT int nvmlDeviceGetSupportedEventTypes(dev_t_ device, uint64_t *types)
{
    ENTER(device, types);
    *types = XID_EVENT;
    return OK;
}

HF_EXPORT int nvmlDeviceRegisterEvents(dev_t_ device, uint64_t types, void *set)
{
    ENTER_FACT(device, "events", set);
    if (set != &event_set || (types & ~(uint64_t)XID_EVENT) != 0)
        return INVALID_ARGUMENT;
    device->gpu->registered = 1;
    return OK;
}

HF_EXPORT int nvmlEventSetWait_v2(void *set, event_t *event, uint timeout_ms)
{
    int status = ready();
    if (status != OK)
        return status;
    if (set != &event_set || event == NULL)
        return INVALID_ARGUMENT;
    for (uint waited = 0;; waited += 10) {
        for (int i = 0; i < MAX_GPUS; i++) {
            int64_t xid = gpus[i].registered ? hf_int("device", i, "xid", 0) : 0;
            int news = xid != gpus[i].told_xid;
            gpus[i].told_xid = xid;
            if (news && xid != 0) {
                *event = (event_t){.device = &gpu_handles[i], .type = XID_EVENT, .data = (uint64_t)xid, .gi = ~0u, .ci = ~0u};
                return OK;
            }
        }
        if (waited >= timeout_ms)
            return TIMEOUT;
        nanosleep(&(struct timespec){.tv_nsec = 10 * 1000 * 1000}, NULL);
        status = ready();
        if (status != OK)
            return status;
    }
}
