/* SPDX-License-Identifier: Apache-2.0 */
/*
 * internal.h: what the files of the core share among themselves and no front end sees.
 *
 * Words: a *life* is this process since it was born (a forked child is a new life and holds nothing); the *gate* is one
 * cached word that answers the usual questions about the policy; the *books* are the figures in state.bin that the robust
 * mutex guards.
 */
#ifndef HAMI_INTERNAL_H
#define HAMI_INTERNAL_H

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "hami_core.h"

#ifndef HAMI_DIRECTORY
#define HAMI_DIRECTORY "/run/hami" /* only the core's own tests override it, at compile time */
#endif

#define HAMI_HIDDEN __attribute__((visibility("hidden")))

/* The cheapest model; glibc keeps room for such variables, so that dlopen works too. A port without that room defines HAMI_TLS_MODEL. */
#ifndef HAMI_TLS_MODEL
#define HAMI_TLS_MODEL "initial-exec"
#endif
#define HAMI_TLS __thread __attribute__((tls_model(HAMI_TLS_MODEL)))

/* First line of every function that may make a system call and that a program calls: errno is as it was at every return. */
static inline void hami_restore_errno(const int *kept) {
    errno = *kept;
}
#define HAMI_KEEP_ERRNO __attribute__((cleanup(hami_restore_errno), unused)) const int hami_kept_errno = errno

static inline uint64_t hami_fnv1a(uint64_t hash, const void *bytes, size_t length) {
    const unsigned char *byte = bytes;
    for (size_t i = 0; i < length; i++) {
        hash = (hash ^ byte[i]) * UINT64_C(0x100000001b3);
    }
    return hash;
}
#define HAMI_FNV_START UINT64_C(0xcbf29ce484222325)

/* -- a life (process.c) ----------------------------------------------------------------------------------------- */

/*
 * Everything that a forked child must not inherit lies in one page that the kernel wipes in the child. A child therefore
 * begins with unlocked locks, no slot and no holds, however it was forked, without a handler and without a getpid per call.
 */
struct hami_process {
    _Atomic uint32_t born;          /* 0 a new life, 1 being prepared, 2 ready */
    _Atomic uint32_t number;        /* which life of this program image: parent's + 1 */
    _Atomic uint32_t policy_lock;   /* process-local locks: hami_local_lock */
    _Atomic uint32_t join_lock;
    _Atomic uint32_t measure_lock;
    _Atomic uint32_t joined;        /* the slot below is ours */
    _Atomic uint32_t measuring;
    _Atomic uint32_t spare;
    _Atomic(struct hami_slot *) slot;
    _Atomic uint64_t claim;         /* the slot's state word since we claimed it: whoever takes it away changes the word */
    _Atomic uint64_t join_again_ns; /* a refused join is tried again then, not on every call */
    _Atomic uint64_t pid;
    /* What this process holds by its own reckoning: written under the mutex, put back if the slot is taken from us by mistake. */
    _Atomic uint64_t held[HAMI_MAX_DEVICES];
    _Atomic uint64_t virtual_held[HAMI_MAX_DEVICES];
    /* Given back while the books could not be had: taken off as soon as they can. */
    _Atomic uint32_t owes;
    _Atomic uint64_t owed[HAMI_MAX_DEVICES];
    _Atomic uint64_t virtual_owed[HAMI_MAX_DEVICES];
};

HAMI_HIDDEN extern _Atomic(struct hami_process *) hami_process_page;
HAMI_HIDDEN struct hami_process *hami_process_born(void);

/* This life. Never NULL. A child forked since the last call is noticed here, and what was registered with hami_on_child is run first. */
static inline struct hami_process *hami_process(void) {
    struct hami_process *process = atomic_load_explicit(&hami_process_page, memory_order_acquire);
    if (HAMI_LIKELY(process != NULL && atomic_load_explicit(&process->born, memory_order_acquire) == 2)) {
        return process;
    }
    return hami_process_born();
}

/* A lock among the threads of this process, for words in struct hami_process (a child finds them open). Not recursive. */
HAMI_HIDDEN void hami_local_lock(_Atomic uint32_t *lock);
HAMI_HIDDEN void hami_local_unlock(_Atomic uint32_t *lock);

/* -- the policy and its gate (policy.c, policy_file.c) ----------------------------------------------------------- */

/* One policy as it was read. Valid for ever: readers hold pointers into it, so that replaced ones are left where they are. */
struct hami_policy {
    struct hami_policy_header header;
    struct hami_policy_device devices[HAMI_MAX_DEVICES];
};

#define HAMI_GATE_USABLE 1u    /* there is a policy */
#define HAMI_GATE_LIMITED 2u   /* launches must ask: a device has a compute limit, or is suspended, or there is no usable policy */
#define HAMI_GATE_ADVISORY 4u  /* count, never refuse */
#define HAMI_GATE_SUSPENDED 8u /* the container, or one of its devices, is suspended */

/* `word` is (control generation << 32 | HAMI_GATE_…); `generation` points at the control file's, or at a number that never matches. */
struct hami_gate {
    _Atomic(const _Atomic uint32_t *) generation;
    _Atomic uint64_t word;
};
HAMI_HIDDEN extern struct hami_gate hami_gate_cache;
HAMI_HIDDEN extern _Atomic(const struct hami_policy *) hami_policy_now;
HAMI_HIDDEN uint32_t hami_gate_refresh(void);

/* HAMI_GATE_… as of the newest generation: three loads and a branch; reads the policy on the first call and after each change. */
static inline uint32_t hami_gate(void) {
    const _Atomic uint32_t *generation = atomic_load_explicit(&hami_gate_cache.generation, memory_order_acquire);
    uint64_t word = atomic_load_explicit(&hami_gate_cache.word, memory_order_acquire);
    if (HAMI_UNLIKELY((uint32_t)(word >> 32) != atomic_load_explicit(generation, memory_order_relaxed))) {
        return hami_gate_refresh();
    }
    return (uint32_t)word;
}

/* The policy in effect, or NULL: refuse. */
static inline const struct hami_policy *hami_policy(void) {
    return (hami_gate() & HAMI_GATE_USABLE) != 0 ? atomic_load_explicit(&hami_policy_now, memory_order_acquire) : NULL;
}

/* The agent's word, mapped read-only; NULL without a usable policy. */
HAMI_HIDDEN const struct hami_control_file *hami_control(void);
/* "/run/hami", or the development folder; NULL when there is neither. Meaningful once hami_gate() has been asked. */
HAMI_HIDDEN const char *hami_directory(void);

/* Reads and checks `<directory>/policy/policy.bin`. NULL, with the reason in `why`, when it is not to be used. */
HAMI_HIDDEN const struct hami_policy *hami_policy_read(const char *directory, char *why, size_t length);
/* Only for one that nobody has seen yet. NULL is harmless. */
HAMI_HIDDEN void hami_policy_forget(const struct hami_policy *policy);
/* Maps and checks `<directory>/policy/control.bin`, as above. */
HAMI_HIDDEN const struct hami_control_file *hami_control_map(const char *directory, char *why, size_t length);
/* A short reason for an errno; no locale, no allocation. */
HAMI_HIDDEN const char *hami_reason(int error);

/* -- the state file (state.c), slots (slots.c), the dead (liveness.c, reclaim.c) --------------------------------- */

/* The mapped state file without joining it: for reading, and for the words that need no slot. NULL: there is none to be had. */
HAMI_HIDDEN struct hami_state_file *hami_state(void);

/* This process's slot, claimed on first use. NULL: refuse. */
HAMI_HIDDEN struct hami_slot *hami_slot_join(struct hami_process *process);
static inline struct hami_slot *hami_slot(void) {
    struct hami_process *process = hami_process();
    if (HAMI_LIKELY(atomic_load_explicit(&process->joined, memory_order_acquire) != 0)) {
        return atomic_load_explicit(&process->slot, memory_order_relaxed);
    }
    return hami_slot_join(process);
}
/* The slot if there is one already; NULL otherwise. For counters that are not worth joining for. */
static inline struct hami_slot *hami_slot_if_joined(void) {
    struct hami_process *process = hami_process();
    return atomic_load_explicit(&process->joined, memory_order_acquire) != 0 ? atomic_load_explicit(&process->slot, memory_order_relaxed) : NULL;
}

static inline uint32_t hami_slot_kind(uint64_t word) {
    return (uint32_t)word;
}
static inline uint64_t hami_slot_word(uint64_t word, enum hami_slot_state kind) {
    return (word & UINT64_C(0xFFFFFFFF00000000)) | (uint32_t)kind;
}

/* A join that was refused is tried again so much later: not on every call, and not never. */
#define HAMI_JOIN_AGAIN_NS UINT64_C(1000000000)

/* Takes the liveness lock of this process's slot (again), if it has a slot. */
HAMI_HIDDEN void hami_slot_hold(int fd);

/* Whether the slot still is as we claimed it. One load. */
static inline bool hami_slot_ours(const struct hami_process *process, const struct hami_slot *slot) {
    return atomic_load_explicit(&slot->state, memory_order_acquire) == atomic_load_explicit(&process->claim, memory_order_relaxed);
}

/* Bytes of state.bin that are locked; far behind its data. The agent probes the same ones. */
#define HAMI_LOCK_INITIALISE 0
#define HAMI_LOCK_MEASURE 1
#define HAMI_LOCK_SLOTS (INT64_C(1) << 40)

/* A descriptor of the state file that is certainly still ours, or -1. Self-healing: an application may close every descriptor. */
HAMI_HIDDEN int hami_state_descriptor(void);
HAMI_HIDDEN bool hami_lock_byte(int fd, int64_t byte, unsigned patience_ms);
HAMI_HIDDEN void hami_unlock_byte(int fd, int64_t byte);

/* Whether the process of `slot` is certainly dead. System calls: never under the mutex. */
HAMI_HIDDEN bool hami_slot_dead(int fd, const struct hami_state_file *state, size_t index, uint64_t word);
/* Whether the slot's byte is certainly free (held by no process but perhaps this one). */
HAMI_HIDDEN bool hami_slot_unlocked(int fd, size_t index);
/* Field 22 of /proc/<pid>/stat and the state letter; false: not readable. pid 0 is this process. */
HAMI_HIDDEN bool hami_process_stat(uint64_t pid, uint64_t *start_ticks, char *letter);

/* Looks at up to `most` other slots, takes back what the dead among them held, and answers how many were dead. */
HAMI_HIDDEN size_t hami_reclaim_dead(struct hami_state_file *state, const struct hami_slot *own, size_t most);
/* Takes one slot back, if its state word is still `word`. Under the mutex only. */
HAMI_HIDDEN bool hami_reclaim_slot(struct hami_state_file *state, struct hami_slot *slot, uint64_t word);
/* Makes used_bytes the sum of the slots again. Under the mutex only. */
HAMI_HIDDEN void hami_recount(struct hami_state_file *state);

/* The books' mutex. False: it cannot be had (scribbled over, or held for 10 s): refuse. No system call in the normal path. */
HAMI_HIDDEN bool hami_books_lock(struct hami_state_file *state);
HAMI_HIDDEN void hami_books_unlock(struct hami_state_file *state);
HAMI_HIDDEN int hami_books_initialise(struct hami_state_file *state);
HAMI_HIDDEN bool hami_books_sound(const struct hami_state_file *state);

/* -- time (clock.c) ---------------------------------------------------------------------------------------------- */

/* Sleeps until CLOCK_MONOTONIC shows `until_ns`, or a signal comes. */
HAMI_HIDDEN void hami_sleep_until(uint64_t until_ns);

/* -- write points ------------------------------------------------------------------------------------------------ */

/* Between any two writes of shared state. Tests kill a process at each of them; a new write wants a new point at the end of its group. */
#define HAMI_WRITE_POINTS(POINT) \
    POINT(INITIALISE_LOCKED) POINT(INITIALISE_ALLOCATED) POINT(INITIALISE_MUTEX) POINT(INITIALISE_HEADER) POINT(INITIALISE_READY) \
    POINT(CLAIM_LOCKED) POINT(CLAIM_CLAIMING) POINT(CLAIM_PID) POINT(CLAIM_START) POINT(CLAIM_JOINED) POINT(CLAIM_LIVE) POINT(AGAIN_SLOT) POINT(AGAIN_USED) \
    POINT(RESERVE_LOCKED) POINT(RESERVE_SLOT) POINT(RESERVE_USED) POINT(RESERVE_HIGH_WATER) POINT(RESERVE_UNLOCKED) \
    POINT(REFUSE_COUNTED) \
    POINT(LOWER_LOCKED) POINT(LOWER_SLOT) POINT(LOWER_USED) POINT(LOWER_UNLOCKED) \
    POINT(RECLAIM_PROBED) POINT(RECLAIM_LOCKED) POINT(RECLAIM_MARKED) POINT(RECLAIM_USED) POINT(RECLAIM_SLOT) POINT(RECLAIM_FREE) POINT(RECLAIM_UNLOCKED) \
    POINT(RECOUNT_BEGUN) POINT(RECOUNT_FINISHED_RECLAIM) POINT(RECOUNT_USED) POINT(RECOUNT_EPOCH) POINT(RECOUNT_CONSISTENT) \
    POINT(EXPORT_TAKEN) POINT(EXPORT_BYTES) POINT(EXPORT_HASH) POINT(MEASURE_LOCKED) POINT(MEASURE_WRITTEN)

#define HAMI_POINT_NAME(name) HAMI_POINT_##name,
enum hami_point { HAMI_POINT_NONE = 0, HAMI_WRITE_POINTS(HAMI_POINT_NAME) HAMI_POINTS_END };
#undef HAMI_POINT_NAME

#endif
