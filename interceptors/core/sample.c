/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sample.c: timing launches by pairs of the driver's events. Each device has a small ring of pairs; a pair is recorded
 * around a launch and read when a later launch finds it finished. Nobody ever waits for an event.
 *
 * A pair's interval is what the stream saw, which is more than the launch took of the device in two cases that this file
 * puts right:
 *   - The stream was idle: the interval begins while this program is still handing over the launch (device_time).
 *   - The program has other streams: the interval holds what they had queued before. So, in a program that uses several, the
 *     launch after a sampled one is sampled too, and counts from where the one before it ended. The one before it, of
 *     which nobody knows what was in front of it, then teaches nothing, unless nothing at all is known of its function:
 *     in that case it is believed until there is something better.
 *
 * What other processes do needs no such care where a device is given to one process after the other: an event, too, is only
 * over when the process's turn has come. A launch that is longer than such a turn is interrupted by theirs, however, and
 * looks longer than it was: its container then gets less than its share, never more, until the agent's gain corrects it.
 */
#include "compute.h"

#define PAIRS 32
#define LOOK_EVERY_NS UINT64_C(200000)
#define SLOW 2 /* times the usual: this thread was interrupted */
#define MIXED_NS UINT64_C(10000000000)
#define LOST_NS UINT64_C(60000000000) /* a pair that never finishes (a context that went unseen) is given up then */

/* EMPTY has no events; IDLE has; a pair in one of the two busy states belongs to one thread. */
enum pair_state { PAIR_EMPTY, PAIR_IDLE, PAIR_RECORDING, PAIR_RUNNING, PAIR_READING };

struct pair {
    _Atomic uint32_t state;
    _Atomic uint32_t forgotten; /* its context went while a thread was busy with it: that thread empties it */
    _Atomic uint64_t context;
    void *from;
    void *to;
    uint64_t key;
    uint64_t charged_ns;
    uint64_t before_ns;   /* the host's clock: before the first event was recorded, */
    uint64_t recorded_ns; /* after that, */
    uint64_t launched_ns; /* when the launch returned, */
    uint64_t after_ns;    /* and after the second event was recorded */
    bool idle;            /* the stream had nothing left to do before the launch */
    bool mixed;           /* the program uses several streams */
    bool turn;            /* it is timed for its own sake, not only because it follows one that is */
    uint32_t lead;        /* place + 1 of the pair around the launch before this one; 0: that one was not sampled */
    uint64_t lead_serial;
    _Atomic uint64_t serial; /* counts its uses */
    _Atomic uint32_t wanted; /* it leads one that has not been read: its events must stay as they are */
};

struct ring {
    struct pair pairs[PAIRS];
    _Atomic uint32_t running;
    _Atomic uint32_t follow; /* place + 1 of the pair around the launch just made, when the next one is to be sampled too */
    _Atomic uint64_t looked_ns;
    _Atomic uintptr_t stream;     /* of the last pair: only compared, it may be gone */
    _Atomic uint64_t mixed_until; /* two streams have been seen, and this is how long that is held for true */
    _Atomic uint64_t usual_ns; /* about the least that the host takes from before_ns to after_ns; 0: not known */
};
static struct ring rings[HAMI_MAX_DEVICES];
static _Atomic bool forks_watched;

/* A child has none of its parent's events, and may not touch them. */
static void forget_in_child(void) {
    for (size_t device = 0; device < HAMI_MAX_DEVICES; device++) {
        for (size_t i = 0; i < PAIRS; i++) {
            atomic_store_explicit(&rings[device].pairs[i].state, PAIR_EMPTY, memory_order_relaxed);
        }
        atomic_store_explicit(&rings[device].follow, 0, memory_order_relaxed);
        atomic_store_explicit(&rings[device].running, 0, memory_order_relaxed);
    }
}

bool hami_sample_follows(int device) {
    return atomic_load_explicit(&rings[device].follow, memory_order_relaxed) != 0;
}

bool hami_sample_due(int device, uint64_t now) {
    struct ring *ring = &rings[device];
    if (HAMI_LIKELY(atomic_load_explicit(&ring->running, memory_order_relaxed) == 0)) {
        return false;
    }
    uint64_t looked = atomic_load_explicit(&ring->looked_ns, memory_order_relaxed);
    return now > looked && now - looked >= LOOK_EVERY_NS;
}

static bool seize(struct pair *pair, uint32_t from, uint32_t to) {
    return atomic_compare_exchange_strong_explicit(&pair->state, &from, to, memory_order_acquire, memory_order_relaxed);
}

/* Lets a pair go. One whose context went meanwhile has no events any more. */
static void let_go(struct ring *ring, struct pair *pair, uint32_t state) {
    if (atomic_exchange_explicit(&pair->forgotten, 0, memory_order_relaxed) != 0) {
        if (state == PAIR_RUNNING) {
            atomic_fetch_sub_explicit(&ring->running, 1, memory_order_relaxed);
        }
        state = PAIR_EMPTY;
    }
    atomic_store_explicit(&pair->state, state, memory_order_release);
}

/* A pair that is over, or given up, wants its lead no longer. */
static void release_lead(struct ring *ring, const struct pair *pair) {
    if (pair->lead != 0) {
        atomic_store_explicit(&ring->pairs[pair->lead - 1].wanted, 0, memory_order_release);
    }
}

static void finish(struct ring *ring, struct pair *pair, uint32_t state) {
    release_lead(ring, pair);
    atomic_fetch_sub_explicit(&ring->running, 1, memory_order_relaxed);
    let_go(ring, pair, state);
}

/* Follows the least one down at once, and up slowly: one slow moment in between changes nothing. */
static uint64_t usual(struct ring *ring, uint64_t took) {
    uint64_t before = atomic_load_explicit(&ring->usual_ns, memory_order_relaxed);
    uint64_t risen = before + before / 16 + 1;
    uint64_t next = before == 0 || took < risen ? took : risen;
    atomic_store_explicit(&ring->usual_ns, next, memory_order_relaxed);
    return next;
}

/* For how long after the first event of `pair` the launch before it was still running. False: its events are gone. */
static bool still_before(const struct hami_event_calls *calls, struct ring *ring, const struct pair *pair, uint64_t *ns) {
    struct pair *lead = &ring->pairs[pair->lead - 1];
    if (!seize(lead, PAIR_RUNNING, PAIR_READING)) {
        return false;
    }
    bool same = atomic_load_explicit(&lead->serial, memory_order_relaxed) == pair->lead_serial && calls->done(lead->to);
    if (same && !calls->elapsed_ns(pair->from, lead->to, ns)) {
        *ns = 0; /* it ended before */
    }
    let_go(ring, lead, PAIR_RUNNING);
    return same;
}

/*
 * Device time of the launch from the interval between its events. False: not to be known.
 *
 * A busy stream runs one after the other without a gap: the interval is the launch's. On an idle stream the first event is
 * over at once, and the interval begins with the time that this program took to hand over the launch. That is taken off; it
 * is as good as the host's clock, so that nothing is learnt when this thread was interrupted meanwhile.
 */
static bool device_time(const struct hami_event_calls *calls, struct ring *ring, const struct pair *pair, uint64_t *ns) {
    uint64_t took = pair->after_ns - pair->before_ns;
    uint64_t late = pair->idle ? pair->launched_ns - pair->recorded_ns : 0;
    uint64_t before = 0;
    uint64_t interval;
    if (!calls->elapsed_ns(pair->from, pair->to, &interval)) {
        return false;
    }
    if (pair->lead != 0 ? !still_before(calls, ring, pair, &before) : pair->mixed && hami_cost_known(pair->key)) {
        return false;
    }
    late = late > before ? late : before;
    *ns = interval > late ? interval - late : 0;
    return !pair->idle || took <= SLOW * usual(ring, took) || took <= interval / 16;
}

static void read_pair(const struct hami_event_calls *calls, struct ring *ring, int device, struct pair *pair, uint64_t now) {
    uint64_t ns = 0;
    if (atomic_load_explicit(&pair->wanted, memory_order_acquire) == 0 && calls->done(pair->to)) {
        bool timed = device_time(calls, ring, pair, &ns);
        uint64_t key = pair->key;
        uint64_t charged = pair->charged_ns;
        bool doubtful = pair->mixed && pair->lead == 0;
        finish(ring, pair, PAIR_IDLE);
        if (timed) {
            hami_launch_observed(device, key, charged, ns);
        }
        if (timed && doubtful) {
            hami_cost_doubt(key);
        }
    } else if (now > pair->after_ns && now - pair->after_ns > LOST_NS) {
        finish(ring, pair, PAIR_EMPTY); /* its events are left to the driver: whether they still exist cannot be known */
    } else {
        let_go(ring, pair, PAIR_RUNNING);
    }
}

/* Only pairs of the calling thread's own context: another one's events may be going at this moment. */
static void harvest(const struct hami_event_calls *calls, int device, uint64_t context) {
    struct ring *ring = &rings[device];
    uint64_t now = hami_now_ns();
    atomic_store_explicit(&ring->looked_ns, now, memory_order_relaxed);
    for (size_t i = PAIRS; i > 0 && atomic_load_explicit(&ring->running, memory_order_relaxed) != 0; i--) {
        struct pair *pair = &ring->pairs[i - 1]; /* backwards: who leads is read after who follows, mostly */
        bool ours = atomic_load_explicit(&pair->context, memory_order_relaxed) == context;
        if (ours && atomic_load_explicit(&pair->state, memory_order_relaxed) == PAIR_RUNNING && seize(pair, PAIR_RUNNING, PAIR_READING)) {
            read_pair(calls, ring, device, pair, now);
        }
    }
}

static bool make_events(const struct hami_event_calls *calls, struct pair *pair) {
    if (!calls->create(&pair->from)) {
        return false;
    }
    if (!calls->create(&pair->to)) {
        calls->destroy(pair->from);
        return false;
    }
    return true;
}

/* An idle pair of this context, else an empty one made its own. NULL: all are busy. */
static struct pair *choose(const struct hami_event_calls *calls, int device, uint64_t context) {
    struct ring *ring = &rings[device];
    for (size_t i = 0; i < PAIRS; i++) {
        struct pair *pair = &ring->pairs[i];
        if (atomic_load_explicit(&pair->context, memory_order_relaxed) == context && seize(pair, PAIR_IDLE, PAIR_RECORDING)) {
            if (atomic_load_explicit(&pair->context, memory_order_relaxed) == context) {
                return pair;
            }
            let_go(ring, pair, PAIR_IDLE);
        }
    }
    for (size_t i = 0; i < PAIRS; i++) {
        struct pair *pair = &ring->pairs[i];
        if (seize(pair, PAIR_EMPTY, PAIR_RECORDING)) {
            atomic_store_explicit(&pair->context, context, memory_order_relaxed);
            atomic_store_explicit(&pair->forgotten, 0, memory_order_relaxed);
            if (make_events(calls, pair)) {
                return pair;
            }
            let_go(ring, pair, PAIR_EMPTY);
            return NULL;
        }
    }
    return NULL;
}

/* Does the program use several streams? */
static bool mixed(struct ring *ring, const void *stream, uint64_t now) {
    uintptr_t name = ~(uintptr_t)stream; /* the default stream may be 0, which here means that there was none yet */
    uintptr_t before = atomic_exchange_explicit(&ring->stream, name, memory_order_relaxed);
    if (before != name && before != 0) {
        atomic_store_explicit(&ring->mixed_until, now + MIXED_NS, memory_order_relaxed);
    }
    return now < atomic_load_explicit(&ring->mixed_until, memory_order_relaxed);
}

bool hami_sample_before(const struct hami_event_calls *calls, struct hami_launch *launch, void *stream, uint64_t context) {
    HAMI_KEEP_ERRNO;
    bool only_look = launch->pair == HAMI_PAIR_LOOK;
    bool turn = launch->pair == HAMI_PAIR_NONE;
    launch->pair = HAMI_PAIR_NONE;
    if (launch->device < 0 || launch->device >= HAMI_MAX_DEVICES) {
        return false;
    }
    if (!atomic_load_explicit(&forks_watched, memory_order_relaxed)) {
        hami_on_child(forget_in_child);
        atomic_store_explicit(&forks_watched, true, memory_order_relaxed);
    }
    harvest(calls, launch->device, context);
    if (only_look) {
        return false;
    }
    struct ring *ring = &rings[launch->device];
    uint32_t lead = atomic_exchange_explicit(&ring->follow, 0, memory_order_acquire);
    struct pair *pair = choose(calls, launch->device, context);
    bool recorded = false;
    if (pair != NULL) {
        pair->turn = turn;
        pair->lead = lead;
        pair->lead_serial = lead == 0 ? 0 : atomic_load_explicit(&ring->pairs[lead - 1].serial, memory_order_relaxed);
        pair->before_ns = hami_now_ns();
        pair->mixed = mixed(ring, stream, pair->before_ns);
        atomic_store_explicit(&pair->wanted, 0, memory_order_relaxed);
        recorded = calls->record(pair->from, stream);
        pair->recorded_ns = hami_now_ns();
    }
    if (recorded) {
        launch->pair = (uint32_t)(pair - ring->pairs) + 1;
        return true;
    }
    if (lead != 0) {
        atomic_store_explicit(&ring->pairs[lead - 1].wanted, 0, memory_order_release);
    }
    if (pair != NULL) {
        let_go(ring, pair, PAIR_IDLE);
    }
    return false;
}

void hami_sample_after(const struct hami_event_calls *calls, struct hami_launch *launch, void *stream, bool launched) {
    HAMI_KEEP_ERRNO;
    if (launch->pair == HAMI_PAIR_NONE || launch->pair > PAIRS || launch->device < 0 || launch->device >= HAMI_MAX_DEVICES) {
        return;
    }
    uint32_t place = launch->pair;
    struct ring *ring = &rings[launch->device];
    struct pair *pair = &ring->pairs[place - 1];
    launch->pair = HAMI_PAIR_NONE;
    pair->launched_ns = hami_now_ns();
    if (!launched || !calls->record(pair->to, stream)) {
        release_lead(ring, pair);
        let_go(ring, pair, PAIR_IDLE);
        return;
    }
    pair->after_ns = hami_now_ns();
    pair->idle = calls->done(pair->from);
    pair->key = launch->key;
    pair->charged_ns = launch->charged_ns;
    atomic_fetch_add_explicit(&pair->serial, 1, memory_order_relaxed);
    bool leads = pair->mixed && pair->turn;
    atomic_store_explicit(&pair->wanted, leads, memory_order_relaxed);
    atomic_fetch_add_explicit(&ring->running, 1, memory_order_relaxed);
    let_go(ring, pair, PAIR_RUNNING);
    uint32_t none = 0;
    if (leads && !atomic_compare_exchange_strong_explicit(&ring->follow, &none, place, memory_order_release, memory_order_relaxed)) {
        atomic_store_explicit(&pair->wanted, 0, memory_order_release); /* another thread's launch leads already */
    }
}

/* Every busy pair has a thread that will see the mark; a program that destroys a context which another thread still uses has lost already. */
void hami_sample_forget(uint64_t context) {
    for (size_t device = 0; device < HAMI_MAX_DEVICES; device++) {
        if (context == 0) {
            atomic_store_explicit(&rings[device].follow, 0, memory_order_relaxed);
            atomic_store_explicit(&rings[device].stream, 0, memory_order_relaxed);
            atomic_store_explicit(&rings[device].mixed_until, 0, memory_order_relaxed);
            atomic_store_explicit(&rings[device].usual_ns, 0, memory_order_relaxed);
        }
        for (size_t i = 0; i < PAIRS; i++) {
            struct pair *pair = &rings[device].pairs[i];
            if (context != 0 && atomic_load_explicit(&pair->context, memory_order_relaxed) != context) {
                continue;
            }
            if (seize(pair, PAIR_RUNNING, PAIR_READING)) {
                finish(&rings[device], pair, PAIR_EMPTY);
            } else if (!seize(pair, PAIR_IDLE, PAIR_EMPTY) && atomic_load_explicit(&pair->state, memory_order_relaxed) != PAIR_EMPTY) {
                atomic_store_explicit(&pair->forgotten, 1, memory_order_relaxed);
            }
        }
    }
}
