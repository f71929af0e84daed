/* SPDX-License-Identifier: Apache-2.0 */
/*
 * compute.c: leave to launch. Each device has one 64-bit word in the container's state, the time at which all device time
 * that has been charged so far will have been earned (GCRA's theoretical arrival time). A launch adds its expected cost,
 * stretched by the container's share, with one compare-and-swap, and waits while the word is more than the burst ahead of
 * the clock. Nothing refills, nothing ticks, and a process that dies at any instant leaves the word right.
 *
 * The launch is charged before it waits, so that a long kernel is paid back by whoever comes next, in whatever process.
 *
 * The word can be written by the tenant. One that lies further ahead than the horizon was not written by this code, and is
 * begun anew: scribbling must not hang a program for ever. (That it can also be set back is why the agent compares with the
 * driver's own figures.) This code itself does not charge beyond the horizon: whoever would must wait first, and a single
 * launch that is longer than the horizon at its share is charged the horizon.
 */
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "compute.h"

#define NS_PER_SECOND UINT64_C(1000000000)
#define SLICE_NS (NS_PER_SECOND / 2)        /* a waiter looks around at least that often, should a wake-up be lost */
#define HEARTBEAT_NS (10 * NS_PER_SECOND)   /* an agent that has been silent for longer has no say in shares */
#define LEAST_WAIT_NS (NS_PER_SECOND / 1000) /* many tiny launches wait once for several: what is slept too long is within the burst, and made up for */
#define BURST_NS (NS_PER_SECOND / 20)
#define BURST_MOST_NS (10 * NS_PER_SECOND)
#define SLACK_NS NS_PER_SECOND              /* between one thread's look at the clock and another's */
#define COST_MOST_NS (UINT64_C(1) << 40)    /* 18 minutes: beyond it every share's increment is the horizon */
#define LAUNCHES_AT_ONCE 64
#define BUSY_AT_ONCE_NS INT64_C(1000000)

struct share {
    uint32_t milli; /* HAMI_CORE_UNLIMITED: no limit now */
    uint32_t gain;
    uint64_t burst;
};

/* What a launch needs to know, looked up once. */
struct court {
    const struct hami_policy_device *policy;
    const struct hami_control_file *control;
    struct hami_state_device *state;
    struct hami_slot *slot;
    int device;
    uint32_t gate; /* as it was then */
    bool advisory;
};

/* Counted by each thread for itself and written down in batches: the shared lines are then written once in 64 launches. */
struct tally {
    int64_t launches;
    int64_t busy_ns;
};
static HAMI_TLS struct tally tallies[HAMI_MAX_DEVICES];

static _Atomic uint32_t last_milli[HAMI_MAX_DEVICES]; /* the share that this process last saw */
static _Atomic bool forks_watched;

static void forget_in_child(void) {
    for (size_t device = 0; device < HAMI_MAX_DEVICES; device++) {
        tallies[device] = (struct tally){0, 0};
    }
}

bool hami_compute_limited(void) {
    return (hami_gate() & HAMI_GATE_LIMITED) != 0;
}

uint64_t hami_compute_increment(uint64_t ns, uint32_t gain, uint32_t milli) {
    uint64_t cost = (ns < COST_MOST_NS ? ns : COST_MOST_NS) * gain >> 16;
    uint64_t increment = cost * HAMI_MILLI_PERCENT / milli; /* at most 2^41 * 10^5, below 2^58 */
    return increment < HAMI_HORIZON_NS ? increment : HAMI_HORIZON_NS;
}

static uint32_t held_gain(uint32_t gain) {
    if (gain == 0) {
        return HAMI_GAIN_ONE;
    }
    return gain < HAMI_GAIN_ONE / 2 ? HAMI_GAIN_ONE / 2 : gain > HAMI_GAIN_ONE * 2 ? HAMI_GAIN_ONE * 2 : gain;
}

static bool agent_alive(const struct hami_control_file *control, uint64_t now) {
    uint64_t heartbeat = atomic_load_explicit(&control->heartbeat_ns, memory_order_relaxed);
    return heartbeat != 0 && (heartbeat >= now || now - heartbeat <= HEARTBEAT_NS);
}

static struct share share_now(const struct court *court, uint64_t now) {
    uint64_t burst = court->policy->burst_us == 0 ? BURST_NS : (uint64_t)court->policy->burst_us * 1000;
    struct share share = {.milli = court->policy->core_milli, .gain = HAMI_GAIN_ONE, .burst = burst < BURST_MOST_NS ? burst : BURST_MOST_NS};
    if (court->control != NULL && agent_alive(court->control, now)) {
        const struct hami_control_device *word = &court->control->devices[court->device];
        uint32_t effective = atomic_load_explicit(&word->effective_milli, memory_order_relaxed);
        share.milli = effective != 0 ? effective : share.milli;
        share.gain = held_gain(atomic_load_explicit(&word->gain, memory_order_relaxed));
    }
    if (share.milli >= HAMI_MILLI_PERCENT) {
        share.milli = HAMI_CORE_UNLIMITED; /* all of it: nothing to hold back, however wrong the cost may be */
    }
    return share;
}

/* False: there is no policy, no record, no state or no slot. */
static bool summon(int device, struct court *court) {
    uint32_t gate = court->gate = hami_gate();
    court->advisory = (gate & HAMI_GATE_ADVISORY) != 0;
    const struct hami_policy *policy = (gate & HAMI_GATE_USABLE) != 0 ? atomic_load_explicit(&hami_policy_now, memory_order_acquire) : NULL;
    if (policy == NULL || device < 0 || (uint32_t)device >= policy->header.device_count) {
        return false;
    }
    court->device = device;
    court->policy = &policy->devices[device];
    court->control = hami_control();
    court->slot = hami_slot();
    struct hami_state_file *state = hami_state();
    if (state == NULL || court->slot == NULL) {
        return false;
    }
    court->state = &state->devices[device];
    return true;
}

/* -- counting ----------------------------------------------------------------------------------------------------- */

static void write_down(const struct court *court, struct tally *tally) {
    if (tally->launches > 0) {
        atomic_fetch_add_explicit(&court->state->launches, (uint64_t)tally->launches, memory_order_relaxed);
        tally->launches = 0;
    }
    if (tally->busy_ns > 0) { /* a correction downwards is carried until launches outweigh it: the figure never falls */
        atomic_fetch_add_explicit(&court->slot->devices[court->device].busy_ns, (uint64_t)tally->busy_ns, memory_order_relaxed);
        tally->busy_ns = 0;
    }
}

static void count(const struct court *court, int64_t launches, int64_t busy_ns) {
    struct tally *tally = &tallies[court->device];
    tally->launches += launches;
    tally->busy_ns += busy_ns;
    if (HAMI_UNLIKELY(tally->launches >= LAUNCHES_AT_ONCE || tally->busy_ns >= BUSY_AT_ONCE_NS)) {
        write_down(court, tally);
    }
}

static int64_t bounded(uint64_t ns) {
    return (int64_t)(ns < COST_MOST_NS ? ns : COST_MOST_NS);
}

/* -- waiting ------------------------------------------------------------------------------------------------------ */

static bool suspended(const struct court *court) {
    if (HAMI_LIKELY((court->gate & HAMI_GATE_SUSPENDED) == 0) || court->control == NULL) {
        return false;
    }
    return ((atomic_load_explicit(&court->control->flags, memory_order_acquire) |
             atomic_load_explicit(&court->control->devices[court->device].flags, memory_order_acquire)) & HAMI_CONTROL_FLAG_SUSPENDED) != 0;
}

/* Until `until`, or half a second, or the agent has said something new since `generation`, or a signal: the caller looks again. */
static void wait_a_little(const struct court *court, uint32_t generation, uint64_t now, uint64_t until) {
    uint64_t end = until - now > SLICE_NS ? now + SLICE_NS : until;
#ifdef HAMI_TESTING
    if (hami_test_sleep != NULL) {
        hami_test_sleep(end);
        return;
    }
#endif
    if (court->control == NULL) {
        hami_sleep_until(end);
        return;
    }
    /* The file is mapped read-only, which is enough to wait on; the agent wakes it through its own mapping, so the futex is not private. */
    const struct timespec deadline = {.tv_sec = (time_t)(end / NS_PER_SECOND), .tv_nsec = (long)(end % NS_PER_SECOND)};
    long answer = syscall(SYS_futex, &court->control->generation, FUTEX_WAIT_BITSET, generation, &deadline, NULL, FUTEX_BITSET_MATCH_ANY);
    if (answer == -1 && errno != EAGAIN && errno != EINTR && errno != ETIMEDOUT) {
        hami_sleep_until(end); /* a seccomp filter, say */
    }
}

static uint32_t generation_of(const struct court *court) {
    return court->control == NULL ? 0 : atomic_load_explicit(&court->control->generation, memory_order_acquire);
}

/* The policy may be another one after a wait, and its record of this device gone: both waits look again, and answer false then. */
static bool wait_while_suspended(struct court *court) {
    for (;;) {
        uint32_t generation = generation_of(court);
        if (!suspended(court)) {
            return true;
        }
        uint64_t now = hami_now_ns();
        wait_a_little(court, generation, now, now + SLICE_NS);
        if (!summon(court->device, court)) {
            return false;
        }
    }
}

/* Waits until `turn`, which moves when the share does. */
static bool wait_for_turn(struct court *court, uint64_t turn, struct share share) {
    for (;;) {
        uint32_t generation = generation_of(court);
        uint64_t now = hami_now_ns();
        if (now >= turn) {
            return true;
        }
        struct share newer = share_now(court, now);
        if (newer.milli == HAMI_CORE_UNLIMITED) {
            return true;
        }
        if (newer.milli != share.milli) {
            turn = now + (turn - now) * (share.milli / 2 + 1) / (newer.milli / 2 + 1); /* halves: 2^36 * 2^16 and no more */
            share = newer;
            continue;
        }
        wait_a_little(court, generation, now, turn);
        if (!summon(court->device, court) || (suspended(court) && !wait_while_suspended(court))) {
            return false;
        }
    }
}

/* -- the word ----------------------------------------------------------------------------------------------------- */

/* What the word stands for: never before now, and never so far ahead that only a scribbler can have written it. */
static uint64_t sane(uint64_t tat, uint64_t now, uint64_t burst) {
    if (tat <= now) {
        return now;
    }
    if (HAMI_UNLIKELY(tat - now > HAMI_HORIZON_NS + SLACK_NS)) {
        hami_say_once("compute word", "the container's record of device time was damaged and is begun anew");
        return now + burst;
    }
    return tat;
}

/*
 * A larger share shortens what is still owed under the smaller one. Each process does so when it first sees the new share,
 * and none goes below the burst, so that doing it in several is a bounded gift. A smaller share leaves old debts as they are.
 */
static void __attribute__((noinline)) share_changed(const struct court *court, const struct share *share, uint64_t now) {
    uint32_t before = atomic_exchange_explicit(&last_milli[court->device], share->milli, memory_order_relaxed);
    if (before == 0 || before >= share->milli) {
        return;
    }
    uint64_t tat = atomic_load_explicit(&court->state->tat_ns, memory_order_relaxed);
    for (;;) {
        uint64_t owed = sane(tat, now, share->burst) - now;
        uint64_t shorter = owed * (before / 2 + 1) / (share->milli / 2 + 1);
        uint64_t next = now + (shorter > share->burst ? shorter : share->burst);
        if (owed <= share->burst || next >= tat ||
            atomic_compare_exchange_weak_explicit(&court->state->tat_ns, &tat, next, memory_order_relaxed, memory_order_relaxed)) {
            return;
        }
    }
}

/* Charges `increment`. True: charged, and `turn` says when it is this launch's turn. False: beyond the horizon; come again at `turn`. */
static bool charge(_Atomic uint64_t *word, uint64_t now, uint64_t increment, uint64_t burst, bool may_wait, uint64_t *turn) {
    uint64_t tat = atomic_load_explicit(word, memory_order_relaxed);
    for (;;) {
        uint64_t base = sane(tat, now, burst);
        uint64_t next = base + increment;
        *turn = base > now + burst ? base - burst : now;
        if (HAMI_UNLIKELY(next > now + HAMI_HORIZON_NS)) {
            if (may_wait && base > now + burst) {
                uint64_t room = next - HAMI_HORIZON_NS;
                *turn = room < *turn ? room : *turn;
                return false;
            }
            next = now + HAMI_HORIZON_NS;
        }
        if (atomic_compare_exchange_weak_explicit(word, &tat, next, memory_order_relaxed, memory_order_relaxed)) {
            return true;
        }
    }
}

/* Gives back, but no more than makes the container ready for a whole burst. */
static void credit(_Atomic uint64_t *word, uint64_t now, uint64_t decrement, uint64_t burst) {
    uint64_t floor = now > burst ? now - burst : 0, tat = atomic_load_explicit(word, memory_order_relaxed);
    while (tat > floor) {
        uint64_t next = tat - floor > decrement ? tat - decrement : floor;
        if (atomic_compare_exchange_weak_explicit(word, &tat, next, memory_order_relaxed, memory_order_relaxed)) {
            return;
        }
    }
}

/* -- launches ----------------------------------------------------------------------------------------------------- */

static void count_wait(const struct court *court, uint64_t begin) {
    uint64_t end = hami_now_ns();
    atomic_fetch_add_explicit(&court->state->waited_ns, end > begin ? end - begin : 0, memory_order_relaxed);
}

static enum hami_verdict __attribute__((noinline)) admit_later(struct court *court, uint64_t now, uint64_t turn, const struct share *share) {
    HAMI_KEEP_ERRNO;
    uint64_t least = share->burst / 4 < LEAST_WAIT_NS ? share->burst / 4 : LEAST_WAIT_NS;
    bool admitted = wait_for_turn(court, turn < now + least ? now + least : turn, *share);
    count_wait(court, now);
    return admitted || court->advisory ? HAMI_OK : HAMI_REFUSED;
}

static enum hami_verdict admit(struct court *court, uint64_t now, uint64_t cost, bool may_wait) {
    for (;;) {
        struct share share = share_now(court, now);
        if (share.milli == HAMI_CORE_UNLIMITED) {
            return HAMI_OK;
        }
        if (HAMI_UNLIKELY(atomic_load_explicit(&last_milli[court->device], memory_order_relaxed) != share.milli)) {
            share_changed(court, &share, now);
        }
        uint64_t turn;
        bool charged = charge(&court->state->tat_ns, now, hami_compute_increment(cost, share.gain, share.milli), share.burst, may_wait, &turn);
        if (HAMI_LIKELY(charged && (!may_wait || turn <= now))) {
            return HAMI_OK;
        }
        enum hami_verdict verdict = admit_later(court, now, turn, &share);
        if (charged || verdict != HAMI_OK) {
            return verdict;
        }
        now = hami_now_ns();
    }
}

static bool wait_out_suspension(struct court *court) {
    HAMI_KEEP_ERRNO;
    uint64_t begin = hami_now_ns();
    bool resumed = wait_while_suspended(court);
    count_wait(court, begin);
    return resumed;
}

enum hami_verdict hami_launch_begin(int device, uint64_t function, uint64_t work, bool may_wait, struct hami_launch *launch) {
    struct court court;
    launch->device = HAMI_NO_DEVICE, launch->sample = false, launch->pair = HAMI_PAIR_NONE;
    if (HAMI_UNLIKELY(!summon(device, &court))) {
        return court.advisory ? HAMI_OK : HAMI_REFUSED;
    }
    if (HAMI_UNLIKELY(!atomic_load_explicit(&forks_watched, memory_order_relaxed))) {
        hami_on_child(forget_in_child);
        atomic_store_explicit(&forks_watched, true, memory_order_relaxed);
    }
    bool outside = may_wait; /* of a capture, in which events would become nodes of the program's graph, and asking for one would end it */
    may_wait = may_wait && !court.advisory;
    if (HAMI_UNLIKELY(may_wait && suspended(&court)) && !wait_out_suspension(&court)) {
        return court.advisory ? HAMI_OK : HAMI_REFUSED;
    }
    uint64_t key = hami_cost_key(device, function, work);
    struct hami_cost cost = hami_cost_expect(device, key);
    uint64_t now = hami_now_ns();
    enum hami_verdict verdict = admit(&court, now, cost.ns, may_wait);
    if (HAMI_UNLIKELY(verdict != HAMI_OK)) {
        return verdict;
    }
    bool follow = !cost.sample && hami_sample_follows(device), look = !cost.sample && !follow && hami_sample_due(device, now);
    uint32_t pair = look ? HAMI_PAIR_LOOK : follow ? HAMI_PAIR_FOLLOW : HAMI_PAIR_NONE;
    *launch = (struct hami_launch){.device = device, .key = key, .charged_ns = cost.ns, .sample = outside && (cost.sample || follow || look), .pair = pair};
    count(&court, 1, bounded(cost.ns));
    return HAMI_OK;
}

void hami_launch_failed(const struct hami_launch *launch) {
    struct court court;
    if (launch->device == HAMI_NO_DEVICE || !summon(launch->device, &court)) {
        return;
    }
    uint64_t now = hami_now_ns();
    struct share share = share_now(&court, now);
    if (share.milli != HAMI_CORE_UNLIMITED) {
        credit(&court.state->tat_ns, now, hami_compute_increment(launch->charged_ns, share.gain, share.milli), share.burst);
    }
    count(&court, -1, -bounded(launch->charged_ns));
}

/* `times` launches differ by this much from what was charged for each. */
static uint64_t times(uint64_t ns, uint64_t launches) {
    return launches != 0 && ns > COST_MOST_NS / launches ? COST_MOST_NS : ns * launches;
}

void hami_launch_observed(int device, uint64_t key, uint64_t charged_ns, uint64_t ns) {
    struct court court;
    if (!summon(device, &court)) {
        return;
    }
    uint64_t launches = 1 + hami_cost_learn(device, key, ns), now = hami_now_ns();
    struct share share = share_now(&court, now);
    bool more = ns > charged_ns;
    uint64_t difference = times(more ? ns - charged_ns : charged_ns - ns, launches);
    if (share.milli != HAMI_CORE_UNLIMITED && difference != 0) {
        uint64_t increment = hami_compute_increment(difference, share.gain, share.milli), unused;
        if (more) {
            charge(&court.state->tat_ns, now, increment, share.burst, false, &unused); /* the next launch waits for it */
        } else {
            credit(&court.state->tat_ns, now, increment, share.burst);
        }
    }
    count(&court, 0, more ? (int64_t)difference : -(int64_t)difference);
}
