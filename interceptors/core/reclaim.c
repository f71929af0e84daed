/* SPDX-License-Identifier: Apache-2.0 */
/*
 * reclaim.c: what the dead held goes back to the living, exactly once, and the books are the sum of the slots again
 * whenever somebody died in the middle of a change.
 *
 * A slot is taken back in steps: it is marked, its figures come off the device's, its own become zero, it is free. Whoever
 * dies between two of them held the mutex, so that the next owner recounts and finishes what was marked.
 */
#include "internal.h"

#define BATCH 32

struct candidate {
    struct hami_slot *slot;
    uint64_t word;
};

static void lower(_Atomic uint64_t *figure, uint64_t by) {
    uint64_t now = atomic_load_explicit(figure, memory_order_relaxed);
    atomic_store_explicit(figure, now > by ? now - by : 0, memory_order_relaxed);
}

static void empty(struct hami_slot *slot) {
    for (size_t i = 0; i < HAMI_MAX_DEVICES; i++) {
        struct hami_slot_device *device = &slot->devices[i];
        atomic_store_explicit(&device->held_bytes, 0, memory_order_relaxed);
        atomic_store_explicit(&device->virtual_bytes, 0, memory_order_relaxed);
        atomic_store_explicit(&device->context_bytes, 0, memory_order_relaxed);
        atomic_store_explicit(&device->busy_ns, 0, memory_order_relaxed);
        hami_write_point(HAMI_POINT_RECLAIM_SLOT);
    }
}

bool hami_reclaim_slot(struct hami_state_file *state, struct hami_slot *slot, uint64_t word) {
    uint64_t expected = word;
    if (!atomic_compare_exchange_strong(&slot->state, &expected, hami_slot_word(word, HAMI_SLOT_STATE_RECLAIMING))) {
        return false; /* somebody else did it, or it lives again as another process's */
    }
    hami_write_point(HAMI_POINT_RECLAIM_MARKED);
    for (size_t i = 0; i < HAMI_MAX_DEVICES; i++) {
        lower(&state->devices[i].used_bytes, atomic_load_explicit(&slot->devices[i].held_bytes, memory_order_relaxed));
        lower(&state->devices[i].virtual_used_bytes, atomic_load_explicit(&slot->devices[i].virtual_bytes, memory_order_relaxed));
        hami_write_point(HAMI_POINT_RECLAIM_USED);
    }
    empty(slot);
    atomic_store_explicit(&slot->state, hami_slot_word(word, HAMI_SLOT_STATE_FREE), memory_order_release);
    hami_write_point(HAMI_POINT_RECLAIM_FREE);
    atomic_fetch_add_explicit(&state->epoch, 1, memory_order_relaxed);
    return true;
}

static void finish_reclaims(struct hami_state_file *state) {
    for (size_t i = 0; i < HAMI_MAX_SLOTS; i++) {
        struct hami_slot *slot = &state->slots[i];
        uint64_t word = atomic_load_explicit(&slot->state, memory_order_acquire);
        if (hami_slot_kind(word) == HAMI_SLOT_STATE_RECLAIMING) {
            empty(slot);
            atomic_store_explicit(&slot->state, hami_slot_word(word, HAMI_SLOT_STATE_FREE), memory_order_release);
            hami_write_point(HAMI_POINT_RECOUNT_FINISHED_RECLAIM);
        }
    }
}

void hami_recount(struct hami_state_file *state) {
    finish_reclaims(state);
    uint64_t used[HAMI_MAX_DEVICES] = {0};
    uint64_t managed[HAMI_MAX_DEVICES] = {0};
    for (size_t i = 0; i < HAMI_MAX_SLOTS; i++) {
        const struct hami_slot *slot = &state->slots[i];
        if (hami_slot_kind(atomic_load_explicit(&slot->state, memory_order_acquire)) != HAMI_SLOT_STATE_LIVE) {
            continue; /* a slot that is free or being claimed holds nothing */
        }
        for (size_t device = 0; device < HAMI_MAX_DEVICES; device++) {
            used[device] += atomic_load_explicit(&slot->devices[device].held_bytes, memory_order_relaxed);
            managed[device] += atomic_load_explicit(&slot->devices[device].virtual_bytes, memory_order_relaxed);
        }
    }
    for (size_t device = 0; device < HAMI_MAX_DEVICES; device++) {
        atomic_store_explicit(&state->devices[device].used_bytes, used[device], memory_order_relaxed);
        atomic_store_explicit(&state->devices[device].virtual_used_bytes, managed[device], memory_order_relaxed);
        hami_write_point(HAMI_POINT_RECOUNT_USED);
    }
    atomic_fetch_add_explicit(&state->epoch, 1, memory_order_relaxed);
    hami_write_point(HAMI_POINT_RECOUNT_EPOCH);
}

/* The mutex is taken for what is known to be dead, and each is looked at again under it: its word tells whether it still is the same. */
static size_t reclaim_batch(struct hami_state_file *state, const struct candidate *candidates, size_t count) {
    if (count == 0 || !hami_books_lock(state)) {
        return 0;
    }
    hami_write_point(HAMI_POINT_RECLAIM_LOCKED);
    size_t reclaimed = 0;
    for (size_t i = 0; i < count; i++) {
        reclaimed += hami_reclaim_slot(state, candidates[i].slot, candidates[i].word) ? 1 : 0;
    }
    hami_books_unlock(state);
    hami_write_point(HAMI_POINT_RECLAIM_UNLOCKED);
    return reclaimed;
}

static bool occupied(uint64_t word) {
    return hami_slot_kind(word) == HAMI_SLOT_STATE_LIVE || hami_slot_kind(word) == HAMI_SLOT_STATE_CLAIMING;
}

size_t hami_reclaim_dead(struct hami_state_file *state, const struct hami_slot *own, size_t most) {
    HAMI_KEEP_ERRNO;
    int fd = hami_state_descriptor();
    struct candidate candidates[BATCH];
    size_t found = 0, reclaimed = 0, looked_at = 0;
    for (size_t i = 0; i < HAMI_MAX_SLOTS && looked_at < most; i++) {
        struct hami_slot *slot = &state->slots[i];
        uint64_t word = atomic_load_explicit(&slot->state, memory_order_acquire);
        if (slot == own || !occupied(word)) {
            continue;
        }
        looked_at++;
        if (hami_slot_dead(fd, state, i, word)) {
            hami_write_point(HAMI_POINT_RECLAIM_PROBED);
            candidates[found++] = (struct candidate){slot, word};
        }
        if (found == BATCH) {
            reclaimed += reclaim_batch(state, candidates, found);
            found = 0;
        }
    }
    return reclaimed + reclaim_batch(state, candidates, found);
}
