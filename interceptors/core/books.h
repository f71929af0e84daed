/* SPDX-License-Identifier: Apache-2.0 */
/*
 * books.h: the steps of a book that linear.c needs to take as one, beneath what hami_core.h offers to front ends.
 */
#ifndef HAMI_BOOKS_H
#define HAMI_BOOKS_H

#include "internal.h"

/*
 * Puts `entry` in. An entry that was there already comes out into `replaced` (its bytes are 0 and its device HAMI_NO_DEVICE if
 * there was none). False: no memory for the book could be had, and nothing has changed.
 */
HAMI_HIDDEN bool hami_book_put(enum hami_book book, const struct hami_entry *entry, struct hami_entry *replaced);

/* In one step: one more reference to the entry of that key (false), or, if there is none, `entry` put in (true in `*put`). False: as above. */
HAMI_HIDDEN bool hami_book_refer_or_put(enum hami_book book, const struct hami_entry *entry, bool *put);

/* Takes out up to `most` entries that match into `entries`, from one shard; answers how many. `match` must not use a book. */
#define HAMI_BOOK_SHARDS 64
HAMI_HIDDEN size_t hami_book_pluck(enum hami_book book, size_t shard, bool (*match)(const struct hami_entry *entry, void *context), void *context,
                                   struct hami_entry *entries, size_t most);

static inline void hami_hold_clear(struct hami_hold *hold) {
    *hold = (struct hami_hold){.device = HAMI_NO_DEVICE, .bytes = 0, .flags = 0};
}

/* Every bit of the answer depends on every bit of the key, and no two keys have one answer (Stafford's thirteenth mix). */
static inline uint64_t hami_mix(uint64_t key) {
    key = (key ^ (key >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    key = (key ^ (key >> 27)) * UINT64_C(0x94d049bb133111eb);
    return key ^ (key >> 31);
}

#endif
