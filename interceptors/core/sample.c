/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sample.c: timing launches by pairs of the driver's events. Each device has a small ring of pairs; a pair is recorded
 * around a launch and read when a later launch finds it finished. Nobody ever waits for an event.
 *
 * A pair's interval is what the stream saw. Where several streams share the device it also holds the other streams'
 * kernels, so that their sum is more than the device's time. It is not clipped at the end of the pair sampled before it:
 * one launch in a hundred is sampled, so that an overlap of two samples says nothing about the overlap of all the
 * launches between them, and clipping would only make the few sampled ones too cheap, depending on which came first. The
 * agent's gain, which comes from the device's own utilisation, corrects all of them alike.
 */
#include "compute.h"

#define PAIRS 32
#define LOOK_EVERY_NS UINT64_C(200000)
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
    uint64_t recorded_ns;
};

struct ring {
    struct pair pairs[PAIRS];
    _Atomic uint32_t running;
    _Atomic uint64_t looked_ns;
};
static struct ring rings[HAMI_MAX_DEVICES];
static _Atomic bool forks_watched;

/* A child has none of its parent's events, and may not touch them. */
static void forget_in_child(void) {
    for (size_t device = 0; device < HAMI_MAX_DEVICES; device++) {
        for (size_t i = 0; i < PAIRS; i++) {
            atomic_store_explicit(&rings[device].pairs[i].state, PAIR_EMPTY, memory_order_relaxed);
        }
        atomic_store_explicit(&rings[device].running, 0, memory_order_relaxed);
    }
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
static void let_go(struct pair *pair, uint32_t state) {
    if (atomic_exchange_explicit(&pair->forgotten, 0, memory_order_relaxed) != 0) {
        state = PAIR_EMPTY;
    }
    atomic_store_explicit(&pair->state, state, memory_order_release);
}

static void read_pair(const struct hami_event_calls *calls, struct ring *ring, int device, struct pair *pair, uint64_t now) {
    uint64_t ns = 0;
    if (calls->done(pair->to)) {
        bool timed = calls->elapsed_ns(pair->from, pair->to, &ns);
        uint64_t key = pair->key;
        uint64_t charged = pair->charged_ns;
        atomic_fetch_sub_explicit(&ring->running, 1, memory_order_relaxed);
        let_go(pair, PAIR_IDLE);
        if (timed) {
            hami_launch_observed(device, key, charged, ns);
        }
    } else if (now > pair->recorded_ns && now - pair->recorded_ns > LOST_NS) {
        atomic_fetch_sub_explicit(&ring->running, 1, memory_order_relaxed);
        let_go(pair, PAIR_EMPTY); /* its events are left to the driver: whether they still exist cannot be known */
    } else {
        let_go(pair, PAIR_RUNNING);
    }
}

/* Only pairs of the calling thread's own context: another one's events may be going at this moment. */
static void harvest(const struct hami_event_calls *calls, int device, uint64_t context) {
    struct ring *ring = &rings[device];
    uint64_t now = hami_now_ns();
    atomic_store_explicit(&ring->looked_ns, now, memory_order_relaxed);
    for (size_t i = 0; i < PAIRS && atomic_load_explicit(&ring->running, memory_order_relaxed) != 0; i++) {
        struct pair *pair = &ring->pairs[i];
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
            let_go(pair, PAIR_IDLE);
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
            let_go(pair, PAIR_EMPTY);
            return NULL;
        }
    }
    return NULL;
}

bool hami_sample_before(const struct hami_event_calls *calls, struct hami_launch *launch, void *stream, uint64_t context) {
    HAMI_KEEP_ERRNO;
    bool only_look = launch->pair == HAMI_PAIR_LOOK;
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
    struct pair *pair = choose(calls, launch->device, context);
    if (pair == NULL) {
        return false;
    }
    if (!calls->record(pair->from, stream)) {
        let_go(pair, PAIR_IDLE);
        return false;
    }
    launch->pair = (uint32_t)(pair - rings[launch->device].pairs) + 1;
    return true;
}

void hami_sample_after(const struct hami_event_calls *calls, struct hami_launch *launch, void *stream, bool launched) {
    HAMI_KEEP_ERRNO;
    if (launch->pair == HAMI_PAIR_NONE || launch->pair > PAIRS || launch->device < 0 || launch->device >= HAMI_MAX_DEVICES) {
        return;
    }
    struct ring *ring = &rings[launch->device];
    struct pair *pair = &ring->pairs[launch->pair - 1];
    launch->pair = HAMI_PAIR_NONE;
    if (!launched || !calls->record(pair->to, stream)) {
        let_go(pair, PAIR_IDLE);
        return;
    }
    pair->key = launch->key;
    pair->charged_ns = launch->charged_ns;
    pair->recorded_ns = hami_now_ns();
    atomic_fetch_add_explicit(&ring->running, 1, memory_order_relaxed);
    if (atomic_load_explicit(&pair->forgotten, memory_order_relaxed) != 0) {
        atomic_fetch_sub_explicit(&ring->running, 1, memory_order_relaxed);
    }
    let_go(pair, PAIR_RUNNING);
}

/* Every busy pair has a thread that will see the mark; a program that destroys a context which another thread still uses has lost already. */
void hami_sample_forget(uint64_t context) {
    for (size_t device = 0; device < HAMI_MAX_DEVICES; device++) {
        for (size_t i = 0; i < PAIRS; i++) {
            struct pair *pair = &rings[device].pairs[i];
            if (context != 0 && atomic_load_explicit(&pair->context, memory_order_relaxed) != context) {
                continue;
            }
            if (seize(pair, PAIR_RUNNING, PAIR_READING)) {
                atomic_fetch_sub_explicit(&rings[device].running, 1, memory_order_relaxed);
                let_go(pair, PAIR_EMPTY);
            } else if (!seize(pair, PAIR_IDLE, PAIR_EMPTY) && atomic_load_explicit(&pair->state, memory_order_relaxed) != PAIR_EMPTY) {
                atomic_store_explicit(&pair->forgotten, 1, memory_order_relaxed);
            }
        }
    }
}
