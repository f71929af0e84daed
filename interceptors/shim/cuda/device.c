/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device.c: which record of the policy a driver ordinal is.
 *
 * An ordinal means nothing by itself (CUDA_VISIBLE_DEVICES reorders and hides), so a device is matched by what the driver
 * reports of it: its UUID, else the UUID of the MIG slice, else its PCI address. The answer is cached per ordinal for as long
 * as the policy's generation stays the same. A device without a record stays visible and is refused when a context is made
 * on it: hiding it would renumber the devices under a program that was told its ordinals.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "cuda_shim.h"

/* generation (32 bits) | index + 2; 0: nothing known yet */
static _Atomic uint64_t known[CUDA_DEVICES];

static bool uuid_of(CUdevice device, CUuuid *uuid, bool *slice) {
    cuDeviceGetUuid_v2_fn by_slice = cuda_real_cuDeviceGetUuid_v2();
    cuDeviceGetUuid_fn by_card = cuda_real_cuDeviceGetUuid();
    CUuuid card;
    bool have_card = by_card != NULL && by_card(&card, device) == CUDA_SUCCESS;
    *slice = false;
    if (by_slice != NULL && by_slice(uuid, device) == CUDA_SUCCESS) {
        *slice = have_card && memcmp(&card, uuid, sizeof card) != 0; /* a MIG slice answers its own here, and its card's there */
        return true;
    }
    if (have_card) *uuid = card;
    return have_card;
}

static void print_uuid(const CUuuid *uuid, const char *prefix, char *text, size_t room) {
    const unsigned char *b = (const unsigned char *)uuid->bytes;
    (void)snprintf(text, room, "%s%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", prefix, b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8],
                   b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

bool cuda_uuid_text(CUdevice device, const char *prefix, char *text, size_t room) {
    CUuuid uuid;
    bool slice;
    if (!uuid_of(device, &uuid, &slice)) return false;
    print_uuid(&uuid, prefix, text, room);
    return true;
}

static int by_pci(CUdevice device) {
    cuDeviceGetPCIBusId_fn get = cuda_real_cuDeviceGetPCIBusId();
    char address[32] = "";
    if (get == NULL || get(address, (int)sizeof address, device) != CUDA_SUCCESS) return HAMI_NO_DEVICE;
    return hami_device_find("pci", address);
}

static int look_up(CUdevice device) {
    CUuuid uuid;
    bool slice = false;
    char text[64];
    if (!uuid_of(device, &uuid, &slice)) return by_pci(device);
    if (!slice) {
        print_uuid(&uuid, "GPU-", text, sizeof text);
        int index = hami_device_find("uuid", text);
        if (index != HAMI_NO_DEVICE) return index;
    }
    print_uuid(&uuid, "MIG-", text, sizeof text);
    int index = hami_device_find("mig-uuid", text);
    /* The slices of a card share its PCI address: a slice that is not declared must not pass for its neighbour. */
    return index != HAMI_NO_DEVICE || slice ? index : by_pci(device);
}

int cuda_index(CUdevice device) {
    if (device < 0 || device >= CUDA_DEVICES) return HAMI_NO_DEVICE;
    uint64_t generation = hami_policy_generation();
    uint64_t cached = atomic_load_explicit(&known[device], memory_order_relaxed);
    if (HAMI_LIKELY(cached != 0 && cached >> 32 == generation)) return (int)(uint32_t)cached - 2;
    cuda_watch_forks();
    int index = look_up(device);
    if (index == HAMI_NO_DEVICE && !cuda_there(device)) return index; /* not initialised yet: ask again next time */
    atomic_store_explicit(&known[device], generation << 32 | (uint32_t)(index + 2), memory_order_relaxed);
    return index;
}

/* CUDA_VISIBLE_DEVICES may be another one when the child first initialises the driver. */
void cuda_device_reset(void) {
    for (int device = 0; device < CUDA_DEVICES; device++) atomic_store_explicit(&known[device], 0, memory_order_relaxed);
}

bool cuda_there(CUdevice device) {
    cuDeviceGet_fn get = cuda_real_cuDeviceGet();
    CUdevice same;
    return get != NULL && get(&same, device) == CUDA_SUCCESS;
}

bool cuda_current(CUdevice *device) {
    cuCtxGetDevice_fn get = cuda_real_cuCtxGetDevice();
    return get != NULL && get(device) == CUDA_SUCCESS;
}

int cuda_current_index(void) {
    CUdevice device = 0;
    return cuda_current(&device) ? cuda_index(device) : HAMI_NO_DEVICE;
}

int cuda_device(void) { return cuda_current_index(); }

uint64_t cuda_context(void) {
    cuCtxGetCurrent_fn get = cuda_real_cuCtxGetCurrent();
    CUcontext context = NULL;
    return get != NULL && get(&context) == CUDA_SUCCESS ? cuda_key(context) : 0;
}

bool cuda_flag(int device, uint32_t flag) {
    const struct hami_policy_device *record = hami_device_policy(device);
    return record != NULL && (record->flags & flag) != 0;
}
