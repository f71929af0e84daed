/* SPDX-License-Identifier: Apache-2.0 */
/*
 * exports.c: what the processes of a container tell each other about memory beside the books: which handles they have
 * exported, what a context was measured to cost, and whose turn it is to measure. Nothing here can pass a limit.
 */
#include "internal.h"

#define MEASURE_PATIENCE_MS 30000 /* making a first context takes seconds; one that hangs must not hang the others */

static uint64_t hash_of(const void *handle, size_t length) {
    uint64_t hash = hami_fnv1a(HAMI_FNV_START, handle, length);
    return hash != 0 ? hash : 1; /* 0 marks a free place */
}

/* The oldest note makes room. Nobody finds a note half written: its hash is 0 while it changes. */
void hami_export_note(const void *handle, size_t length, uint64_t bytes) {
    struct hami_state_file *state = hami_state();
    if (state == NULL || hami_export_known(handle, length)) {
        return;
    }
    uint64_t place = atomic_fetch_add(&state->next_export, 1) % HAMI_MAX_EXPORTS;
    hami_write_point(HAMI_POINT_EXPORT_TAKEN);
    atomic_store(&state->exports[place].handle_hash, 0);
    atomic_store(&state->exports[place].bytes, bytes);
    hami_write_point(HAMI_POINT_EXPORT_BYTES);
    atomic_store(&state->exports[place].handle_hash, hash_of(handle, length));
    hami_write_point(HAMI_POINT_EXPORT_HASH);
}

bool hami_export_known(const void *handle, size_t length) {
    const struct hami_state_file *state = hami_state();
    if (state == NULL) {
        return false;
    }
    uint64_t wanted = hash_of(handle, length);
    for (size_t i = 0; i < HAMI_MAX_EXPORTS; i++) {
        if (atomic_load_explicit(&state->exports[i].handle_hash, memory_order_acquire) == wanted) {
            return true;
        }
    }
    return false;
}

uint64_t hami_context_bytes(int device) {
    const struct hami_policy_device *policy = hami_device_policy(device);
    if (policy == NULL || policy->context_bytes != 0) {
        return policy != NULL ? policy->context_bytes : 0;
    }
    const struct hami_state_file *state = hami_state();
    return state != NULL ? atomic_load_explicit(&state->devices[device].context_bytes, memory_order_acquire) : 0;
}

void hami_context_measured(int device, uint64_t bytes) {
    struct hami_state_file *state = hami_device_policy(device) != NULL ? hami_state() : NULL;
    uint64_t not_measured = 0;
    if (state != NULL && atomic_compare_exchange_strong(&state->devices[device].context_bytes, &not_measured, bytes)) {
        hami_write_point(HAMI_POINT_MEASURE_WRITTEN);
    }
}

/* Threads first, then processes; a record lock belongs to the process and does not keep its threads apart. */
void hami_measure_begin(void) {
    struct hami_process *process = hami_process();
    hami_local_lock(&process->measure_lock);
    if (hami_state() == NULL) {
        return;
    }
    HAMI_KEEP_ERRNO;
    int fd = hami_state_descriptor();
    if (fd >= 0 && hami_lock_byte(fd, HAMI_LOCK_MEASURE, MEASURE_PATIENCE_MS)) {
        hami_write_point(HAMI_POINT_MEASURE_LOCKED);
        atomic_store(&process->measuring, 1);
    }
}

void hami_measure_end(void) {
    struct hami_process *process = hami_process();
    if (atomic_exchange(&process->measuring, 0) != 0) {
        HAMI_KEEP_ERRNO;
        hami_unlock_byte(hami_state_descriptor(), HAMI_LOCK_MEASURE);
    }
    hami_local_unlock(&process->measure_lock);
}
