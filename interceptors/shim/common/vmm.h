/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vmm.h: physical memory behind handles, for every driver that has it. Memory is charged when it is made and given back when
 * neither a reference to its handle nor a mapping of it is left; reserving addresses charges nothing. A handle's entry in the
 * book counts both; a mapping's entry has the handle as its tag and, beside it in the other book, its size.
 */
#ifndef HAMI_SHIM_VMM_H
#define HAMI_SHIM_VMM_H

#include "hami_core.h"

enum { HAMI_VMM_SEGMENTS = 32 };

/* Mappings taken out before the driver unmaps them: it may hand the handle out again at once. */
struct hami_vmm_unmap {
    size_t count;
    struct hami_entry segments[HAMI_VMM_SEGMENTS], handles[HAMI_VMM_SEGMENTS];
    uint64_t sizes[HAMI_VMM_SEGMENTS];
    bool last[HAMI_VMM_SEGMENTS]; /* it was the last that kept its handle's memory */
};

/* The driver has made `handle` of memory that `hold` covers. */
static inline void hami_vmm_created(uint64_t handle, struct hami_hold *hold, uint64_t bytes) {
    (void)hami_book_keep(HAMI_BOOK_HANDLE, handle, hold, bytes, bytes);
}

/* Before the driver releases a reference: true when it was the last, and `entry` is then the caller's. */
static inline bool hami_vmm_release(uint64_t handle, struct hami_entry *entry) { return hami_book_refer(HAMI_BOOK_HANDLE, handle, -1, entry) == 0; }

/* After: the memory is gone, or the driver would not, and all is as before. */
static inline void hami_vmm_released(uint64_t handle, struct hami_entry *entry, bool last, bool released) {
    if (released) {
        if (last) hami_give_back(&entry->hold);
        return;
    }
    struct hami_entry unused;
    if (!last) {
        (void)hami_book_refer(HAMI_BOOK_HANDLE, handle, 1, &unused);
        return;
    }
    entry->references = 1;
    hami_book_return(HAMI_BOOK_HANDLE, entry);
}

static inline void hami_vmm_mapped(uint64_t address, uint64_t size, uint64_t handle) {
    struct hami_entry entry;
    if (hami_book_refer(HAMI_BOOK_HANDLE, handle, 1, &entry) < 0) return; /* host memory, or not charged here */
    struct hami_hold nothing = {.device = entry.hold.device};
    (void)hami_book_keep(HAMI_BOOK_MAPPING, address, &nothing, 0, handle);
    (void)hami_book_keep(HAMI_BOOK_OTHER, address, &nothing, 0, size);
}

/* Take out all mappings from `address` on; `size` 0: the one that begins there. */
static inline void hami_vmm_unmap(struct hami_vmm_unmap *taken, uint64_t address, uint64_t size) {
    uint64_t end = size == 0 ? address + 1 : address + size;
    struct hami_entry beside;
    taken->count = 0;
    while (address < end && taken->count < HAMI_VMM_SEGMENTS) {
        size_t at = taken->count;
        if (!hami_book_take(HAMI_BOOK_MAPPING, address, &taken->segments[at])) break;
        taken->sizes[at] = hami_book_take(HAMI_BOOK_OTHER, address, &beside) ? beside.tag : 0;
        taken->last[at] = hami_vmm_release(taken->segments[at].tag, &taken->handles[at]);
        taken->count++;
        address += taken->sizes[at] > 0 ? taken->sizes[at] : 1;
    }
}

static inline void hami_vmm_unmapped(struct hami_vmm_unmap *taken, bool unmapped) {
    for (size_t at = 0; at < taken->count; at++) {
        hami_vmm_released(taken->segments[at].tag, &taken->handles[at], taken->last[at], unmapped);
        if (unmapped) continue;
        struct hami_hold nothing = {.device = taken->segments[at].hold.device};
        hami_book_return(HAMI_BOOK_MAPPING, &taken->segments[at]);
        (void)hami_book_keep(HAMI_BOOK_OTHER, taken->segments[at].key, &nothing, 0, taken->sizes[at]);
    }
}

#endif
