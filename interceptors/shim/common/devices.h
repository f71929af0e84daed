/* SPDX-License-Identifier: Apache-2.0 */
/*
 * devices.h: from a driver's own number for a device to the policy's record, for every front end. The driver is asked once per
 * ordinal and policy; the first use of a device in a process also charges what a context costs there. And what happens to
 * the books when a driver gives a whole device back.
 */
#ifndef HAMI_SHIM_DEVICES_H
#define HAMI_SHIM_DEVICES_H

#include <stdatomic.h>

#include "hami_core.h"

enum { HAMI_ORDINALS = 64 };

struct hami_ordinals {
    int (*find)(int ordinal); /* asks the driver who that is; HAMI_NO_DEVICE when the policy has no such device */
    _Atomic uint64_t seen[HAMI_ORDINALS]; /* generation << 32 | index + 2; 0: not asked yet */
};

static inline bool hami_on_device_(const struct hami_entry *entry, void *device) { return entry->hold.device == *(const int *)device; }

/* The driver has dropped all this process had on the device: all books forget it. */
static inline void hami_device_gone(const struct hami_linear *how, int device) {
    if (device == HAMI_NO_DEVICE) return;
    for (int book = 0; book < HAMI_BOOKS; book++) {
        if (book != HAMI_BOOK_POINTER) (void)hami_book_sweep((enum hami_book)book, hami_on_device_, &device);
    }
    (void)hami_linear_sweep(how, hami_on_device_, &device); /* small blocks let go of the chunks that they share */
}

/* A process's first context on a device takes memory that no allocation shows. It cannot be refused any more: the driver has it. */
static inline void hami_charge_context(int device) {
    struct hami_entry known;
    struct hami_hold hold;
    uint64_t key = (uint64_t)device + 1, bytes = hami_context_bytes(device);
    if (bytes == 0 || hami_book_find(HAMI_BOOK_CONTEXT, key, &known)) return;
    if (hami_reserve(device, bytes, &hold) != HAMI_OK) {
        hami_say_once("context", "device %d: the limit leaves no room for a context of %llu bytes", device, (unsigned long long)bytes);
        return;
    }
    (void)hami_book_keep(HAMI_BOOK_CONTEXT, key, &hold, bytes, 0);
}

/* The policy's record of the driver's device `ordinal`. */
static inline int hami_ordinal_device(struct hami_ordinals *known, int ordinal) {
    if (ordinal < 0 || ordinal >= HAMI_ORDINALS) return HAMI_NO_DEVICE;
    uint32_t generation = hami_policy_generation();
    uint64_t seen = atomic_load_explicit(&known->seen[ordinal], memory_order_relaxed);
    if (HAMI_LIKELY(generation != 0 && seen >> 32 == generation)) return (int)(uint32_t)seen - 2;
    int device = known->find(ordinal);
    if (device != HAMI_NO_DEVICE) hami_charge_context(device);
    atomic_store_explicit(&known->seen[ordinal], (uint64_t)generation << 32 | (uint32_t)(device + 2), memory_order_relaxed);
    return device;
}

/* What a query of free and total memory shows: the slice, and never more free memory than the device itself has. */
static inline void hami_show_slice(int device, uint64_t *free_bytes, uint64_t *total_bytes) {
    struct hami_memory_view view = hami_memory_view(device);
    if (!view.limited) return;
    if (free_bytes != NULL && view.free < *free_bytes) *free_bytes = view.free;
    if (total_bytes != NULL && view.total < *total_bytes) *total_bytes = view.total;
}

#endif
