/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pools.h: memory pools and stream-ordered allocation, for every driver that has them. What counts is what a pool has taken
 * from the device ("reserved, current"), not what its blocks add up to: a freed block stays in the pool until it is trimmed.
 * One entry per pool in the book of pools holds that figure; it is read again whenever the pool may have changed.
 *
 * The front end gives two calls that read a pool's attributes. Reading and settling go under one lock of this process, so that
 * two threads never settle with figures that are older than each other's.
 */
#ifndef HAMI_SHIM_POOLS_H
#define HAMI_SHIM_POOLS_H

#include <stdatomic.h>

#include "hami_core.h"
#include "lock.h"

enum { HAMI_POOLS_AT_ONCE = 64 };

struct hami_pools {
    uint64_t granule; /* a pool grows by a multiple of this */
    bool (*reserved)(uint64_t pool, uint64_t *bytes);
    bool (*used)(uint64_t pool, uint64_t *bytes);
    struct hami_own_lock lock;
    _Atomic int known; /* pools seen so far: 0 makes every re-read one load */
};

struct hami_pool_list_ {
    size_t count;
    uint64_t pools[HAMI_POOLS_AT_ONCE];
};

/* With the lock held: what the pool's entry holds, plus `more`, becomes what the pool really has. */
static inline enum hami_verdict hami_pool_settle_(struct hami_pools *pools, uint64_t pool, struct hami_hold *more) {
    struct hami_entry entry = {.key = pool, .hold = *more};
    uint64_t reserved = 0;
    if (hami_book_take(HAMI_BOOK_POOL, pool, &entry)) {
        entry.hold.bytes += more->bytes; /* holds are sums of bytes: two of one device are one */
    } else {
        atomic_fetch_add_explicit(&pools->known, 1, memory_order_relaxed);
    }
    more->bytes = 0;
    if (!pools->reserved(pool, &reserved)) reserved = entry.hold.bytes;
    enum hami_verdict verdict = hami_settle(&entry.hold, reserved);
    uint64_t kept = entry.hold.bytes;
    (void)hami_book_keep(HAMI_BOOK_POOL, pool, &entry.hold, kept, 0);
    return verdict;
}

static inline void hami_pool_reread(struct hami_pools *pools, uint64_t pool) {
    struct hami_entry entry;
    if (!hami_book_find(HAMI_BOOK_POOL, pool, &entry) || entry.tag == 1) return;
    struct hami_hold nothing = {.device = entry.hold.device};
    hami_own_lock(&pools->lock);
    (void)hami_pool_settle_(pools, pool, &nothing);
    hami_own_unlock(&pools->lock);
}

static inline bool hami_pool_listed_(const struct hami_entry *entry, void *context) {
    struct hami_pool_list_ *list = context;
    if (list->count < HAMI_POOLS_AT_ONCE) list->pools[list->count++] = entry->key;
    return false;
}

/* Work has finished, so that pools may have given memory back to the device. */
static inline void hami_pools_reread(struct hami_pools *pools) {
    if (HAMI_LIKELY(atomic_load_explicit(&pools->known, memory_order_relaxed) == 0)) return;
    struct hami_pool_list_ list = {.count = 0};
    (void)hami_book_sweep(HAMI_BOOK_POOL, hami_pool_listed_, &list);
    for (size_t at = 0; at < list.count; at++) hami_pool_reread(pools, list.pools[at]);
}

/* Leave to take `bytes` from `pool`: room for its growth, or what it has and does not use. */
static inline enum hami_verdict hami_pool_reserve(struct hami_pools *pools, uint64_t pool, int device, uint64_t bytes, struct hami_hold *hold) {
    uint64_t growth = (bytes + pools->granule - 1) / pools->granule * pools->granule, reserved = 0, used = 0;
    if (growth < bytes) growth = bytes;
    enum hami_verdict verdict = hami_reserve(device, growth, hold);
    if (verdict != HAMI_OVER_LIMIT) return verdict;
    hami_pools_reread(pools);
    verdict = hami_reserve(device, growth, hold);
    if (verdict != HAMI_OVER_LIMIT || !pools->reserved(pool, &reserved) || !pools->used(pool, &used)) return verdict;
    if (reserved < used || reserved - used < bytes) return HAMI_OVER_LIMIT;
    *hold = (struct hami_hold){.device = device};
    return HAMI_OK;
}

/* The driver gave `pointer` from `pool`. HAMI_OVER_LIMIT: the pool grew past the limit; free the block, and trim the pool. */
static inline enum hami_verdict hami_pool_took(struct hami_pools *pools, uint64_t pool, uint64_t pointer, struct hami_hold *hold) {
    struct hami_hold nothing = {.device = hold->device};
    hami_own_lock(&pools->lock);
    enum hami_verdict verdict = hami_pool_settle_(pools, pool, hold);
    hami_own_unlock(&pools->lock);
    if (verdict == HAMI_OK) (void)hami_book_keep(HAMI_BOOK_OTHER, pointer, &nothing, 0, pool);
    return verdict;
}

/* Before the driver frees `pointer`: whether it is a pool's block. */
static inline bool hami_pool_take(uint64_t pointer, struct hami_entry *entry) {
    struct hami_entry found;
    return hami_book_find(HAMI_BOOK_OTHER, pointer, &found) && hami_book_find(HAMI_BOOK_POOL, found.tag, entry)
           && hami_book_take(HAMI_BOOK_OTHER, pointer, entry);
}

struct hami_pool_blocks_ {
    uint64_t pool;
    size_t count;
};

static inline bool hami_pool_block_(const struct hami_entry *entry, void *context) {
    struct hami_pool_blocks_ *blocks = context;
    blocks->count += entry->tag == blocks->pool;
    return false;
}

/* A destroyed pool goes with its last block. */
static inline void hami_pool_last_(struct hami_pools *pools, uint64_t pool) {
    struct hami_pool_blocks_ blocks = {.pool = pool};
    struct hami_entry entry;
    (void)hami_book_sweep(HAMI_BOOK_OTHER, hami_pool_block_, &blocks);
    hami_own_lock(&pools->lock);
    if (hami_book_take(HAMI_BOOK_POOL, pool, &entry)) {
        entry.tag = 1; /* destroyed: the driver does not answer for it any more */
        if (blocks.count == 0) {
            hami_give_back(&entry.hold);
        } else {
            hami_book_return(HAMI_BOOK_POOL, &entry);
        }
    }
    hami_own_unlock(&pools->lock);
}

static inline void hami_pool_freed(struct hami_pools *pools, struct hami_entry *entry, bool freed) {
    struct hami_entry pool;
    if (!freed) {
        hami_book_return(HAMI_BOOK_OTHER, entry);
    } else if (hami_book_find(HAMI_BOOK_POOL, entry->tag, &pool) && pool.tag == 1) {
        hami_pool_last_(pools, entry->tag);
    } else {
        hami_pool_reread(pools, entry->tag);
    }
}

/* -- drivers that let a pool's block and a plain one be freed by the same calls ------------------------------------- */

enum hami_freeing_kind { HAMI_FREEING_UNKNOWN, HAMI_FREEING_POOLED, HAMI_FREEING_LINEAR };

struct hami_freeing {
    enum hami_freeing_kind kind;
    struct hami_entry entry;
};

static inline struct hami_freeing hami_pool_or_linear_take(const struct hami_linear *how, uint64_t pointer) {
    struct hami_freeing it = {.kind = HAMI_FREEING_UNKNOWN};
    if (hami_pool_take(pointer, &it.entry)) {
        it.kind = HAMI_FREEING_POOLED;
    } else if (hami_linear_take(how, pointer, &it.entry)) {
        it.kind = HAMI_FREEING_LINEAR;
    }
    return it;
}

static inline void hami_pool_or_linear_freed(struct hami_pools *pools, const struct hami_linear *how, struct hami_freeing *it, bool freed) {
    if (it->kind == HAMI_FREEING_POOLED) hami_pool_freed(pools, &it->entry, freed);
    if (it->kind == HAMI_FREEING_LINEAR && freed) hami_linear_freed(how, &it->entry);
    if (it->kind == HAMI_FREEING_LINEAR && !freed) hami_linear_return(how, &it->entry);
}

/* The pool is destroyed; blocks that are still out keep their memory, and so their charge. */
static inline void hami_pool_destroyed(struct hami_pools *pools, uint64_t pool) { hami_pool_last_(pools, pool); }

#endif
