/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory.c: who holds how much. A hold is taken under the books' mutex before the driver is asked, so that the container
 * never holds more than its limit, not even for an instant; afterwards it is lowered to what the driver took, or given back.
 *
 * The slots are the truth and a device's used_bytes their sum; both change under the mutex, the slot first. Each process
 * also knows by itself what it holds (struct hami_process), in case its slot is taken from it.
 */
#include "internal.h"

#define HOLD_VIRTUAL 1u  /* of virtual_bytes */
#define HOLD_LIFE_SHIFT 8 /* above: the number of the life that took it; a forked child's give-back of its parent's hold is nothing */

struct books {
    struct hami_process *process;
    struct hami_state_file *state;
    struct hami_slot *slot;
};

/* The figures that one kind of hold changes. */
struct figures {
    _Atomic uint64_t *held;
    _Atomic uint64_t *used;
    _Atomic uint64_t *own;
};

static inline uint64_t get(const _Atomic uint64_t *figure) {
    return atomic_load_explicit(figure, memory_order_relaxed);
}

static inline void set(_Atomic uint64_t *figure, uint64_t value) {
    atomic_store_explicit(figure, value, memory_order_relaxed);
}

static uint32_t life_of(const struct hami_process *process) {
    return atomic_load_explicit(&process->number, memory_order_relaxed) << HOLD_LIFE_SHIFT;
}

/* The locked books of this process; false: it has no slot and can have none. */
static bool open_books(struct books *books) {
    books->process = hami_process();
    for (int tries = 0; tries < 3; tries++) {
        books->slot = hami_slot();
        books->state = books->slot != NULL ? hami_state() : NULL;
        if (books->state == NULL || !hami_books_lock(books->state)) {
            return false;
        }
        if (HAMI_LIKELY(hami_slot_ours(books->process, books->slot))) {
            return true;
        }
        hami_books_unlock(books->state);
        if (hami_slot_join(books->process) == NULL) { /* somebody took the slot away: another one, with all that we hold */
            return false;
        }
    }
    return false;
}

static struct figures figures_of(const struct books *books, int device, uint32_t flags) {
    struct hami_slot_device *mine = &books->slot->devices[device];
    struct hami_state_device *all = &books->state->devices[device];
    if ((flags & HOLD_VIRTUAL) != 0) {
        return (struct figures){&mine->virtual_bytes, &all->virtual_used_bytes, &books->process->virtual_held[device]};
    }
    return (struct figures){&mine->held_bytes, &all->used_bytes, &books->process->held[device]};
}

static void charge(const struct books *books, int device, uint32_t flags, uint64_t bytes) {
    struct figures figures = figures_of(books, device, flags);
    hami_write_point(HAMI_POINT_RESERVE_LOCKED);
    set(figures.held, get(figures.held) + bytes);
    hami_write_point(HAMI_POINT_RESERVE_SLOT);
    uint64_t used = get(figures.used) + bytes;
    set(figures.used, used);
    hami_write_point(HAMI_POINT_RESERVE_USED);
    set(figures.own, get(figures.own) + bytes);
    _Atomic uint64_t *high_water = &books->state->devices[device].high_water_bytes;
    if ((flags & HOLD_VIRTUAL) == 0 && used > get(high_water)) {
        set(high_water, used);
        hami_write_point(HAMI_POINT_RESERVE_HIGH_WATER);
    }
}

/* False: there was less than `bytes` on a figure, which then is 0; more cannot be given back than was taken. */
static bool subtract(_Atomic uint64_t *figure, uint64_t bytes) {
    uint64_t now = get(figure);
    set(figure, now >= bytes ? now - bytes : 0);
    return now >= bytes;
}

/* Under the mutex. */
static bool discharge(const struct books *books, int device, uint32_t flags, uint64_t bytes) {
    struct figures figures = figures_of(books, device, flags);
    hami_write_point(HAMI_POINT_LOWER_LOCKED);
    bool sound = subtract(figures.held, bytes);
    hami_write_point(HAMI_POINT_LOWER_SLOT);
    sound &= subtract(figures.used, bytes);
    hami_write_point(HAMI_POINT_LOWER_USED);
    sound &= subtract(figures.own, bytes);
    return sound;
}

/* What was given back while the mutex could not be had: its owner was stopped. */
static void pay(const struct books *books) {
    struct hami_process *process = books->process;
    if (HAMI_LIKELY(atomic_load_explicit(&process->owes, memory_order_acquire) == 0)) {
        return;
    }
    atomic_store(&process->owes, 0);
    for (int device = 0; device < HAMI_MAX_DEVICES; device++) {
        uint64_t owed = atomic_exchange(&process->owed[device], 0);
        uint64_t managed = atomic_exchange(&process->virtual_owed[device], 0);
        if (owed != 0) {
            discharge(books, device, 0, owed);
        }
        if (managed != 0) {
            discharge(books, device, HOLD_VIRTUAL, managed);
        }
    }
}

static void owe(int device, uint32_t flags, uint64_t bytes) {
    struct hami_process *process = hami_process();
    atomic_fetch_add((flags & HOLD_VIRTUAL) != 0 ? &process->virtual_owed[device] : &process->owed[device], bytes);
    atomic_store_explicit(&process->owes, 1, memory_order_release);
}

static void lower(int device, uint32_t flags, uint64_t bytes) {
    struct books books;
    if (bytes == 0) {
        return;
    }
    if (!open_books(&books)) {
        owe(device, flags, bytes);
        return;
    }
    pay(&books);
    bool sound = discharge(&books, device, flags, bytes);
    hami_books_unlock(books.state);
    hami_write_point(HAMI_POINT_LOWER_UNLOCKED);
    if (HAMI_UNLIKELY(!sound)) {
        hami_say_once("books too low", "less was on the books than is given back: a process of the container wrote over its state file; the figures stop at 0");
    }
}

/* What is wanted of a device, at least and at most, and under which limit. */
struct wish {
    int device;
    uint32_t flags;
    uint64_t least;
    uint64_t most;
    uint64_t limit;
    bool advisory;
};

static uint64_t room_under(uint64_t limit, uint64_t used) {
    return limit > used ? limit - used : 0;
}

/* HAMI_OK: `taken` bytes were charged. */
static enum hami_verdict try_once(const struct wish *wish, uint64_t *taken, bool *over) {
    struct books books;
    if (!open_books(&books)) {
        return HAMI_REFUSED;
    }
    pay(&books);
    uint64_t used = get(figures_of(&books, wish->device, wish->flags).used);
    uint64_t room = room_under(wish->limit, used);
    *over = room < wish->least;
    if (*over && wish->advisory) {
        room = UINT64_MAX - used;
    }
    *taken = room < wish->most ? room : wish->most;
    enum hami_verdict verdict = *taken < wish->least ? HAMI_OVER_LIMIT : HAMI_OK;
    if (verdict == HAMI_OK) {
        charge(&books, wish->device, wish->flags, *taken);
    }
    hami_books_unlock(books.state);
    hami_write_point(HAMI_POINT_RESERVE_UNLOCKED);
    return verdict;
}

static void count_refusal(int device) {
    struct hami_state_file *state = hami_state();
    if (state != NULL) {
        atomic_fetch_add_explicit(&state->devices[device].refusals, 1, memory_order_relaxed);
        hami_write_point(HAMI_POINT_REFUSE_COUNTED);
    }
}

static enum hami_verdict take(const struct wish *wish, uint64_t *taken) {
    bool over = false;
    enum hami_verdict verdict = try_once(wish, taken, &over);
    if (HAMI_LIKELY(verdict == HAMI_OK && !over)) {
        return HAMI_OK;
    }
    if (verdict == HAMI_OVER_LIMIT) {
        hami_reclaim_dead(hami_state(), hami_slot_if_joined(), HAMI_MAX_SLOTS);
        verdict = try_once(wish, taken, &over);
    }
    if (verdict == HAMI_OVER_LIMIT || over) {
        count_refusal(wish->device); /* with an advisory policy: what would have been refused */
    }
    if (over && wish->advisory) {
        hami_say_once("advisory", "device %d: more is held than the policy allows; the policy only advises, nothing is refused", wish->device);
    }
    return verdict;
}

static enum hami_verdict reserve(int device, uint32_t flags, uint64_t least, uint64_t most, struct hami_hold *hold) {
    *hold = (struct hami_hold){.device = HAMI_NO_DEVICE, .bytes = 0, .flags = 0};
    uint32_t gate = hami_gate();
    bool advisory = (gate & HAMI_GATE_ADVISORY) != 0;
    const struct hami_policy_device *policy = hami_device_policy(device);
    if (HAMI_UNLIKELY(policy == NULL)) {
        if ((gate & HAMI_GATE_USABLE) != 0 && !advisory) {
            hami_say_once("no record", "a device that this container was not granted is refused");
        }
        return advisory ? HAMI_OK : HAMI_REFUSED; /* to advise is never to refuse: then it is not counted either */
    }
    if ((policy->flags & HAMI_DEVICE_FLAG_OVERSUBSCRIBE) == 0) {
        flags &= ~HOLD_VIRTUAL; /* managed memory of a device that is not oversubscribed is memory like any other */
    }
    const struct wish wish = {
        .device = device, .flags = flags, .least = least, .most = most, .advisory = advisory,
        .limit = (flags & HOLD_VIRTUAL) != 0 ? policy->virtual_bytes : policy->memory_bytes,
    };
    uint64_t taken = 0;
    enum hami_verdict verdict = take(&wish, &taken);
    if (verdict == HAMI_OK) {
        *hold = (struct hami_hold){.device = device, .bytes = taken, .flags = flags | life_of(hami_process())};
    } else if (verdict == HAMI_REFUSED && advisory) {
        verdict = HAMI_OK;
    }
    return verdict;
}

enum hami_verdict hami_reserve(int device, uint64_t bytes, struct hami_hold *hold) {
    return reserve(device, 0, bytes, bytes, hold);
}

enum hami_verdict hami_reserve_rest(int device, uint64_t least, uint64_t most, struct hami_hold *hold) {
    return reserve(device, 0, least, most, hold);
}

enum hami_verdict hami_reserve_virtual(int device, uint64_t bytes, struct hami_hold *hold) {
    return reserve(device, HOLD_VIRTUAL, bytes, bytes, hold);
}

static bool taken_by(const struct hami_hold *hold, const struct hami_process *process) {
    return hold->device >= 0 && hold->device < HAMI_MAX_DEVICES && (hold->flags >> HOLD_LIFE_SHIFT) == (life_of(process) >> HOLD_LIFE_SHIFT);
}

enum hami_verdict hami_settle(struct hami_hold *hold, uint64_t actual) {
    if (actual == hold->bytes || !taken_by(hold, hami_process())) {
        return HAMI_OK;
    }
    if (actual < hold->bytes) {
        lower(hold->device, hold->flags, hold->bytes - actual);
        hold->bytes = actual;
        return HAMI_OK;
    }
    struct hami_hold more;
    uint64_t difference = actual - hold->bytes;
    enum hami_verdict verdict = reserve(hold->device, hold->flags & HOLD_VIRTUAL, difference, difference, &more);
    if (verdict == HAMI_OK && more.flags != hold->flags && more.device >= 0) {
        hami_give_back(&more); /* a new policy has changed which books managed memory is in: one hold cannot be in both */
        return HAMI_OVER_LIMIT;
    }
    if (verdict == HAMI_OK && more.device >= 0) {
        hold->bytes = actual;
    }
    return verdict;
}

void hami_give_back(struct hami_hold *hold) {
    if (hold->bytes != 0 && taken_by(hold, hami_process())) {
        lower(hold->device, hold->flags, hold->bytes);
    }
    *hold = (struct hami_hold){.device = HAMI_NO_DEVICE, .bytes = 0, .flags = 0};
}

struct hami_memory_view hami_memory_view(int device) {
    struct hami_memory_view view = {0, 0, 0, false};
    const struct hami_policy_device *policy = hami_device_policy(device);
    if (policy == NULL) {
        return view;
    }
    view.limited = policy->memory_bytes != HAMI_NO_LIMIT;
    view.total = policy->capacity_bytes;
    if (view.limited && (view.total == 0 || policy->memory_bytes < view.total)) {
        view.total = policy->memory_bytes;
    }
    const struct hami_state_file *state = hami_state();
    view.used = state != NULL ? get(&state->devices[device].used_bytes) : 0;
    view.free = room_under(view.total, view.used);
    return view;
}
