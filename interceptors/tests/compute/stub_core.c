/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stub_core.c: the rest of the core as tests of books, compute and symbols want it: a policy, a control file and a state in
 * plain (shared, so that forked processes have it in common) memory, a memory ledger of two words, and a clock that only
 * moves when it is told to.
 */
#include <string.h>
#include <sys/mman.h>

#include "internal.h"

#define HAMI_STUB HAMI_EXPORT

struct shared {
    struct hami_control_file control;
    struct hami_state_file state;
    _Atomic uint64_t held;
    _Atomic uint64_t high_water;
};
static struct shared *shared;
static struct hami_policy policy;
static uint64_t memory_limit = UINT64_MAX;
static _Atomic uint64_t clock_ns;
static _Atomic uint64_t slept_ns;
static _Atomic uint64_t sleeps;
static void (*at_sleep)(void);
static const _Atomic uint32_t never = 1;

struct hami_gate hami_gate_cache = {.generation = &never, .word = 0};
_Atomic(const struct hami_policy *) hami_policy_now;

uint32_t hami_gate_refresh(void) {
    uint32_t flags = HAMI_GATE_USABLE;
    if (shared == NULL || policy.header.device_count == 0) {
        return HAMI_GATE_LIMITED;
    }
    uint32_t generation = atomic_load(&shared->control.generation);
    uint32_t suspended = atomic_load(&shared->control.flags);
    for (uint32_t i = 0; i < policy.header.device_count; i++) {
        flags |= policy.devices[i].core_milli != 0 ? HAMI_GATE_LIMITED : 0;
        suspended |= atomic_load(&shared->control.devices[i].flags);
    }
    flags |= suspended != 0 ? HAMI_GATE_SUSPENDED | HAMI_GATE_LIMITED : 0;
    flags |= (policy.header.flags & HAMI_POLICY_FLAG_ADVISORY) != 0 ? HAMI_GATE_ADVISORY : 0;
    atomic_store(&hami_policy_now, &policy);
    atomic_store(&hami_gate_cache.word, (uint64_t)generation << 32 | flags);
    atomic_store(&hami_gate_cache.generation, &shared->control.generation);
    return flags;
}

const struct hami_control_file *hami_control(void) {
    return shared == NULL ? NULL : &shared->control;
}

struct hami_state_file *hami_state(void) {
    return shared == NULL ? NULL : &shared->state;
}

struct hami_slot *hami_slot_join(struct hami_process *process) {
    if (shared == NULL) {
        return NULL;
    }
    struct hami_slot *slot = &shared->state.slots[atomic_load(&process->number)];
    atomic_store(&process->slot, slot);
    atomic_store(&process->joined, 1);
    return slot;
}

/* -- memory -------------------------------------------------------------------------------------------------------- */

static void take(uint64_t bytes) {
    uint64_t held = atomic_fetch_add(&shared->held, bytes) + bytes;
    uint64_t high = atomic_load(&shared->high_water);
    while (held > high && !atomic_compare_exchange_weak(&shared->high_water, &high, held)) {
    }
}

enum hami_verdict hami_reserve(int device, uint64_t bytes, struct hami_hold *hold) {
    *hold = (struct hami_hold){.device = HAMI_NO_DEVICE};
    if (device < 0) {
        return HAMI_REFUSED;
    }
    if (bytes > memory_limit || atomic_load(&shared->held) > memory_limit - bytes) {
        return HAMI_OVER_LIMIT;
    }
    take(bytes);
    *hold = (struct hami_hold){.device = device, .bytes = bytes};
    return HAMI_OK;
}

enum hami_verdict hami_settle(struct hami_hold *hold, uint64_t actual) {
    if (actual > hold->bytes) {
        if (atomic_load(&shared->held) + (actual - hold->bytes) > memory_limit) {
            return HAMI_OVER_LIMIT;
        }
        take(actual - hold->bytes);
    } else {
        atomic_fetch_sub(&shared->held, hold->bytes - actual);
    }
    hold->bytes = actual;
    return HAMI_OK;
}

void hami_give_back(struct hami_hold *hold) {
    atomic_fetch_sub(&shared->held, hold->bytes);
    *hold = (struct hami_hold){.device = HAMI_NO_DEVICE};
}

/* -- the strings a test pulls --------------------------------------------------------------------------------------- */

static void refreshed(void) {
    atomic_fetch_add(&shared->control.generation, 1);
}

HAMI_STUB void stub_begin(uint32_t devices, uint32_t milli, uint32_t burst_us) {
    if (shared == NULL) {
        shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    }
    uint32_t generation = atomic_load(&shared->control.generation);
    memset((void *)shared, 0, sizeof *shared);
    memset(&policy, 0, sizeof policy);
    atomic_store(&shared->control.generation, generation + 1);
    policy.header.device_count = devices;
    for (uint32_t i = 0; i < devices; i++) {
        policy.devices[i].core_milli = milli;
        policy.devices[i].burst_us = burst_us;
    }
    memory_limit = UINT64_MAX;
}
HAMI_STUB void stub_advisory(void) { policy.header.flags = HAMI_POLICY_FLAG_ADVISORY; refreshed(); }
HAMI_STUB void stub_policy_milli(uint32_t milli) { policy.devices[0].core_milli = milli; refreshed(); }
HAMI_STUB void stub_control(uint32_t milli, uint32_t gain, uint64_t heartbeat) {
    atomic_store(&shared->control.devices[0].effective_milli, milli);
    atomic_store(&shared->control.devices[0].gain, gain);
    atomic_store(&shared->control.heartbeat_ns, heartbeat);
    refreshed();
}
HAMI_STUB void stub_suspend(uint32_t flag) { atomic_store(&shared->control.flags, flag); refreshed(); }
HAMI_STUB _Atomic uint32_t *stub_generation(void) { return &shared->control.generation; }
HAMI_STUB void stub_memory_limit(uint64_t limit) { memory_limit = limit; }
HAMI_STUB uint64_t stub_held(void) { return atomic_load(&shared->held); }
HAMI_STUB uint64_t stub_high_water(void) { return atomic_load(&shared->high_water); }
HAMI_STUB uint64_t stub_tat(void) { return atomic_load(&shared->state.devices[0].tat_ns); }
HAMI_STUB void stub_set_tat(uint64_t tat) { atomic_store(&shared->state.devices[0].tat_ns, tat); }
HAMI_STUB uint64_t stub_launches(void) { return atomic_load(&shared->state.devices[0].launches); }
HAMI_STUB uint64_t stub_waited(void) { return atomic_load(&shared->state.devices[0].waited_ns); }
HAMI_STUB uint64_t stub_unknown(void) {
    struct hami_slot *slot = hami_slot();
    return atomic_load(&slot->unknown_symbols);
}
HAMI_STUB uint64_t stub_busy(void) {
    uint64_t total = 0;
    for (size_t i = 0; i < HAMI_MAX_SLOTS; i++) {
        total += atomic_load(&shared->state.slots[i].devices[0].busy_ns);
    }
    return total;
}

static uint64_t tell(void) { return atomic_load(&clock_ns); }
static void sleep_fake(uint64_t until) {
    uint64_t now = atomic_load(&clock_ns);
    if (until > now) {
        atomic_fetch_add(&slept_ns, until - now);
        atomic_store(&clock_ns, until);
    }
    atomic_fetch_add(&sleeps, 1);
    if (at_sleep != NULL) {
        at_sleep();
    }
}
HAMI_STUB void stub_fake_clock(uint64_t start) {
    atomic_store(&clock_ns, start);
    atomic_store(&slept_ns, 0);
    atomic_store(&sleeps, 0);
    hami_test_clock = tell;
    hami_test_sleep = sleep_fake;
    at_sleep = NULL;
}
HAMI_STUB void stub_at_sleep(void (*call)(void)) { at_sleep = call; }
HAMI_STUB uint64_t stub_now(void) { return atomic_load(&clock_ns); }
HAMI_STUB void stub_advance(uint64_t ns) { atomic_fetch_add(&clock_ns, ns); }
HAMI_STUB uint64_t stub_slept(void) { return atomic_load(&slept_ns); }
HAMI_STUB uint64_t stub_sleeps(void) { return atomic_load(&sleeps); }

/* What the core exports to nobody: front ends' calls, for ctypes. */
#define GIVE(name) HAMI_STUB void *call_##name(void) { return (void *)name; }
GIVE(hami_book_keep) GIVE(hami_book_take) GIVE(hami_book_return) GIVE(hami_book_find) GIVE(hami_book_refer) GIVE(hami_book_sweep)
GIVE(hami_linear_reserve) GIVE(hami_linear_keep) GIVE(hami_linear_take) GIVE(hami_linear_freed) GIVE(hami_linear_return) GIVE(hami_linear_sweep)
GIVE(hami_reserve) GIVE(hami_give_back)
GIVE(hami_launch_begin) GIVE(hami_launch_failed) GIVE(hami_launch_observed) GIVE(hami_compute_limited)
GIVE(hami_sample_before) GIVE(hami_sample_after) GIVE(hami_sample_forget)
