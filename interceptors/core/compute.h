/* SPDX-License-Identifier: Apache-2.0 */
/*
 * compute.h: what compute.c, cost.c and sample.c say to each other.
 */
#ifndef HAMI_COMPUTE_H
#define HAMI_COMPUTE_H

#include "internal.h"

/* -- cost.c: what a launch is expected to cost ------------------------------------------------------------------- */

struct hami_cost {
    uint64_t ns;
    bool sample; /* this launch's turn to be timed */
};
/* The key under which launches that should cost alike are learnt together. */
HAMI_HIDDEN uint64_t hami_cost_key(int device, uint64_t function, uint64_t work);
/* The expected cost of one launch, and counts it. */
HAMI_HIDDEN struct hami_cost hami_cost_expect(int device, uint64_t key);
/*
 * Learns what a launch took. Answers how many launches of that key were charged blindly (at the prior) before this first
 * observation and will not be observed themselves: they are to be corrected with this one. 0 for a key that is known.
 */
HAMI_HIDDEN uint64_t hami_cost_learn(int device, uint64_t key, uint64_t ns);
/* Whether anything was learnt of that key. */
HAMI_HIDDEN bool hami_cost_known(uint64_t key);
/* What was learnt first may be too much: the next observation takes its place. */
HAMI_HIDDEN void hami_cost_doubt(uint64_t key);

/* -- sample.c ----------------------------------------------------------------------------------------------------- */

/* Pairs of this device are running, and nobody has looked at them for a while. */
HAMI_HIDDEN bool hami_sample_due(int device, uint64_t now);

/* The launch just made wants the next one to be sampled as well, so that it can tell them apart. One load. */
HAMI_HIDDEN bool hami_sample_follows(int device);

/* In hami_launch.pair, besides a place + 1: no pair; hami_sample_before is only to harvest. */
#define HAMI_PAIR_NONE 0u
#define HAMI_PAIR_LOOK UINT32_MAX
#define HAMI_PAIR_FOLLOW (UINT32_MAX - 1) /* timed only because the launch before it was */

/* -- compute.c: the pure part, for tests --------------------------------------------------------------------------- */

#define HAMI_HORIZON_NS (UINT64_C(60) * 1000000000)

/* How long `ns` of device time last at a share of `milli`, the cost corrected by `gain`; never more than the horizon, never wraps. */
HAMI_HIDDEN uint64_t hami_compute_increment(uint64_t ns, uint32_t gain, uint32_t milli);

#endif
