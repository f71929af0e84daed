/* SPDX-License-Identifier: Apache-2.0 */
/*
 * linear.c: linear memory, charged as a driver really takes it: large blocks rounded up to its granule, small ones by the
 * chunk that they share.
 *
 * Which chunk the driver will cut a small block from is known only afterwards, so a whole chunk is reserved before it is
 * asked, and given back if the block has landed in one that is charged already. Close to the limit a small block may thus be
 * refused although an open chunk had room for it; the other order could take a chunk too many, if only for a moment.
 *
 * A chunk is charged from before its first block exists until after the driver has freed its last one.
 */
#include "books.h"

#define PLUCKED_AT_ONCE 64

static bool is_small(const struct hami_linear *how, uint64_t bytes) {
    return how->granule != 0 && how->chunk != 0 && bytes < how->small_below;
}

/* Never wraps: a request that large is refused by every limit, and an unlimited device's driver. */
static uint64_t rounded(const struct hami_linear *how, uint64_t bytes) {
    if (how->granule == 0) {
        return bytes;
    }
    uint64_t rest = bytes % how->granule;
    uint64_t missing = rest == 0 ? 0 : how->granule - rest;
    return bytes > UINT64_MAX - missing ? UINT64_MAX : bytes + missing;
}

static uint64_t whole_chunks(const struct hami_linear *how, uint64_t bytes) {
    uint64_t chunks = bytes == 0 ? 1 : (bytes - 1) / how->chunk + 1;
    return chunks * how->chunk;
}

static uint64_t first_chunk(const struct hami_linear *how, uint64_t pointer) {
    return pointer / how->chunk;
}

static uint64_t last_chunk(const struct hami_linear *how, uint64_t pointer, uint64_t bytes) {
    return (pointer + (bytes == 0 ? 0 : bytes - 1)) / how->chunk;
}

/* Addresses of two devices may be alike where a driver does not unify them. */
static uint64_t chunk_key(uint64_t chunk, int device) {
    return chunk << 5 | ((uint64_t)(unsigned)device & 31);
}

static void drop_chunks(int device, uint64_t first, uint64_t end) {
    for (uint64_t chunk = first; chunk < end; chunk++) {
        struct hami_entry entry;
        if (hami_book_refer(HAMI_BOOK_CHUNK, chunk_key(chunk, device), -1, &entry) == 0) {
            hami_give_back(&entry.hold);
        }
    }
}

/* One reference to `chunk`, charged from `hold` if it is the first. */
static enum hami_verdict hold_chunk(const struct hami_linear *how, uint64_t chunk, struct hami_hold *hold) {
    struct hami_entry unused;
    uint64_t key = chunk_key(chunk, hold->device);
    if (hami_book_refer(HAMI_BOOK_CHUNK, key, 1, &unused) > 0) {
        return HAMI_OK;
    }
    struct hami_hold whole = *hold;
    if (whole.bytes < how->chunk) { /* a block that reaches into a further chunk than was reserved */
        enum hami_verdict verdict = hami_reserve(hold->device, how->chunk, &whole);
        if (verdict != HAMI_OK) {
            return verdict;
        }
    } else {
        whole.bytes = how->chunk;
        hold->bytes -= how->chunk;
    }
    bool put;
    bool kept = hami_book_refer_or_put(HAMI_BOOK_CHUNK, &(struct hami_entry){.key = key, .hold = whole, .tag = chunk, .references = 1}, &put);
    if (!kept || !put) {
        hami_give_back(&whole); /* another thread's block was first, or there is no room in the book */
    }
    return kept ? HAMI_OK : HAMI_REFUSED;
}

static enum hami_verdict hold_chunks(const struct hami_linear *how, uint64_t pointer, uint64_t bytes, struct hami_hold *hold) {
    uint64_t first = first_chunk(how, pointer);
    uint64_t last = last_chunk(how, pointer, bytes);
    for (uint64_t chunk = first; chunk <= last; chunk++) {
        enum hami_verdict verdict = hold_chunk(how, chunk, hold);
        if (HAMI_UNLIKELY(verdict != HAMI_OK)) {
            drop_chunks(hold->device, first, chunk);
            return verdict;
        }
    }
    return HAMI_OK;
}

enum hami_verdict hami_linear_reserve(const struct hami_linear *how, int device, uint64_t bytes, struct hami_hold *hold) {
    return hami_reserve(device, is_small(how, bytes) ? whole_chunks(how, bytes) : rounded(how, bytes), hold);
}

/* A small block's own entry holds nothing but its device: its chunks hold the memory. Its `tag` is its size, as every linear entry's. */
static enum hami_verdict keep_small(const struct hami_linear *how, uint64_t pointer, uint64_t bytes, struct hami_hold *hold) {
    int device = hold->device;
    enum hami_verdict verdict = hold_chunks(how, pointer, bytes, hold);
    if (HAMI_UNLIKELY(verdict != HAMI_OK)) {
        return verdict;
    }
    struct hami_entry replaced;
    struct hami_entry entry = {.key = pointer, .hold = {.device = device}, .tag = bytes, .references = 1};
    if (HAMI_UNLIKELY(!hami_book_put(HAMI_BOOK_POINTER, &entry, &replaced))) {
        drop_chunks(device, first_chunk(how, pointer), last_chunk(how, pointer, bytes) + 1);
        return HAMI_REFUSED;
    }
    hami_give_back(hold);
    if (HAMI_UNLIKELY(replaced.hold.device != HAMI_NO_DEVICE)) {
        hami_linear_freed(how, &replaced);
    }
    return HAMI_OK;
}

/* On any other verdict than HAMI_OK the caller undoes the driver's allocation and gives the hold back. */
enum hami_verdict hami_linear_keep(const struct hami_linear *how, uint64_t pointer, uint64_t bytes, struct hami_hold *hold) {
    if (is_small(how, bytes)) {
        return keep_small(how, pointer, bytes, hold);
    }
    enum hami_verdict verdict = hami_settle(hold, rounded(how, bytes));
    if (HAMI_UNLIKELY(verdict != HAMI_OK)) {
        return verdict;
    }
    struct hami_entry replaced;
    if (HAMI_UNLIKELY(!hami_book_put(HAMI_BOOK_POINTER, &(struct hami_entry){.key = pointer, .hold = *hold, .tag = bytes, .references = 1}, &replaced))) {
        return HAMI_REFUSED;
    }
    hami_hold_clear(hold);
    if (HAMI_UNLIKELY(replaced.hold.device != HAMI_NO_DEVICE)) {
        hami_linear_freed(how, &replaced);
    }
    return HAMI_OK;
}

bool hami_linear_take(const struct hami_linear *how, uint64_t pointer, struct hami_entry *entry) {
    (void)how;
    return hami_book_take(HAMI_BOOK_POINTER, pointer, entry);
}

void hami_linear_freed(const struct hami_linear *how, struct hami_entry *entry) {
    if (is_small(how, entry->tag) && entry->hold.bytes == 0) {
        drop_chunks(entry->hold.device, first_chunk(how, entry->key), last_chunk(how, entry->key, entry->tag) + 1);
        hami_hold_clear(&entry->hold);
    } else {
        hami_give_back(&entry->hold);
    }
}

void hami_linear_return(const struct hami_linear *how, const struct hami_entry *entry) {
    (void)how; /* the chunks were never let go */
    hami_book_return(HAMI_BOOK_POINTER, entry);
}

size_t hami_linear_sweep(const struct hami_linear *how, bool (*match)(const struct hami_entry *entry, void *context), void *context) {
    struct hami_entry plucked[PLUCKED_AT_ONCE];
    size_t total = 0;
    for (size_t shard = 0; shard < HAMI_BOOK_SHARDS; shard++) {
        size_t found;
        do {
            found = hami_book_pluck(HAMI_BOOK_POINTER, shard, match, context, plucked, PLUCKED_AT_ONCE);
            for (size_t i = 0; i < found; i++) {
                hami_linear_freed(how, &plucked[i]);
            }
            total += found;
        } while (found == PLUCKED_AT_ONCE);
    }
    return total;
}
