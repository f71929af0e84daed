/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fake libhydmi.so.1 (API 1.5): what the driver knows of compute units, and virtual devices.
 * It plays the same machine file as the fake rocm_smi (HAMI_FAKE_HYGON). Virtual devices live in the memory of the
 * process that made them; as with the true library, creating one does not tell its number.
 * Signatures and status codes: dmi.h, dmi_virtual.h and dmi_error.h of HYGON/dcu-dcgm.
 */
#include "hami_card_time.h"

#include <stdbool.h>

enum { SUCCESS = 0, ERROR = 1, NO_MKFD = 3, NO_NODE = 5, CREATE_FAILED = 8, INVALID_ARGS = 10, OUT_OF_RESOURCES = 11, NO_DEVICE = 14, NO_VDEVICE = 15 };
enum { MAX_VDEVICES = 200 };

typedef struct { char name[256]; int compute_units; size_t memory, used; uint64_t container; int device; } info_t;
_Static_assert(sizeof(info_t) == 296, "dmi.h");

static struct vdevice { int used, device, units, stopped; size_t memory; } vdevices[MAX_VDEVICES];

static int enter(const void *out)
{
    if (out == NULL)
        return INVALID_ARGS;
    return card_load("HAMI_FAKE_HYGON") == 0 ? SUCCESS : NO_MKFD;
}

static int enter_device(int device, const void *out)
{
    int status = enter(out);
    if (status != SUCCESS)
        return status;
    if (device < 0 || device >= hf_count("device"))
        return NO_DEVICE;
    return strcmp(hf_str("device", device, "health", "ok"), "lost") == 0 ? NO_NODE : SUCCESS;
}

static int enter_vdevice(int vdevice, const void *out)
{
    int status = enter(out);
    if (status != SUCCESS)
        return status;
    return vdevice >= 0 && vdevice < MAX_VDEVICES && vdevices[vdevice].used ? SUCCESS : NO_VDEVICE;
}

static void remaining(int device, int except, size_t *units, size_t *memory)
{
    *units = (size_t)hf_int("device", device, "compute_units", 0);
    *memory = (size_t)hf_u64("device", device, "memory_mib", 0) << 20;
    for (int i = 0; i < MAX_VDEVICES; i++)
        if (vdevices[i].used && vdevices[i].device == device && i != except) {
            *units -= (size_t)vdevices[i].units;
            *memory -= vdevices[i].memory;
        }
}

/* What the machine file says is used, and what programs have taken. */
static size_t used_bytes(int device)
{
    uint64_t capacity, used;
    card_memory(device, &capacity, &used);
    return ((size_t)hf_u64("device", device, "memory_used_mib", 0) << 20) + used;
}

HF_EXPORT int dmiGetStatusString(int status, const char **words)
{
    if (words == NULL)
        return INVALID_ARGS;
    *words = status == SUCCESS ? "success" : status == NO_MKFD ? "open /dev/mkfd failed" : status == NO_NODE ? "sysfs node does not exist" : "error";
    return SUCCESS;
}

HF_EXPORT int dmiGetDeviceCount(int *count)
{
    int status = enter(count);
    if (status == SUCCESS)
        *count = hf_count("device");
    return status;
}

HF_EXPORT int dmiGetVDeviceCount(int *count)
{
    int status = enter(count);
    if (status != SUCCESS)
        return status;
    *count = 0;
    for (int i = 0; i < MAX_VDEVICES; i++)
        *count += vdevices[i].used;
    return SUCCESS;
}

HF_EXPORT int dmiGetMaxVDeviceCount(int *count)
{
    int status = enter(count);
    if (status == SUCCESS)
        *count = (int)hf_int("machine", -1, "max_vdevices", 20);
    return status;
}

HF_EXPORT int dmiGetDeviceInfo(int device, info_t *info)
{
    int status = enter_device(device, info);
    if (status != SUCCESS)
        return status;
    *info = (info_t){
        .compute_units = (int)hf_int("device", device, "compute_units", 0), .memory = (size_t)hf_u64("device", device, "memory_mib", 0) << 20,
        .used = used_bytes(device), .device = device,
    };
    hf_copy(info->name, sizeof info->name, hf_str("device", device, "name", ""));
    return SUCCESS;
}

HF_EXPORT int dmiGetVDeviceInfo(int vdevice, info_t *info)
{
    int status = enter_vdevice(vdevice, info);
    if (status != SUCCESS)
        return status;
    const struct vdevice *own = &vdevices[vdevice];
    *info = (info_t){.compute_units = own->units, .memory = own->memory, .device = own->device};
    hf_copy(info->name, sizeof info->name, hf_str("device", own->device, "name", ""));
    return SUCCESS;
}

HF_EXPORT int dmiGetDeviceRemainingInfo(int device, size_t *units, size_t *memory)
{
    int status = units == NULL ? INVALID_ARGS : enter_device(device, memory);
    if (status == SUCCESS)
        remaining(device, -1, units, memory);
    return status;
}

static int create(int device, int units, int memory_mib)
{
    size_t free_units, free_memory, memory = (size_t)memory_mib << 20;
    remaining(device, -1, &free_units, &free_memory);
    if (units <= 0 || memory_mib <= 0)
        return INVALID_ARGS;
    if ((size_t)units > free_units || memory > free_memory)
        return OUT_OF_RESOURCES;
    for (int i = 0; i < MAX_VDEVICES; i++)
        if (!vdevices[i].used) {
            vdevices[i] = (struct vdevice){.used = 1, .device = device, .units = units, .memory = memory};
            return SUCCESS;
        }
    return CREATE_FAILED;
}

HF_EXPORT int dmiCreateVDevices(int device, int count, const int *units, const int *memory_mib)
{
    int status = units == NULL ? INVALID_ARGS : enter_device(device, memory_mib);
    for (int i = 0; status == SUCCESS && i < count; i++)
        status = create(device, units[i], memory_mib[i]);
    return status;
}

HF_EXPORT int dmiUpdateSingleVDevice(int vdevice, int units, int memory_mib)
{
    size_t free_units, free_memory;
    int status = enter_vdevice(vdevice, vdevices);
    if (status != SUCCESS)
        return status;
    struct vdevice *own = &vdevices[vdevice];
    int new_units = units == -1 ? own->units : units;
    size_t new_memory = memory_mib == -1 ? own->memory : (size_t)memory_mib << 20;
    remaining(own->device, vdevice, &free_units, &free_memory);
    if ((size_t)new_units > free_units || new_memory > free_memory)
        return OUT_OF_RESOURCES;
    own->units = new_units;
    own->memory = new_memory;
    return SUCCESS;
}

HF_EXPORT int dmiDestroySingleVDevice(int vdevice)
{
    int status = enter_vdevice(vdevice, vdevices);
    if (status == SUCCESS)
        vdevices[vdevice].used = 0;
    return status;
}

HF_EXPORT int dmiDestroyVDevices(int device)
{
    int status = enter_device(device, vdevices);
    for (int i = 0; status == SUCCESS && i < MAX_VDEVICES; i++)
        if (vdevices[i].device == device)
            vdevices[i].used = 0;
    return status;
}

static int stop(int vdevice, int stopped)
{
    int status = enter_vdevice(vdevice, vdevices);
    if (status == SUCCESS)
        vdevices[vdevice].stopped = stopped;
    return status;
}

HF_EXPORT int dmiStartVDevice(int vdevice) { return stop(vdevice, 0); }
HF_EXPORT int dmiStopVDevice(int vdevice) { return stop(vdevice, 1); }

HF_EXPORT int dmiGetDevBusyPercent(int device, int *percent)
{
    int status = enter_device(device, percent);
    if (status == SUCCESS)
        *percent = (int)hf_int("device", device, "utilization", 0) + (int)card_utilization(device);
    return status;
}

HF_EXPORT int dmiGetVDevBusyPercent(int vdevice, int *percent)
{
    int status = enter_vdevice(vdevice, percent);
    if (status == SUCCESS)
        *percent = vdevices[vdevice].stopped ? 0 : (int)hf_int("device", vdevices[vdevice].device, "utilization", 0);
    return status;
}

static bool encrypted;

HF_EXPORT int dmiSetEncryptionVMStatus(bool on)
{
    encrypted = on;
    return enter(&encrypted);
}

HF_EXPORT int dmiGetEncryptionVMStatus(bool *on)
{
    int status = enter(on);
    if (status == SUCCESS)
        *on = encrypted;
    return status;
}
