/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cost.c: what a launch is expected to cost, learnt from those that were timed.
 *
 * One entry per key (device, function and the size class of its grid), in a table of fixed size that belongs to the process.
 * The word that says whose entry it is and what it costs is one 64-bit atomic, so that it cannot be torn; the two counters
 * beside it only decide when to sample and may lose a step to a race. An entry that is pushed out is learnt again.
 */
#include "books.h" /* hami_mix */
#include "compute.h"

#define SETS 2048
#define WAYS 2
#define TAG_BITS 20
#define MEAN_BITS 44               /* sixteenths of a nanosecond: up to 18 minutes */
#define MEAN_ONE 16
#define MEAN_MOST ((UINT64_C(1) << MEAN_BITS) - 1)

#define PRIOR_NS UINT64_C(20000)   /* before anything was timed on this device */
#define FIRST_SAMPLED 8            /* each of a key's first launches is timed */
#define TRIED_AGAIN 64             /* a power of two */
#define PRIOR_LEAST_NS 1000        /* a device of empty kernels must not make the next function free, */
#define PRIOR_MOST_NS 1000000      /* nor one of very long kernels hold it back for a minute */
#define SPREAD_ONE 1024
#define SPREAD_UNSTEADY (SPREAD_ONE / 20)
#define SLOWEST_WEIGHT 8           /* a new observation counts for an eighth, once there have been eight */

struct cost_entry {
    _Atomic uint64_t word;      /* tag << MEAN_BITS | mean; a mean of 0: not timed yet; 0: free */
    _Atomic uint32_t launches;
    _Atomic uint32_t spread;    /* mean relative error, in 1/1024, << 8 | observations, up to 255 */
};

static struct cost_entry costs[SETS][WAYS];
static _Atomic uint64_t priors[HAMI_MAX_DEVICES]; /* mean over all observations of the device, in sixteenths of a nanosecond; 0: none yet */

uint64_t hami_cost_key(int device, uint64_t function, uint64_t work) {
    uint64_t size_class = work == 0 ? 0 : 64 - (uint64_t)__builtin_clzll(work);
    return hami_mix(function ^ (size_class + 1) * UINT64_C(0x9e3779b97f4a7c15) ^ (uint64_t)(unsigned)(device + 1) << 57);
}

static uint64_t tag_of(uint64_t key) {
    return (key >> (64 - TAG_BITS)) | 1; /* never 0: a free word is told from a taken one */
}

static uint64_t mean_of(uint64_t word) {
    return word & MEAN_MOST;
}

static struct cost_entry *find(uint64_t key) {
    struct cost_entry *set = costs[key % SETS];
    for (size_t way = 0; way < WAYS; way++) {
        if (atomic_load_explicit(&set[way].word, memory_order_relaxed) >> MEAN_BITS == tag_of(key)) {
            return &set[way];
        }
    }
    return NULL;
}

/* A free way, else the one that has been launched less often. */
static struct cost_entry *claim(uint64_t key) {
    struct cost_entry *set = costs[key % SETS];
    struct cost_entry *chosen = &set[0];
    if (atomic_load_explicit(&set[0].word, memory_order_relaxed) != 0 &&
        (atomic_load_explicit(&set[1].word, memory_order_relaxed) == 0 ||
         atomic_load_explicit(&set[1].launches, memory_order_relaxed) < atomic_load_explicit(&set[0].launches, memory_order_relaxed))) {
        chosen = &set[1];
    }
    atomic_store_explicit(&chosen->launches, 0, memory_order_relaxed);
    atomic_store_explicit(&chosen->spread, 0, memory_order_relaxed);
    atomic_store_explicit(&chosen->word, tag_of(key) << MEAN_BITS, memory_order_relaxed);
    return chosen;
}

static uint64_t prior(int device) {
    uint64_t mean = atomic_load_explicit(&priors[device], memory_order_relaxed);
    uint64_t ns = mean == 0 ? PRIOR_NS : mean / MEAN_ONE;
    return ns < PRIOR_LEAST_NS ? PRIOR_LEAST_NS : ns > PRIOR_MOST_NS ? PRIOR_MOST_NS : ns;
}

/* One launch of each block, at a place that differs from block to block, so that a program's own rhythm is not mistaken for its mean. */
static bool its_turn(uint64_t key, uint32_t launch, uint32_t bits) {
    uint32_t within = ((uint32_t)1 << bits) - 1;
    return ((uint32_t)(key >> 32) + (launch >> bits) * 0x9e3779b9u) >> (32 - bits) == (launch & within);
}

/*
 * One in how many (as a power of two) is timed, when the first are over. Timing costs some microseconds: next to a long kernel
 * that is nothing, next to a short one much.
 */
static uint32_t block_of(uint64_t mean, bool unsteady) {
    uint64_t ns = mean / MEAN_ONE;
    if (unsteady) {
        return ns >= 1000000 ? 1 : ns >= 100000 ? 3 : 4;
    }
    return ns >= 1000000 ? 5 : 7;
}

/* Of launches of which none was timed yet: the first, and at each power of two after that, should none of the first have told anything. */
static bool first_ones(uint32_t launch) {
    return launch < FIRST_SAMPLED || (launch >= TRIED_AGAIN && (launch & (launch - 1)) == 0);
}

static uint32_t timed_of_first(uint32_t launches) {
    if (launches <= TRIED_AGAIN) {
        return launches < FIRST_SAMPLED ? launches : FIRST_SAMPLED;
    }
    return FIRST_SAMPLED + 32 - (uint32_t)__builtin_clz((launches - 1) / TRIED_AGAIN);
}

static bool to_be_sampled(const struct cost_entry *entry, uint64_t key, uint32_t launch, uint64_t mean) {
    if (launch < FIRST_SAMPLED) {
        return true;
    }
    uint32_t spread = atomic_load_explicit(&entry->spread, memory_order_relaxed);
    return its_turn(key, launch, block_of(mean, (spread >> 8) > SPREAD_UNSTEADY));
}

struct hami_cost hami_cost_expect(int device, uint64_t key) {
    struct cost_entry *entry = find(key);
    if (HAMI_UNLIKELY(entry == NULL)) {
        entry = claim(key);
    }
    uint32_t launch = atomic_load_explicit(&entry->launches, memory_order_relaxed);
    atomic_store_explicit(&entry->launches, launch + 1, memory_order_relaxed); /* two threads may count one: only sampling hears of it */
    uint64_t mean = mean_of(atomic_load_explicit(&entry->word, memory_order_relaxed));
    if (HAMI_UNLIKELY(mean == 0)) {
        /* Until the first is timed, all are charged blindly. Those that are not timed themselves are corrected with it. */
        return (struct hami_cost){.ns = prior(device), .sample = first_ones(launch)};
    }
    return (struct hami_cost){.ns = (mean + MEAN_ONE / 2) / MEAN_ONE, .sample = to_be_sampled(entry, key, launch, mean)};
}

bool hami_cost_known(uint64_t key) {
    const struct cost_entry *entry = find(key);
    return entry != NULL && mean_of(atomic_load_explicit(&entry->word, memory_order_relaxed)) != 0;
}

void hami_cost_doubt(uint64_t key) {
    struct cost_entry *entry = find(key);
    if (entry != NULL) {
        atomic_fetch_and_explicit(&entry->spread, ~UINT32_C(255), memory_order_relaxed);
    }
}

/* Rounded to the nearer, so that a small error is learnt too. */
static uint64_t towards(uint64_t mean, uint64_t seen, uint64_t weight) {
    uint64_t moved = seen >= mean ? mean + (seen - mean + weight / 2) / weight : mean - (mean - seen + weight / 2) / weight;
    return moved == 0 ? 1 : moved;
}

static void learn_prior(int device, uint64_t seen) {
    uint64_t mean = atomic_load_explicit(&priors[device], memory_order_relaxed);
    atomic_store_explicit(&priors[device], mean == 0 ? seen : towards(mean, seen, 16), memory_order_relaxed);
}

static void learn_spread(struct cost_entry *entry, uint64_t mean, uint64_t seen) {
    uint32_t spread = atomic_load_explicit(&entry->spread, memory_order_relaxed);
    uint64_t error = seen > mean ? seen - mean : mean - seen;
    uint64_t relative = error > mean * 16 ? SPREAD_ONE * 16 : error * SPREAD_ONE / mean;
    uint32_t next = (uint32_t)towards((spread >> 8) + 1, relative + 1, SLOWEST_WEIGHT) - 1;
    uint32_t seen_before = spread & 255;
    atomic_store_explicit(&entry->spread, next << 8 | (seen_before < 255 ? seen_before + 1 : 255), memory_order_relaxed);
}

uint64_t hami_cost_learn(int device, uint64_t key, uint64_t ns) {
    uint64_t seen = ns >= MEAN_MOST / MEAN_ONE ? MEAN_MOST : ns * MEAN_ONE;
    seen = seen == 0 ? 1 : seen;
    learn_prior(device, seen);
    struct cost_entry *entry = find(key);
    if (entry == NULL) {
        return 0; /* pushed out meanwhile */
    }
    uint64_t word = atomic_load_explicit(&entry->word, memory_order_relaxed);
    uint64_t mean;
    uint64_t next;
    do {
        if (word >> MEAN_BITS != tag_of(key)) {
            return 0;
        }
        mean = mean_of(word);
        uint64_t observations = (atomic_load_explicit(&entry->spread, memory_order_relaxed) & 255) + 1;
        next = mean == 0 ? seen : towards(mean, seen, observations < SLOWEST_WEIGHT ? observations : SLOWEST_WEIGHT);
        next = next > MEAN_MOST ? MEAN_MOST : next;
    } while (!atomic_compare_exchange_weak_explicit(&entry->word, &word, tag_of(key) << MEAN_BITS | next, memory_order_relaxed, memory_order_relaxed));
    if (mean != 0) {
        learn_spread(entry, mean, seen);
        return 0;
    }
    atomic_store_explicit(&entry->spread, 1, memory_order_relaxed);
    uint32_t launches = atomic_load_explicit(&entry->launches, memory_order_relaxed);
    return launches - timed_of_first(launches);
}
