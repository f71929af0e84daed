/* SPDX-License-Identifier: Apache-2.0 */
/* The fake CUDA driver: its address space. Addresses are numbers; a freed one is handed out again as soon as the size fits. */
#include "fake_cuda.h"

#include <search.h>

#define FIRST_ADDRESS 0x0a0000000000u /* far from anything that the host maps */

static void *ranges, *mappings; /* trees of fc_range, which do not overlap each other within a tree */
static struct { uint64_t start, span; } spare[64];

static int compare(const void *one, const void *other)
{
    const struct fc_range *first = one, *second = other;
    if (first->start + first->span <= second->start)
        return -1;
    return second->start + second->span <= first->start ? 1 : 0;
}

static void **tree(const struct fc_range *range)
{
    return range->what == FC_MAPPED ? &mappings : &ranges;
}

uint64_t fc_address(uint64_t span)
{
    static uint64_t next = FIRST_ADDRESS;
    for (size_t i = 0; i < sizeof spare / sizeof *spare; i++)
        if (spare[i].span == span) {
            spare[i].span = 0;
            return spare[i].start;
        }
    uint64_t start = next;
    next += fc_round(span, FC_GRANULE);
    return start;
}

struct fc_range *fc_range_add(uint64_t start, uint64_t span, uint64_t size, enum fc_what what, int device)
{
    struct fc_range *range = calloc(1, sizeof *range);
    *range = (struct fc_range){.start = start, .span = span, .size = size, .what = what, .device = device, .id = fc_next_id()};
    tsearch(range, tree(range), compare);
    return range;
}

static struct fc_range *find(void **root, uint64_t address)
{
    struct fc_range wanted = {.start = address, .span = 1};
    struct fc_range *const *found = tfind(&wanted, root, compare);
    return found != NULL ? *found : NULL;
}

struct fc_range *fc_range_at(uint64_t address)
{
    struct fc_range *mapping = find(&mappings, address);
    return mapping != NULL ? mapping : find(&ranges, address);
}

struct fc_range *fc_range_from(uint64_t address)
{
    struct fc_range *range = find(&ranges, address);
    return range != NULL && range->start == address ? range : NULL;
}

/* Small blocks give their addresses back to their chunk; a graph's addresses stay its own. */
static void keep_address(uint64_t start, uint64_t span)
{
    static size_t at;
    spare[at].start = start;
    spare[at].span = span;
    at = (at + 1) % (sizeof spare / sizeof *spare);
}

void fc_range_drop(struct fc_range *range)
{
    tdelete(range, tree(range), compare);
    if (range->what != FC_SMALL && range->what != FC_MAPPED && range->what != FC_GRAPH && range->start % FC_GRANULE == 0)
        keep_address(range->start, range->span);
    free(range->shadow);
    free(range);
}

static _Thread_local void (*visitor)(struct fc_range *range, void *with);
static _Thread_local void *visitor_with;

static void walk(const void *node, VISIT order, int depth)
{
    (void)depth;
    if (order == postorder || order == leaf)
        visitor(*(struct fc_range *const *)node, visitor_with);
}

/* `visit` must not drop what it sees. */
void fc_ranges_each(void (*visit)(struct fc_range *range, void *with), void *with)
{
    visitor = visit;
    visitor_with = with;
    twalk(ranges, walk);
}
