/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slots.c: how a process takes its place in the state file. A slot never moves; FREE -> CLAIMING -> LIVE is done by its new
 * owner without the mutex (a slot that is not LIVE holds nothing), LIVE -> RECLAIMING -> FREE by anybody under the mutex.
 */
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

#define LOOK_ON_JOIN 64 /* other slots to look at for the dead when joining: a start costs microseconds, also among 1,000 */

void hami_slot_hold(int fd) {
    struct hami_process *process = hami_process();
    struct hami_state_file *state = hami_state();
    if (state == NULL || atomic_load_explicit(&process->joined, memory_order_acquire) == 0) {
        return;
    }
    hami_lock_byte(fd, HAMI_LOCK_SLOTS + (atomic_load(&process->slot) - state->slots), 0);
}

static uint64_t own_pid(void) {
    return (uint64_t)syscall(SYS_getpid); /* the C library's own memory of it is wrong in a child of a bare clone */
}

/* What this process held under the same PID before it called exec. Its byte is free: in another PID namespace the same number can be alive. */
static void reclaim_former_self(struct hami_state_file *state, int fd, uint64_t pid) {
    for (size_t i = 0; i < HAMI_MAX_SLOTS; i++) {
        struct hami_slot *slot = &state->slots[i];
        uint64_t word = atomic_load_explicit(&slot->state, memory_order_acquire);
        if (hami_slot_kind(word) != HAMI_SLOT_STATE_LIVE || atomic_load_explicit(&slot->pid, memory_order_relaxed) != pid) {
            continue;
        }
        if (hami_slot_unlocked(fd, i) && hami_books_lock(state)) {
            hami_reclaim_slot(state, slot, word);
            hami_books_unlock(state);
        }
    }
}

/* The lock comes before the claim, so that whoever finds the slot CLAIMING and its byte free knows that its claimer is dead. */
static bool claim(struct hami_process *process, struct hami_state_file *state, int fd, size_t index, uint64_t pid, uint64_t start_ticks) {
    struct hami_slot *slot = &state->slots[index];
    uint64_t word = atomic_load_explicit(&slot->state, memory_order_acquire);
    if (hami_slot_kind(word) != HAMI_SLOT_STATE_FREE) {
        return false;
    }
    bool locked = fd >= 0 && hami_lock_byte(fd, HAMI_LOCK_SLOTS + (int64_t)index, 0);
    if (fd >= 0 && !locked && (errno == EACCES || errno == EAGAIN)) {
        return false; /* another process is about to claim it. (A file system without locks: PID and start time must do) */
    }
    hami_write_point(HAMI_POINT_CLAIM_LOCKED);
    uint64_t claiming = hami_slot_word(word + (UINT64_C(1) << 32), HAMI_SLOT_STATE_CLAIMING);
    if (!atomic_compare_exchange_strong(&slot->state, &word, claiming)) {
        if (locked) {
            hami_unlock_byte(fd, HAMI_LOCK_SLOTS + (int64_t)index);
        }
        return false;
    }
    hami_write_point(HAMI_POINT_CLAIM_CLAIMING);
    atomic_store_explicit(&slot->pid, pid, memory_order_relaxed);
    hami_write_point(HAMI_POINT_CLAIM_PID);
    atomic_store_explicit(&slot->start_ticks, start_ticks, memory_order_relaxed);
    hami_write_point(HAMI_POINT_CLAIM_START);
    atomic_store_explicit(&slot->joined_ns, hami_now_ns(), memory_order_relaxed);
    atomic_store_explicit(&slot->unknown_symbols, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->private_tables, 0, memory_order_relaxed);
    hami_write_point(HAMI_POINT_CLAIM_JOINED);
    uint64_t live = hami_slot_word(claiming, HAMI_SLOT_STATE_LIVE);
    if (!atomic_compare_exchange_strong(&slot->state, &claiming, live)) {
        return false;
    }
    hami_write_point(HAMI_POINT_CLAIM_LIVE);
    atomic_store(&process->pid, pid);
    atomic_store(&process->claim, live);
    atomic_store(&process->slot, slot);
    return true;
}

/* Another thread may have charged the new slot already; what it charged is in `truth` too. */
static void charge_difference(_Atomic uint64_t *mine, _Atomic uint64_t *used, uint64_t truth) {
    uint64_t there = atomic_load_explicit(mine, memory_order_relaxed);
    if (truth == there) {
        return;
    }
    atomic_store_explicit(mine, truth, memory_order_relaxed);
    hami_write_point(HAMI_POINT_AGAIN_SLOT);
    atomic_fetch_add_explicit(used, truth - there, memory_order_relaxed);
    hami_write_point(HAMI_POINT_AGAIN_USED);
}

/* A slot that was taken from a living process by mistake: what it holds is charged again, whatever the limit says, for it is held. */
static void charge_again(struct hami_process *process, struct hami_state_file *state) {
    struct hami_slot *slot = atomic_load(&process->slot);
    if (!hami_books_lock(state)) {
        return;
    }
    for (size_t i = 0; i < HAMI_MAX_DEVICES; i++) {
        struct hami_slot_device *mine = &slot->devices[i];
        charge_difference(&mine->held_bytes, &state->devices[i].used_bytes, atomic_load_explicit(&process->held[i], memory_order_relaxed));
        charge_difference(&mine->virtual_bytes, &state->devices[i].virtual_used_bytes, atomic_load_explicit(&process->virtual_held[i], memory_order_relaxed));
    }
    hami_books_unlock(state);
}

static bool claim_any(struct hami_process *process, struct hami_state_file *state, int fd, uint64_t pid, uint64_t start_ticks) {
    for (size_t i = 0; i < HAMI_MAX_SLOTS; i++) {
        if (claim(process, state, fd, i, pid, start_ticks)) {
            return true;
        }
    }
    return false;
}

static bool join(struct hami_process *process, struct hami_state_file *state) {
    int fd = hami_state_descriptor();
    uint64_t pid = own_pid();
    uint64_t start_ticks = 0;
    char letter;
    if (!hami_process_stat(0, &start_ticks, &letter)) {
        start_ticks = 0; /* not known: nobody will take it for another's */
    }
    reclaim_former_self(state, fd, pid);
    hami_reclaim_dead(state, NULL, LOOK_ON_JOIN);
    if (!claim_any(process, state, fd, pid, start_ticks)) {
        if (hami_reclaim_dead(state, NULL, HAMI_MAX_SLOTS) == 0 || !claim_any(process, state, fd, pid, start_ticks)) {
            hami_say_once("slots", "all %d places for processes of this container are taken by living ones: this process is refused every device", HAMI_MAX_SLOTS);
            return false;
        }
    }
    charge_again(process, state);
    return true;
}

struct hami_slot *hami_slot_join(struct hami_process *process) {
    struct hami_state_file *state = hami_state();
    if (state == NULL) {
        return NULL;
    }
    HAMI_KEEP_ERRNO;
    struct hami_slot *slot = NULL;
    hami_local_lock(&process->join_lock);
    bool joined = atomic_load(&process->joined) != 0;
    if (joined && !hami_slot_ours(process, atomic_load(&process->slot))) {
        hami_say_once("slot taken", "this process's place in the container's state file was taken from it; it takes another and counts what it holds again");
        hami_unlock_byte(hami_state_descriptor(), HAMI_LOCK_SLOTS + (atomic_load(&process->slot) - state->slots));
        joined = false;
    }
    if (!joined && hami_now_ns() >= atomic_load(&process->join_again_ns)) {
        joined = join(process, state);
        atomic_store(&process->join_again_ns, joined ? 0 : hami_now_ns() + HAMI_JOIN_AGAIN_NS);
    }
    if (joined) {
        slot = atomic_load(&process->slot);
    }
    atomic_store_explicit(&process->joined, joined ? 1 : 0, memory_order_release);
    hami_local_unlock(&process->join_lock);
    return slot;
}
